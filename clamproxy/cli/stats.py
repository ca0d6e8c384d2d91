"""``clamproxy stats``."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from clamproxy.cli.common import config_option, fail, opened_store, settings_of, shown_error, shown_size
from clamproxy.stats import COUNTERS, snapshot


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(config: str | None, as_json: bool) -> None:
    """Print the statistics of the cache, whether the proxy runs or not."""
    directory = settings_of(config).cache.directory
    with opened_store(directory) as store:
        try:
            values = snapshot(store)
        except OSError as error:
            fail(f"{directory}: {shown_error(error)}")
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        _print_tables(values)


def _print_tables(values: dict[str, Any]) -> None:
    console = Console()
    counters = Table(title="Since the cache was made", show_header=False)
    for name in COUNTERS:
        value = values[name]
        counters.add_row(name.replace("_", " "), shown_size(value) if "bytes" in name else f"{value:,}")
    counters.add_row("objects", f"{values['objects']:,}")
    counters.add_row("cache", shown_size(values["cache_bytes"]))
    counters.add_row("quarantined", f"{values['quarantined']:,}")
    console.print(counters)
    columns = ("advertised", "cached", "reached")
    databases = Table("database", *columns, title="Databases")
    for name, versions in values["databases"].items():
        databases.add_row(name, *(str(versions[column] or "-") for column in columns))
    console.print(databases)
    if values["cooldowns"]:
        cooldowns = Table("not asked of the origin", "until", "why", title="Cool-downs")
        for name, cooldown in values["cooldowns"].items():
            cooldowns.add_row(name, time.ctime(cooldown["until"]), cooldown["reason"])
        console.print(cooldowns)
    if values["budget"]:
        budget = Table("file", "requests", title="Asked of the origin within the last hour")
        for path, spent in values["budget"].items():
            budget.add_row(path, str(spent["used"]))
        console.print(budget)
