"""The table of machines and releases, in a file in the state directory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clamproxy.dates import as_time
from clamproxy.fleet import machine_names, stories, trend
from clamproxy.fleet.agent import Agent
from clamproxy.fleet.machine_names import MachineNames
from clamproxy.fleet.observer import LONGEST_DISORDER, Failure, Holding, Knowledge
from clamproxy.fleet.stories import Stories
from clamproxy.fleet.trend import Shares
from clamproxy.storage.records_file import Damage, RecordsFile
from clamproxy.untrusted import parse_json

FILE_NAME = "fleet.sqlite"
"""Name of the file in the state directory."""
RELEASES_KEPT = 400
"""How many versions of each database are kept with their release times; daily has one or two a day."""

SHARES = 10
"""While the table is full, one address is sure of the tenth part of it."""

_FORM = 1
"""Version of the schema, stored in SQLite's user_version."""
_COLUMNS = "uuid, address, freshclam, os, arch, first_seen, last_seen, databases, error_at, error"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS machines (
    uuid TEXT NOT NULL, address TEXT NOT NULL, freshclam TEXT, os TEXT, arch TEXT,
    first_seen REAL NOT NULL, last_seen REAL NOT NULL,
    databases TEXT NOT NULL, error_at REAL, error TEXT,
    PRIMARY KEY (uuid, address)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS silence ON machines (last_seen);
CREATE TABLE IF NOT EXISTS releases (
    database TEXT NOT NULL, version INTEGER NOT NULL, first_seen REAL, built_at INTEGER,
    PRIMARY KEY (database, version)
) STRICT, WITHOUT ROWID;
"""
_ADDED = f"""
CREATE TABLE IF NOT EXISTS forgotten (uuid TEXT PRIMARY KEY, at REAL NOT NULL) STRICT, WITHOUT ROWID;
{stories.SCHEMA}{machine_names.SCHEMA}{trend.SCHEMA}"""
"""Added to the schema later, without a new version: older versions of clamproxy ignore it."""
_DROP_LONGEST_SILENT = """
DELETE FROM machines WHERE (uuid, address) IN (
    SELECT uuid, address FROM (
        SELECT uuid, address, last_seen,
            row_number() OVER (PARTITION BY address ORDER BY last_seen DESC) AS place
        FROM machines
    ) ORDER BY place <= ?, last_seen LIMIT ?
) RETURNING uuid, address
"""
"""Takes 20 ms for 20,000 machines. Its parameters: an address's share, and how many to drop."""
_FORGOTTEN_KEPT = 86400.0
"""Seconds for which forgotten machines are remembered; no visit waits that long to be written."""


@dataclass(frozen=True, slots=True)
class MachineRow:
    """A machine as it is stored."""

    agent: Agent
    address: str
    first_seen: float
    last_seen: float
    known: Knowledge


@dataclass(frozen=True, slots=True)
class Release:
    database: str
    version: int
    first_seen: float | None = None
    """When it was first seen advertised, in Unix seconds."""
    built_at: int | None = None
    """When it was built, in Unix seconds."""
    is_proven: bool = False
    """Whether a verified signature states the build time, not just the header of a response. Not stored."""


class Rows:
    """The rows of the table, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.stories = Stories(connection)
        self.names = MachineNames(connection)
        self.shares = Shares(connection)

    def get(self, uuid: str, address: str) -> MachineRow | None:
        """A machine at an address; None if it is new."""
        query = f"SELECT {_COLUMNS} FROM machines WHERE uuid = ? AND address = ?"  # noqa: S608
        fields = self._connection.execute(query, (uuid, address)).fetchone()
        return None if fields is None else _row(fields)

    def put(self, rows: Iterable[MachineRow]) -> None:
        """Insert or replace machines."""
        self._connection.executemany(
            f"INSERT OR REPLACE INTO machines ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            map(_fields, rows),
        )

    def all(self) -> Iterator[MachineRow]:
        return map(_row, self._connection.execute(f"SELECT {_COLUMNS} FROM machines"))  # noqa: S608

    def of(self, uuid: str) -> Iterator[MachineRow]:
        """A machine at all its addresses."""
        query = f"SELECT {_COLUMNS} FROM machines WHERE uuid = ?"  # noqa: S608
        return map(_row, self._connection.execute(query, (uuid,)))

    def forget(self, uuid: str, at: float) -> int:
        """Drop a machine at all its addresses, and its visits until now that are yet to be written.

        Args:
            at: the present time in Unix seconds.

        Returns:
            How many rows it had; if it had none, nothing is changed.
        """
        dropped = self._connection.execute("DELETE FROM machines WHERE uuid = ?", (uuid,)).rowcount
        if dropped:
            self.stories.forget(uuid)
            self._connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (uuid, at))
        return dropped

    def forgotten(self, now: float) -> dict[str, float]:
        """When machines were last forgotten, by UUID: their earlier visits don't count."""
        # One forgotten in the future, by a clock that was fast, would stay hidden until then.
        kept = (now - _FORGOTTEN_KEPT, now + LONGEST_DISORDER)
        self._connection.execute("DELETE FROM forgotten WHERE at NOT BETWEEN ? AND ?", kept)
        return dict(self._connection.execute("SELECT uuid, at FROM forgotten"))

    def limit(self, count: int, silent_since: float) -> None:
        """Drop machines that have been silent since `silent_since`, and the longest silent above `count`.

        One address that makes up UUIDs, or whose containers are short-lived, doesn't push others out: what it
        has beyond its share of the table goes first.
        """
        silent = "DELETE FROM machines WHERE last_seen < ? RETURNING uuid, address"
        dropped = self._connection.execute(silent, (silent_since,)).fetchall()
        (total,) = self._connection.execute("SELECT count(*) FROM machines").fetchone()
        if total > count:
            share = max(count // SHARES, 1)
            dropped += self._connection.execute(_DROP_LONGEST_SILENT, (share, total - count)).fetchall()
        self.stories.drop(dropped)

    def note(self, release: Release) -> None:
        """Add what is known about a release. It replaces what is stored only if it is proven."""
        self._connection.execute(
            "INSERT INTO releases (database, version, first_seen, built_at) VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET first_seen = coalesce(first_seen, excluded.first_seen), "
            "built_at = iif(?, excluded.built_at, coalesce(built_at, excluded.built_at))",
            (release.database, release.version, release.first_seen, release.built_at, release.is_proven),
        )
        self._connection.execute(
            "DELETE FROM releases WHERE database = :database AND version <= (SELECT version FROM releases "
            "WHERE database = :database ORDER BY version DESC LIMIT 1 OFFSET :kept)",
            {"database": release.database, "kept": RELEASES_KEPT},
        )

    def find_build(self, database: str, built_at: int) -> int | None:
        """The version that was built at a certain time, if there is exactly one."""
        query = "SELECT version FROM releases WHERE database = ? AND built_at = ? LIMIT 2"
        found = self._connection.execute(query, (database, built_at)).fetchall()
        return int(found[0][0]) if len(found) == 1 else None

    def check(self) -> None:
        """Check the whole file.

        Raises:
            sqlite3.DatabaseError: it is damaged.
        """
        (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Damage(verdict.splitlines()[0])

    def releases(self) -> Iterator[Release]:
        """Every known release, oldest version first."""
        query = "SELECT database, version, first_seen, built_at FROM releases ORDER BY version"
        return (Release(*fields) for fields in self._connection.execute(query))


class Table:
    """The table for the process that owns it. Blocks, so it is used in a thread."""

    def __init__(self, directory: Path) -> None:
        self._file = _file(directory)

    @contextmanager
    def writing(self) -> Iterator[Rows]:
        """A transaction that changes the table, as in `RecordsFile.writing`."""
        with self._file.writing() as connection:
            yield Rows(connection)


@contextmanager
def reading(directory: Path) -> Iterator[Rows | None]:
    """The table's present state, for any process that may read it; None if there is none. Blocks.

    Raises:
        sqlite3.Error: it can't be read.
    """
    with _file(directory).reading() as connection:
        yield None if connection is None else Rows(connection)


def _file(directory: Path) -> RecordsFile:
    return RecordsFile(directory / FILE_NAME, _SCHEMA, _FORM, "The table of machines", _ADDED)


def _fields(row: MachineRow) -> tuple[Any, ...]:
    """The values of `_COLUMNS` for a row."""
    agent, error = row.agent, row.known.last_error
    holdings = {name: [one.version, one.seen_at] for name, one in row.known.holdings.items()}
    machine = (agent.uuid, row.address, agent.freshclam, agent.os, agent.arch)
    last_error = (None, None) if error is None else (error.at, error.what)
    return (*machine, row.first_seen, row.last_seen, json.dumps(holdings), *last_error)


def _row(fields: tuple[Any, ...]) -> MachineRow:
    uuid, address, freshclam, system, arch, first_seen, last_seen, databases, error_at, error = fields
    known = _knowledge(databases, error_at, error)
    return MachineRow(Agent(uuid, freshclam, system, arch), address, first_seen, last_seen, known)


def _knowledge(databases: str, error_at: float, error: str | None) -> Knowledge:
    """What the columns say; no databases if theirs has been damaged on disk."""
    last_error = None if error is None else Failure(error_at, error)
    try:
        listed = parse_json(databases).items()
        held = {name: Holding(int(version), as_time(at)) for name, (version, at) in listed}
        return Knowledge(held, last_error)
    except (ValueError, TypeError, AttributeError):
        return Knowledge({}, last_error)
