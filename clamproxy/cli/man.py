"""``clamproxy man``."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from clamproxy import __version__
from clamproxy.cli.common import fail, write_out
from clamproxy.config.loading import ConfigurationError
from clamproxy.manual import PAGES, page
from clamproxy.readable import shown_error


@click.command()
@click.argument("name", metavar="[clamproxy|proxy.yaml]", type=click.Choice(list(PAGES)), default="clamproxy")
@click.option(
    "--into",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write all pages into DIR, such as /usr/local/share/man, instead.",
)
@click.pass_context
def man(context: click.Context, name: str, into: Path | None) -> None:
    """Print a man page, for example for `man -l -`.

    The pages are clamproxy(1), about the commands, and clamproxy-proxy.yaml(5), about the configuration.
    """
    program = cast("click.Group", context.find_root().command)
    names = [name] if into is None else list(PAGES)
    try:
        texts = {PAGES[one]: page(one, program, __version__) for one in names}
    except ConfigurationError as error:
        fail(str(error))
    if into is None:
        write_out("".join(texts.values()))
        return
    try:
        for place, text in texts.items():
            (into / place).parent.mkdir(parents=True, exist_ok=True)
            (into / place).write_text(text, encoding="utf-8")
    except OSError as error:
        fail(shown_error(error))
