"""``clamproxy hash-password``."""

from __future__ import annotations

import sys

import click

from clamproxy.access.users import user_line
from clamproxy.cli.common import fail, is_asked_at_terminal, tell


@click.command("hash-password")
@click.argument("name")
def hash_password(name: str) -> None:
    """Print a user's line for access.users in proxy.yaml.

    It begins with "- ", like any item of a YAML list, and goes below "users:". On a terminal, you are
    asked for the password; otherwise it is the first line of the standard input.
    """
    if not name.isprintable():  # YAML doesn't take it as it is
        fail(f"the name is {name!r}; expected printable characters without white space.")
    try:
        password = _password()
        password.encode()
    except UnicodeError:  # whose text would tell of the password
        fail("the password is not text in UTF-8.")
    if not password:
        fail("the password is empty.")
    try:
        line = user_line(name, password)
    except ValueError as error:
        fail(f"the name is {name!r}; expected {error}.")
    # In quotes, because YAML would take a colon followed by a space for a mapping.
    quoted = line.replace("'", "''")
    click.echo(f"- '{quoted}'")
    if sys.stderr.isatty():
        tell("put this line below users: in the section access: of proxy.yaml, indented like other lists.")


def _password() -> str:
    if is_asked_at_terminal():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    return "" if sys.stdin is None else sys.stdin.readline().rstrip("\r\n")
