"""``clamproxy run``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click

import clamproxy
from clamproxy.access.limits import require_descriptors
from clamproxy.cli.common import config_option, fail, settings_of, shown_trouble, tell
from clamproxy.cli.parameters import parsed_by
from clamproxy.config.loading import ConfigurationError
from clamproxy.config.settings import Settings
from clamproxy.config.units import Endpoint
from clamproxy.readable import shown_error
from clamproxy.setup.confdir import DEFAULT, find_confdir, set_damaged_aside
from clamproxy.setup.place import refusal
from clamproxy.sharing.site import require_usable
from clamproxy.workers.cores import usable_cores
from clamproxy.workers.parent import Parent
from clamproxy.workers.worker import join

MOST_WORKERS = 64
_SCRIPT = Path(clamproxy.__file__).parent / "proxy" / "script.py"


def _count_of_workers(text: str) -> int:
    """The number of workers; raises a ValueError if the text isn't one."""
    if text == "auto":
        return usable_cores()
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_WORKERS:
        return int(text)
    raise ValueError(f"auto, or a number from 1 to {MOST_WORKERS}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on, instead of the one in listen.proxy.",
)
@click.option(
    "--workers",
    default="1",
    callback=parsed_by(_count_of_workers),
    metavar="N|auto",
    help="Run that many processes, which share the ports and the cache; auto: one per core.",
)
@config_option
@click.argument("mitmdump_options", nargs=-1, type=click.UNPROCESSED)
def run(port: int | None, workers: int, config: str | None, mitmdump_options: tuple[str, ...]) -> None:
    """Run the proxy in the foreground.

    It listens where `listen` in proxy.yaml says, which is port 8080 by default. It runs in mitmdump, and
    takes mitmdump's options as well.
    """
    worker = join(os.environ)
    _require_options(mitmdump_options)
    settings = settings_of(config)  # reports a wrong configuration before anything starts
    if worker is None:
        if not _say_where(mitmdump_options):
            _require_free_ports(settings, port)
        _require_descriptors(settings)
        _require_cache(settings)
        _require_fleet_store(settings)
    if worker is None and workers > 1:
        # The workers get the same command line, so they are started in the same way.
        parent = Parent(sys.orig_argv[1:], workers, os.environ)
        sys.exit(asyncio.run(parent.run()))
    arguments = ["-s", str(_SCRIPT)]
    if port is not None:
        arguments += ["-p", str(port)]
    arguments += mitmdump_options
    if config is not None:
        arguments += ["--set", f"clamproxy_config={config}"]
    # mitmproxy reads that directory before it loads the addon, and ends with a traceback if it can't.
    if not any("confdir" in option for option in mitmdump_options):
        if (home := _confdir(settings)) is not None:
            arguments += ["--set", f"confdir={home}"]
        _make_way_for_authority(home or Path(DEFAULT).expanduser())
    # Not at the top: mitmproxy takes a second to import.
    from mitmproxy.tools.main import mitmdump

    from clamproxy.proxy.log_format import before_start
    from clamproxy.proxy.shared_ports import share_ports

    before_start()
    if worker is not None:
        share_ports(worker)
    sys.stdout = sys.__stdout__ or sys.stdout  # the log handles a full disk in its own way
    mitmdump(arguments)


def _require_options(arguments: Sequence[str]) -> None:
    """End the process if an argument is certainly neither an option nor the value of one."""
    for before, argument in pairwise(("", *arguments)):
        if argument.startswith("-") or before.startswith("-"):
            continue
        hint = "`clamproxy run` takes only options"
        if argument.endswith((".yaml", ".yml")) or Path(argument).is_file():
            hint = f"did you mean --config {argument}?"
        elif argument.isdecimal():
            hint = f"did you mean --port {argument}?"
        fail(f"unexpected argument {argument!r}: {hint}")


def _say_where(options: Sequence[str]) -> bool:
    """Whether mitmdump's own options may make it listen elsewhere."""
    return "-m" in options or any(word in option for option in options for word in ("mode", "listen"))


def _require_descriptors(settings: Settings) -> None:
    """End the process if hardly any client could connect."""
    try:
        require_descriptors(settings.access.max_connections)
    except ConfigurationError as error:
        fail(str(error))


def _require_cache(settings: Settings) -> None:
    """End the process if there is no cache and this user may not make one."""
    try:
        settings.cache.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError as error:
        fail(f"{shown_error(error)}; run this in a directory of your own, or set cache.directory")
    except OSError:
        pass  # on a disk that is full or read-only, the proxy serves what it can, and says what is wrong


def _require_fleet_store(settings: Settings) -> None:
    """End the process if the object store can't do what is needed."""
    if settings.fleet_store is not None:
        try:
            asyncio.run(require_usable(settings.fleet_store))
        except ConfigurationError as error:
            fail(str(error))


def _require_free_ports(settings: Settings, port: int | None) -> None:
    """End the process if the proxy can't listen."""
    for endpoint in settings.listen.proxy:
        wanted = endpoint if port is None else Endpoint(endpoint.host, port)
        if (reason := refusal(wanted)) is not None:
            fail(f"{wanted}: {reason}; see listen.proxy, or -p PORT")


def _confdir(settings: Settings) -> Path | None:
    try:
        return find_confdir(settings)
    except ConfigurationError as error:
        fail(str(error))
    except OSError as error:
        fail(shown_trouble(settings.cache.directory, error))


def _make_way_for_authority(directory: Path) -> None:
    if (aside := set_damaged_aside(directory)) is not None:
        tell(f"mitmproxy's authority was damaged, and a new one is made; the damaged file is now {aside}.")
