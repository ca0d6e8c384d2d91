"""``clamproxy stats``."""

from __future__ import annotations

import json
from typing import Any

import click

from clamproxy.cli.common import config_option, fail, opened_store, settings_of, shown_error
from clamproxy.config.units import parse_duration
from clamproxy.stats import snapshot

SHORTEST_INTERVAL = 0.2
LONGEST_INTERVAL = 3600.0


def _interval(_: click.Context, option: click.Parameter, text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST_INTERVAL <= seconds <= LONGEST_INTERVAL:
        raise click.BadParameter("expected a duration such as 2s, from 200ms to 1h", param=option)
    return seconds


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", "live", is_flag=True, help="Show them on the terminal, live, until Ctrl-C.")
@click.option(
    "--interval",
    metavar="TIME",
    default="2s",
    show_default=True,
    callback=_interval,
    help="With --watch: time between looks.",
)
def stats(config: str | None, as_json: bool, live: bool, interval: float) -> None:
    """Print the statistics of the cache, whether the proxy runs or not.

    With --watch: databases, running transfers, cool-downs, and counters with their growth.
    """
    if live and as_json:
        raise click.UsageError("--watch is for people, --json for programs: give one of them.")
    settings = settings_of(config)
    directory = settings.cache.directory
    try:
        if live:
            # rich takes a while to import: not for the other commands.
            from clamproxy.cli.watch import is_terminal, watch

            if not is_terminal():
                fail("--watch needs a terminal; for programs there is stats --json.")
            watch(settings, interval)
            return
        with opened_store(directory) as store:
            values = snapshot(store)
    except OSError as error:
        fail(f"{directory}: {shown_error(error)}")
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        _print_tables(values)


def _print_tables(values: dict[str, Any]) -> None:
    from rich.console import Console

    from clamproxy.cli.watch import budget_table, cooldowns_table, counters_table, databases_table

    console = Console()
    console.print(counters_table(values))
    console.print(databases_table(values))
    for table in (*cooldowns_table(values), *budget_table(values)):
        console.print(table)
