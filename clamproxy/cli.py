"""The command line: ``clamproxy run`` and ``clamproxy stats``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from clamproxy import __version__
from clamproxy.cache.store import Store
from clamproxy.config.settings import ConfigurationError, Settings, find_config, load_settings
from clamproxy.stats import COUNTERS, snapshot

_SCRIPT = Path(__file__).parent / "proxy" / "script.py"

_config_option = click.option(
    "--config", metavar="FILE", help="Configuration file; default: ./proxy.yaml, /etc/clamproxy/proxy.yaml."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="clamproxy")
def main() -> None:
    """A caching forward HTTP proxy for ClamAV signature databases."""


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("-p", "--port", default=8080, show_default=True, help="Port to listen on.")
@_config_option
@click.argument("mitmdump_options", nargs=-1, type=click.UNPROCESSED)
def run(port: int, config: str | None, mitmdump_options: tuple[str, ...]) -> None:
    """Run the proxy in the foreground.

    The same as `mitmdump -s addons/clamav_cache.py -p PORT`; further options are mitmdump's, for
    example `--mode regular --mode reverse:https://database.clamav.net@8000`.
    """
    _settings(config)  # a wrong configuration is told before anything starts
    arguments = ["-s", str(_SCRIPT), "-p", str(port), *mitmdump_options]
    if config is not None:
        arguments += ["--set", f"clamproxy_config={config}"]
    # mitmproxy takes a second to import: not for `clamproxy stats`.
    from mitmproxy.tools.main import mitmdump

    mitmdump(arguments)


@main.command()
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(config: str | None, as_json: bool) -> None:
    """Print the statistics of the cache, whether the proxy runs or not."""
    directory = _settings(config).cache.directory
    if not directory.is_dir():
        _fail(f"{directory}: no such cache directory; has the proxy been started?")
    try:
        store = Store(directory, tidy=False)
        values = snapshot(store)
        store.close()
    except OSError as error:
        _fail(f"{directory}: {error.strerror or error}")
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        _print_tables(values)


def _settings(config: str | None) -> Settings:
    try:
        return load_settings(find_config(config, Path.cwd()), os.environ)
    except ConfigurationError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    click.echo(f"clamproxy: {message}", err=True)
    sys.exit(1)


def _print_tables(values: dict[str, Any]) -> None:
    console = Console()
    counters = Table(title="Since the cache was made", show_header=False)
    for name in COUNTERS:
        value = values[name]
        counters.add_row(name.replace("_", " "), _size(value) if "bytes" in name else f"{value:,}")
    counters.add_row("objects", f"{values['objects']:,}")
    counters.add_row("cache", _size(values["cache_bytes"]))
    counters.add_row("quarantined", f"{values['quarantined']:,}")
    console.print(counters)
    databases = Table("database", "advertised", "cached", title="Databases")
    for name, versions in values["databases"].items():
        databases.add_row(name, str(versions["advertised"] or "-"), str(versions["cached"] or "-"))
    console.print(databases)
    if values["cooldowns"]:
        cooldowns = Table("not asked of the origin", "until", "why", title="Cool-downs")
        for name, cooldown in values["cooldowns"].items():
            cooldowns.add_row(name, time.ctime(cooldown["until"]), cooldown["reason"])
        console.print(cooldowns)


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


if __name__ == "__main__":
    main()
