"""``clamproxy run``."""

from __future__ import annotations

from pathlib import Path

import click

import clamproxy
from clamproxy.cli.common import config_option, settings_of

_SCRIPT = Path(clamproxy.__file__).parent / "proxy" / "script.py"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-p", "--port", default=8080, show_default=True, help="Port to listen on.")
@config_option
@click.argument("mitmdump_options", nargs=-1, type=click.UNPROCESSED)
def run(port: int, config: str | None, mitmdump_options: tuple[str, ...]) -> None:
    """Run the proxy in the foreground.

    The same as `mitmdump -s addons/clamav_cache.py -p PORT`; further options are mitmdump's, for
    example `--mode regular --mode reverse:https://database.clamav.net@8000`.
    """
    settings = settings_of(config)  # a wrong configuration is told before anything starts
    arguments = ["-s", str(_SCRIPT), "-p", str(port), *mitmdump_options]
    if config is not None:
        arguments += ["--set", f"clamproxy_config={config}"]
    # mitmproxy takes a second to import: not for the other commands.
    from mitmproxy.tools.main import mitmdump

    from clamproxy.proxy.log_format import before_start

    before_start(settings.log.format)
    mitmdump(arguments)
