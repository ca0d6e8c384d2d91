"""``clamproxy hash-password``."""

from __future__ import annotations

import sys

import click

from clamproxy.access.users import user_line
from clamproxy.cli.common import fail, tell


@click.command("hash-password")
@click.argument("name")
def hash_password(name: str) -> None:
    """Print the line for a user, for access.users in proxy.yaml.

    It begins with "- ", as the items of a list do in YAML, and goes below "users:". The password is
    asked for on a terminal, and else is the first line of the standard input.
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
    quoted = line.replace("'", "''")
    click.echo(f"- '{quoted}'")
    if sys.stderr.isatty():
        tell("put this line below users: in the section access: of proxy.yaml, indented like other lists.")
