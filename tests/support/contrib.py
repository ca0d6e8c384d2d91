"""What the tests of contrib/ have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from clamproxy.cli import main

ROOT = Path(__file__).parents[2]
CONTRIB = ROOT / "contrib"
NOFILE_PER_CONNECTION = 3
"""The client's connection, the file that is sent, and the server's connection of what is passed through."""


def parse(words: list[str]) -> dict[str, Any]:
    """The parameters of a command of ours as the command line understands them."""
    program, name, *arguments = words
    assert Path(program).name == "clamproxy"
    command, parent = main.commands[name], click.Context(main, info_name=program)
    if hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    return dict(command.make_context(name, arguments, parent=parent).params)


def load_yaml(path: Path) -> list[Any]:
    """All documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))
