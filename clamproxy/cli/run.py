"""``clamproxy run``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import clamproxy
from clamproxy.cli.common import config_option, fail, settings_of
from clamproxy.config.loading import ConfigurationError
from clamproxy.setup.confdir import find_confdir

if TYPE_CHECKING:
    from mitmproxy.options import Options

_SCRIPT = Path(clamproxy.__file__).parent / "proxy" / "script.py"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "-p", "--port", type=click.IntRange(0, 65535), help="Port to listen on, instead of that in listen.proxy."
)
@config_option
@click.argument("mitmdump_options", nargs=-1, type=click.UNPROCESSED)
def run(port: int | None, config: str | None, mitmdump_options: tuple[str, ...]) -> None:
    """Run the proxy in the foreground.

    It listens where `listen` in proxy.yaml says. This is the same as `mitmdump -s
    addons/clamav_cache.py`, and takes mitmdump's options as well.
    """
    settings = settings_of(config)  # a wrong configuration is told before anything starts
    arguments = ["-s", str(_SCRIPT)]
    if port is not None:
        arguments += ["-p", str(port)]
    if config is not None:
        arguments += ["--set", f"clamproxy_config={config}"]
    try:
        # mitmproxy looks there before it loads the addon, and ends with a traceback if it can't.
        if not any("confdir" in option for option in mitmdump_options) and (home := find_confdir(settings)):
            arguments += ["--set", f"confdir={home}"]
        _run_mitmdump([*arguments, *mitmdump_options])
    except (ConfigurationError, _StrayArgument) as error:
        fail(str(error))


def _run_mitmdump(arguments: Sequence[str]) -> None:
    # mitmproxy takes a second to import: not for the other commands.
    from mitmproxy.tools import main
    from mitmproxy.tools.dump import DumpMaster

    from clamproxy.proxy.log_format import before_start

    before_start()
    sys.stdout = sys.__stdout__  # the log has a way of its own with a disk that is full
    main.run(DumpMaster, _Parser, arguments)  # type: ignore[arg-type]


class _StrayArgument(Exception):
    """There is an argument that nothing is done with; the text is one line."""

    def __init__(self, argument: str) -> None:
        hint = "only options may follow `clamproxy run`"
        if argument.startswith("-"):
            hint = "there is no such option, here or of mitmdump"
        elif argument.endswith((".yaml", ".yml")) or Path(argument).is_file():
            hint = f"did you mean --config {argument}?"
        elif argument.isdecimal():
            hint = f"did you mean --port {argument}?"
        super().__init__(f"unexpected argument {argument!r}: {hint}")


class _Parser:
    """mitmdump's command line, but for the filter of flows: whatever is no option would be taken for it."""

    def __init__(self, options: Options) -> None:
        from mitmproxy.tools import cmdline

        self._parser = cmdline.mitmdump(options)  # type: ignore[no-untyped-call]

    def parse_args(self, arguments: Sequence[str]) -> Namespace:
        """Called by mitmproxy once it knows all of its options."""
        known: Namespace
        known, unknown = self._parser.parse_known_args(arguments)
        for stray in (*unknown, *known.filter_args):
            raise _StrayArgument(stray)
        return known
