"""The statistics as tables: for ``clamproxy stats``, with and without ``--watch``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from clamproxy import readable
from clamproxy.readable import shown_share, shown_size, shown_time
from clamproxy.releases.limits_in_force import Limit
from clamproxy.statistics import COUNTERS, FEED_COUNTERS, FILE_COUNTERS


def counters_table(
    values: Mapping[str, Any], growth: Mapping[str, float] | None = None, *, has_feeds: bool = False
) -> Table:
    """The counters, and the sizes of what is cached.

    Args:
        values: the result of `clamproxy.statistics.snapshot`.
        growth: of each counter, per second; None to leave it out.
        has_feeds: whether to show the counters of other feeds even if nobody has asked for one yet.
    """
    table = Table(title="Totals since the first start", show_header=False)
    has_feeds = has_feeds or any(values[name] for name in FEED_COUNTERS)
    has_files = any(values[name] for name in FILE_COUNTERS)
    others = (*(FEED_COUNTERS if has_feeds else ()), *(FILE_COUNTERS if has_files else ()))
    for name in (*COUNTERS, *others):
        row = [name.replace("_", " "), _shown(name, values[name])]
        if growth is not None:
            row.append(f"{_shown(name, growth[name])}/s" if growth.get(name) else "")
        table.add_row(*row)
    table.add_row("hit ratio", shown_share(values["hit_ratio"]))
    table.add_row("byte hit ratio", shown_share(values["byte_hit_ratio"]))
    table.add_row("objects", f"{values['objects']:,}")
    table.add_row("cache", shown_size(values["cache_bytes"]))
    table.add_row("quarantined", f"{values['quarantined']:,}")
    return table


def databases_table(values: Mapping[str, Any]) -> Table:
    """The versions of each database; databases without a cached file are named below the table."""
    columns = ("advertised", "cached", "reached")
    table = Table("database", *columns, title="Databases")
    missing = []
    for name, versions in values["databases"].items():
        if versions["cached"] or versions["reached"]:
            table.add_row(plain(name), *(plain(versions[column] or "-") for column in columns))
        else:
            missing.append(name)
    if missing:
        table.caption = plain(f"advertised, nothing cached: {', '.join(missing)}")
    return table


def cooldowns_table(values: Mapping[str, Any]) -> Iterator[Table]:
    """What the origin isn't asked for at the moment; no table if that is nothing."""
    if values["cooldowns"]:
        table = Table("not requested", "until", "why", title="Cool-downs")
        for name, cooldown in values["cooldowns"].items():
            table.add_row(plain(name), shown_time(cooldown["until"], exact=True), plain(cooldown["reason"]))
        yield table


def fleet_store_table(values: Mapping[str, Any]) -> Iterator[Table]:
    """The object store: whether it can be used, and the calls to it; no table if there is none."""
    store = values["fleet_store"]
    if store["url"] is not None:
        table = Table("calls", "", "failed", title=plain(f"Object store {store['url']}"))
        for kind, count in store["requests"].items():
            if count:
                table.add_row(plain(kind), f"{count:,}", f"{store['failures'][kind]:,}")
        if store["failure"] is not None:
            since = shown_time(store["since"], exact=True)
            table.caption = plain(f"can't be used since {since}: {store['failure']}")
        yield table


def limits_table(limits: Sequence[Limit]) -> Iterator[Table]:
    """What machines aren't given at the moment; no table if nothing is held back."""
    if limits:
        table = Table("database", "machines get", "since", "until", "by", "why", title="Held back")
        for limit in limits:
            hold = limit.hold
            since, by, why = (hold.since, hold.by, hold.why) if hold else (None, "releases.delay", "")
            cells = (limit.version, shown_time(since), shown_time(limit.until), by, why or "-")
            table.add_row(plain(limit.database), *map(plain, cells))
        yield table


def budget_table(values: Mapping[str, Any]) -> Iterator[Table]:
    """What the origin was asked for; no table if that is nothing."""
    if values["budget"]:
        table = Table("file", "requests", title="Requested from the origin within the last hour")
        for path, spent in values["budget"].items():
            table.add_row(plain(path), str(spent["used"]))
        yield table


def plain(value: object) -> Text:
    """The same as a text for rich, without markup."""
    return Text(readable.plain(str(value)))


def _shown(counter: str, value: float) -> str:
    if "bytes" in counter:
        return shown_size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
