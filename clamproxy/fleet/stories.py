"""The stories of all machines, and which UUIDs are cloned: tables in the file of machines."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from clamproxy.fleet.clones import WINDOW, last_round
from clamproxy.fleet.story import (
    Addition,
    Story,
    StoryError,
    change_lines,
    parse_changes,
    parse_requests,
    request_lines,
)
from clamproxy.storage.records_file import has_table

SCHEMA = """
CREATE TABLE IF NOT EXISTS stories (
    uuid TEXT NOT NULL, address TEXT NOT NULL, since REAL NOT NULL, request_count INTEGER NOT NULL,
    requests TEXT NOT NULL, changes TEXT NOT NULL, PRIMARY KEY (uuid, address)
) STRICT;
CREATE TABLE IF NOT EXISTS errors (
    uuid TEXT NOT NULL, address TEXT NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL,
    what TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (uuid, address, kind)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clones (uuid TEXT PRIMARY KEY, at REAL NOT NULL) STRICT, WITHOUT ROWID;
"""
# Rows of this length would waste half of each page of a table WITHOUT ROWID. As they are, two fit on one.

LONGEST_REQUESTS = 450
"""Characters: some ten requests."""
LONGEST_CHANGES = 1350
"""Characters: some 35 changes; daily has one or two a day."""
MOST_ADDRESSES = 32
"""How many addresses of a machine are looked at, those of the latest requests first."""

_CONTINUE = f"""
INSERT INTO stories VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    request_count = request_count + excluded.request_count,
    requests = substr(excluded.requests || requests, 1, {LONGEST_REQUESTS}),
    changes = substr(excluded.changes || changes, 1, {LONGEST_CHANGES})
"""  # noqa: S608

type Key = tuple[str, str]
"""UUID and address."""


class Stories:
    """The tables within a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def of(self, uuid: str) -> list[Story]:
        """The stories of a machine, one for each of its addresses."""
        if not has_table(self._connection, "stories"):
            return []
        query = (
            "SELECT address, since, request_count, requests, changes FROM stories "
            "JOIN machines USING (uuid, address) WHERE uuid = ? ORDER BY last_seen DESC LIMIT ?"
        )
        rows = self._connection.execute(query, (uuid, MOST_ADDRESSES))
        return [self._story(uuid, *fields) for fields in rows.fetchall()]

    def add(self, additions: Mapping[Key, Addition], now: float) -> None:
        """Continue stories; those of new machines begin.

        Args:
            now: Unix seconds.
        """
        self._connection.executemany(_CONTINUE, (_fields(key, one, now) for key, one in additions.items()))
        self._connection.executemany(
            "INSERT INTO errors VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET "
            "at = excluded.at, what = excluded.what, count = count + 1",
            (
                (*key, error.kind, error.at, error.what)
                for key, one in additions.items()
                for error in one.errors
            ),
        )
        for uuid in {uuid for (uuid, _), one in additions.items() if one.has_fetched}:
            self._find_clones(uuid, now)

    def _find_clones(self, uuid: str, now: float) -> None:
        query = "SELECT count(*) FROM stories WHERE uuid = ?"
        if self._connection.execute(query, (uuid,)).fetchone()[0] > 1:
            at = last_round([story.changes for story in self.of(uuid)], now)
            if at is not None:
                self._connection.execute("INSERT OR REPLACE INTO clones VALUES (?, ?)", (uuid, at))

    def clones(self, now: float) -> set[str]:
        """The UUIDs that were found to be cloned of late."""
        if not has_table(self._connection, "clones"):
            return set()
        query = "SELECT uuid FROM clones WHERE at > ?"
        return {uuid for (uuid,) in self._connection.execute(query, (now - WINDOW,))}

    def drop(self, keys: Sequence[Key]) -> None:
        """Drop what is remembered of machines at an address."""
        for table in ("stories", "errors"):
            self._connection.executemany(
                f"DELETE FROM {table} WHERE uuid = ? AND address = ?",  # noqa: S608
                keys,
            )

    def forget(self, uuid: str) -> None:
        """Drop everything about a machine."""
        for table in ("stories", "errors", "clones"):
            self._connection.execute(f"DELETE FROM {table} WHERE uuid = ?", (uuid,))  # noqa: S608

    def drop_orphans(self) -> None:
        """Drop the stories of machines that an older version of clamproxy has dropped."""
        for table, address in (("stories", "t.address"), ("errors", "t.address"), ("clones", "m.address")):
            self._connection.execute(
                f"DELETE FROM {table} AS t WHERE NOT EXISTS "  # noqa: S608
                f"(SELECT 1 FROM machines AS m WHERE m.uuid = t.uuid AND m.address = {address})"
            )

    def _story(self, uuid: str, address: str, since: float, count: int, *texts: str) -> Story:
        query = "SELECT kind, at, what, count FROM errors WHERE uuid = ? AND address = ? ORDER BY at DESC"
        errors = map(StoryError._make, self._connection.execute(query, (uuid, address)))
        requests, changes = texts
        return Story(address, since, count, parse_requests(requests), parse_changes(changes), list(errors))


def _fields(key: Key, one: Addition, now: float) -> tuple[Any, ...]:
    """The values for `_CONTINUE`."""
    requests, changes = request_lines(one.requests), change_lines(one.changes)
    return *key, now, len(one.requests), requests[:LONGEST_REQUESTS], changes[:LONGEST_CHANGES]
