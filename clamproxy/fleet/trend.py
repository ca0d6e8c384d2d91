"""The trend: which share of the machines was up to date in each hour of the last 30 days."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from clamproxy.storage.records_file import has_table

STEP = 3600
"""Seconds from one sample to the next."""
STEPS = 30 * 24

SCHEMA = """
CREATE TABLE IF NOT EXISTS shares (
    hour INTEGER PRIMARY KEY, total INTEGER NOT NULL, up_to_date INTEGER NOT NULL, overdue INTEGER NOT NULL
) STRICT;
"""


class Sample(NamedTuple):
    """The machines at one moment of an hour."""

    hour: int
    """Unix seconds divided by `STEP`."""
    total: int
    up_to_date: int
    overdue: int


class Shares:
    """The table of samples, one for each hour, within a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, sample: Sample) -> None:
        """Add a sample. The first one of an hour counts, whichever process it comes from.

        How many are kept doesn't depend on the clock: if that is fast for a moment, none of them is too old.
        """
        self._connection.execute("INSERT OR IGNORE INTO shares VALUES (?, ?, ?, ?)", sample)
        self._connection.execute(
            "DELETE FROM shares WHERE hour <= (SELECT hour FROM shares WHERE hour <= :hour "
            "ORDER BY hour DESC LIMIT 1 OFFSET :kept)",
            {"hour": sample.hour, "kept": STEPS},
        )

    def until(self, hour: int) -> list[Sample]:
        """The samples of the `STEPS` hours up to this one."""
        if not has_table(self._connection, "shares"):
            return []
        query = "SELECT hour, total, up_to_date, overdue FROM shares WHERE hour > ? AND hour <= ?"
        return list(map(Sample._make, self._connection.execute(query, (hour - STEPS, hour))))


def hour_of(now: float) -> int:
    return int(now // STEP)


def to_json(samples: Sequence[Sample], now: float) -> dict[str, Any]:
    """The trend for status.json: shares from 0 to 1, and null for hours without a sample."""
    hour = hour_of(now)
    by_hour = {one.hour: one for one in samples if one.total > 0}
    shown = [by_hour.get(number) for number in range(hour - STEPS + 1, hour + 1)]
    return {
        "step": STEP,
        "until": float((hour + 1) * STEP),
        "series": {
            "up_to_date": [None if one is None else round(one.up_to_date / one.total, 4) for one in shown],
            "overdue": [None if one is None else round(one.overdue / one.total, 4) for one in shown],
        },
    }
