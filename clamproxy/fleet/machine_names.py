"""The names of addresses, learned from reverse DNS: a table in the file of machines."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from clamproxy.storage.records_file import has_table

SCHEMA = """
CREATE TABLE IF NOT EXISTS names (
    address TEXT PRIMARY KEY, name TEXT, until REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""
LONGEST = 86400.0
"""Seconds for which an answer counts, at most."""


class Name(NamedTuple):
    """What reverse DNS has said about an address."""

    address: str
    name: str | None
    """None if it has no name, or if none could be learned."""
    until: float
    """When to ask again, in Unix seconds."""


class MachineNames:
    """The table within a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def known(self) -> dict[str, str]:
        """Every name by its address. A name counts until it is replaced: it may be asked for at any time."""
        if not has_table(self._connection, "names"):
            return {}
        return dict(self._connection.execute("SELECT address, name FROM names WHERE name IS NOT NULL"))

    def wanted(self, now: float, count: int) -> list[str]:
        """The machines' addresses to ask for, those of the latest requests first."""
        # One that is to count for longer was asked for while the clock was fast.
        query = (
            "SELECT address FROM machines LEFT JOIN names USING (address) "
            "WHERE until IS NULL OR until NOT BETWEEN ? AND ? "
            "GROUP BY address ORDER BY max(last_seen) DESC LIMIT ?"
        )
        return [address for (address,) in self._connection.execute(query, (now, now + LONGEST, count))]

    def put(self, names: Iterable[Name]) -> None:
        """Insert or replace names; those of addresses without a machine are dropped."""
        self._connection.executemany("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", names)
        self._connection.execute("DELETE FROM names WHERE address NOT IN (SELECT address FROM machines)")

    def clear(self) -> None:
        self._connection.execute("DELETE FROM names")
