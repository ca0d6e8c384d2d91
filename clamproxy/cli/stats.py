"""``clamproxy stats``."""

from __future__ import annotations

import json
import time
from itertools import chain
from typing import Any

import click

from clamproxy.cli.common import config_option, fail, opened_store, settings_of, shown_trouble
from clamproxy.cli.parameters import duration
from clamproxy.releases.limits_in_force import Limit, read_limits
from clamproxy.state import state_directory
from clamproxy.statistics import snapshot

SHORTEST_INTERVAL = 0.2
LONGEST_INTERVAL = 3600.0


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", "live", is_flag=True, help="Show them live on the terminal, until Ctrl-C.")
@click.option(
    "--interval",
    metavar="TIME",
    default="2s",
    show_default=True,
    callback=duration(
        "a duration such as 2s, from 200ms to 1h",
        shortest=SHORTEST_INTERVAL,
        longest=LONGEST_INTERVAL,
        in_seconds=True,
    ),
    help="With --watch: time between updates.",
)
def stats(config: str | None, as_json: bool, live: bool, interval: float) -> None:
    """Print the statistics, whether the proxy runs or not.

    The hit ratio is the share of answers that cost the origin nothing; the byte hit ratio is the same for
    bytes. Times are in this machine's time zone.

    --watch shows databases, running transfers, cool-downs, and the counters with their growth.
    """
    if live and as_json:
        raise click.UsageError("--watch is for people, --json for programs: use one of them.")
    settings = settings_of(config)
    directory = settings.cache.directory
    try:
        if live:
            # Not at the top: rich takes a while to import.
            from clamproxy.cli.watch import is_terminal, watch

            if not is_terminal():
                fail("--watch needs a terminal; for programs, use stats --json.")
            watch(settings, interval)
            return
        with opened_store(directory, state=state_directory(settings)) as store:
            values = snapshot(store)
            limits = read_limits(store, settings.releases, time.time())
    except OSError as error:
        fail(shown_trouble(directory, error))
    if as_json:
        click.echo(json.dumps({**values, "releases": [limit.to_json() for limit in limits]}, indent=2))
    else:
        _print_tables(values, limits, has_feeds=bool(settings.feeds.hosts))


def _print_tables(values: dict[str, Any], limits: list[Limit], *, has_feeds: bool) -> None:
    from rich.console import Console

    from clamproxy.cli.tables import (
        budget_table,
        cooldowns_table,
        counters_table,
        databases_table,
        fleet_store_table,
        limits_table,
    )

    console = Console()
    console.print(counters_table(values, has_feeds=has_feeds))
    console.print(databases_table(values))
    others = fleet_store_table(values), limits_table(limits), cooldowns_table(values), budget_table(values)
    for table in chain.from_iterable(others):
        console.print(table)
