"""The man pages, written from what the program itself says: its options, and the comments in proxy.yaml."""

from __future__ import annotations

import click

from clamproxy.manual.configuration import configuration_page
from clamproxy.manual.program import program_page

PAGES = {"clamproxy": "man1/clamproxy.1", "proxy.yaml": "man5/clamproxy-proxy.yaml.5"}
"""The pages, and where each is below a directory such as /usr/share/man."""


def page(name: str, program: click.Group, version: str) -> str:
    """A man page, in roff.

    Args:
        name: one of `PAGES`.
        program: the command line.
        version: of clamproxy.

    Raises:
        ConfigurationError: the comments can't be read, see `clamproxy.config.example.example`.
    """
    return program_page(program, version) if name == "clamproxy" else configuration_page(version)
