"""``clamproxy run``."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from pathlib import Path

import click

import clamproxy
from clamproxy.cli.common import config_option, fail, settings_of

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
    if not _say_where(mitmdump_options) and _is_taken(port):
        fail(f"port {port} is in use already, by another program or a clamproxy that runs; see -p PORT")
    arguments = ["-s", str(_SCRIPT), "-p", str(port), *mitmdump_options]
    if config is not None:
        arguments += ["--set", f"clamproxy_config={config}"]
    # mitmproxy takes a second to import: not for the other commands.
    from mitmproxy.tools.main import mitmdump

    from clamproxy.proxy.log_format import before_start

    before_start(settings.log.format)
    mitmdump(arguments)


def _say_where(options: Sequence[str]) -> bool:
    """Whether mitmdump's own options may have it listen elsewhere than on the port."""
    return "-m" in options or any(word in option for option in options for word in ("mode", "listen"))


def _is_taken(port: int) -> bool:
    """Whether somebody listens on a port. mitmproxy would tell so with options that are not ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        except OverflowError:
            fail(f"the port is {port}; expected one from 1 to 65535")
    return False
