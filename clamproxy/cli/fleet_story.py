"""The story of one machine, as ``clamproxy fleet NAME`` prints it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clamproxy.cli.columns import padded
from clamproxy.cli.fleet_table import CLONED, shown_databases, shown_freshclam, shown_system
from clamproxy.fleet.biography import Biography
from clamproxy.readable import plain, shown_count, shown_size, shown_span, shown_time

_MOST_VERSIONS = 20
"""Versions that people want to see; JSON has all that are kept."""


def story_text(story: Biography, now: float) -> str:
    """Several paragraphs, without colours, for people and for tickets."""
    parts = [_about(story, now), _versions(story), _errors(story), _requests(story)]
    text = "\n".join(line.rstrip() for part in parts if part for line in (*part, ""))
    return text.rstrip("\n") + "\n"


def _about(story: Biography, now: float) -> list[str]:
    machine = story.latest
    first_seen = min(one.first_seen for one in story.machines)
    facts = [
        ("UUID", machine.uuid),
        ("name", machine.name or "-"),
        ("group", machine.group or "-"),
        ("address", machine.address),
        *(("also at", f"{one.address} (until {shown_time(one.last_seen)})") for one in story.machines[1:]),
        ("freshclam", " on ".join(filter(None, (shown_freshclam(machine), shown_system(machine))))),
        *(("", f"{version or '-'} since {shown_time(at)}") for version, at in story.programs[1:]),
        ("state", str(machine.state).replace("_", " ")),
        ("databases", shown_databases(machine, now)),
        ("first request", shown_time(first_seen)),
        ("last request", f"{shown_time(machine.last_seen)} ({shown_span(now - machine.last_seen)} ago)"),
        ("requests", f"{story.request_count:,} since {shown_time(story.since)}"),
    ]
    lines = [" ".join(map(plain, line)) for line in padded(facts)]
    return [*lines, *([CLONED] if machine.cloned else [])]


def _versions(story: Biography) -> list[str]:
    if not story.steps:
        return []
    rows = [("database", "version", "reached", "at", "came out", "after", "how")]
    for step in story.steps[:_MOST_VERSIONS]:
        took = "-" if step.took is None else shown_span(step.took)
        version = "none" if step.version is None else str(step.version)
        how = "fetched here" if step.fetched else "shown by a request"
        at, came_out = shown_time(step.at), shown_time(step.came_out)
        rows.append((step.database, version, at, step.address, came_out, took, how))
    more = len(story.steps) - _MOST_VERSIONS
    return ["Versions", *_table(rows), *([f"  and {more:,} earlier ones: --json"] if more > 0 else [])]


def _errors(story: Biography) -> list[str]:
    if not story.errors:
        return []
    rows = [(shown_time(one.at), shown_count(one.times, "time"), one.what) for one in story.errors]
    return ["Errors: the last one of each kind", *_table(rows)]


def _requests(story: Biography) -> list[str]:
    rows = [
        (shown_time(one.at, exact=True), address, str(one.status), shown_size(one.length), one.what)
        for address, one in story.requests
    ]
    return ["The last requests", *_table(rows)] if rows else []


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in padded(rows):
        yield "  " + "  ".join(map(plain, row))
