"""``clamproxy hash-password``."""

from __future__ import annotations

import sys

import click

from clamproxy.access.users import user_line
from clamproxy.cli.common import fail


@click.command("hash-password")
@click.argument("name")
def hash_password(name: str) -> None:
    """Print the line of access.users for user NAME.

    The password is asked for on a terminal, and else is the first line of the standard input.
    """
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        fail("the password is empty.")
    try:
        line = user_line(name, password)
    except ValueError as error:
        fail(f"the name is {name!r}; expected {error}.")
    # In quotes: YAML would take a colon that a space follows for a mapping.
    click.echo(f"'{line}'")
