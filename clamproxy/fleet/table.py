"""The table: what is known of machines and releases, in an SQLite file beside the cache's index.

SQLite in WAL mode: any number of processes read while one writes, and a kill -9 costs no more than what
had not been written yet. Each use opens the file anew: it may be moved or deleted at any time.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clamproxy.fleet.agent import Agent
from clamproxy.fleet.observer import Failure, Holding, Knowledge

logger = logging.getLogger(__name__)

FILE_NAME = "fleet.sqlite"
"""In the cache directory."""
RELEASES_KEPT = 400
"""Versions of each database of which it is remembered when they came; daily has one or two a day."""

_FORM = 1
"""The version of the schema, in SQLite's user_version."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PATIENCE = 5.0
"""Seconds to wait for another writer; none takes as long."""
_COLUMNS = "uuid, address, freshclam, os, arch, first_seen, last_seen, databases, error_at, error"
_SCHEMA = f"""
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
PRAGMA user_version = {_FORM};
"""
_ADDED = (
    "CREATE TABLE IF NOT EXISTS forgotten (uuid TEXT PRIMARY KEY, at REAL NOT NULL) STRICT, WITHOUT ROWID"
)
"""What the schema has got since; older versions of clamproxy pass over it."""
_FORGOTTEN_KEPT = 86400.0
"""Seconds for which it is remembered who was forgotten; no visit waits as long to be written."""


@dataclass(frozen=True, slots=True)
class Row:
    """A machine as the table has it."""

    agent: Agent
    address: str
    first_seen: float
    last_seen: float
    known: Knowledge


@dataclass(frozen=True, slots=True)
class Release:
    """A version of a database."""

    database: str
    version: int
    first_seen: float | None = None
    """When it was first seen advertised, in Unix seconds."""
    built_at: int | None = None
    """When it was built, in Unix seconds."""
    is_proven: bool = False
    """Whether its signature says so; else the header of an answer does. Not kept."""


class Rows:
    """The rows, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, uuid: str, address: str) -> Row | None:
        """A machine."""
        query = f"SELECT {_COLUMNS} FROM machines WHERE uuid = ? AND address = ?"  # noqa: S608
        fields = self._connection.execute(query, (uuid, address)).fetchone()
        return None if fields is None else _row(fields)

    def put(self, row: Row) -> None:
        """Insert or replace a machine."""
        agent, error = row.agent, row.known.last_error
        holdings = {name: [one.version, one.seen_at] for name, one in row.known.holdings.items()}
        fields = (agent.uuid, row.address, agent.freshclam, agent.os, agent.arch)
        times = (row.first_seen, row.last_seen)
        last_error = (None, None) if error is None else (error.at, error.what)
        self._connection.execute(
            f"INSERT OR REPLACE INTO machines ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (*fields, *times, json.dumps(holdings), *last_error),
        )

    def all(self) -> Iterator[Row]:
        """Every machine."""
        return map(_row, self._connection.execute(f"SELECT {_COLUMNS} FROM machines"))  # noqa: S608

    def forget(self, uuid: str, at: float) -> int:
        """Drop a machine at all its addresses, and what is still to be written of its visits until now.

        Args:
            uuid: the machine.
            at: now, in Unix seconds.

        Returns:
            How many rows it had; if there are none, nothing is changed.
        """
        dropped = self._connection.execute("DELETE FROM machines WHERE uuid = ?", (uuid,)).rowcount
        if dropped:
            self._connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (uuid, at))
        return dropped

    def forgotten(self, now: float) -> dict[str, float]:
        """When machines were last forgotten, by UUID: earlier visits of theirs don't count."""
        self._connection.execute("DELETE FROM forgotten WHERE at < ?", (now - _FORGOTTEN_KEPT,))
        return dict(self._connection.execute("SELECT uuid, at FROM forgotten"))

    def limit(self, count: int, silent_since: float) -> None:
        """Drop machines that are silent since some time, and the longest silent of too many."""
        self._connection.execute("DELETE FROM machines WHERE last_seen < ?", (silent_since,))
        (total,) = self._connection.execute("SELECT count(*) FROM machines").fetchone()
        if total > count:
            self._connection.execute(
                "DELETE FROM machines WHERE (uuid, address) IN "
                "(SELECT uuid, address FROM machines ORDER BY last_seen LIMIT ?)",
                (total - count,),
            )

    def note(self, release: Release) -> None:
        """Add what is known of a release; what was known already stays, but for what is proven."""
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
        """The version that was built at a time, if that is certain."""
        query = "SELECT version FROM releases WHERE database = ? AND built_at = ? LIMIT 2"
        found = self._connection.execute(query, (database, built_at)).fetchall()
        return int(found[0][0]) if len(found) == 1 else None

    def check(self) -> None:
        """Read the whole file.

        Raises:
            sqlite3.DatabaseError: it is damaged.
        """
        (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _Damage(verdict.splitlines()[0])

    def releases(self) -> Iterator[Release]:
        """Every release that is remembered, oldest version first."""
        query = "SELECT database, version, first_seen, built_at FROM releases ORDER BY version"
        return (Release(*fields) for fields in self._connection.execute(query))


class Table:
    """The file, for the process that keeps it. Blocks: for a thread."""

    def __init__(self, directory: Path) -> None:
        """Prepare; nothing is opened yet.

        Args:
            directory: the cache directory.
        """
        self.path = directory / FILE_NAME

    @contextmanager
    def writing(self) -> Iterator[Rows]:
        """A transaction that changes the table; it is made if it isn't there.

        Raises:
            DamagedTableError: it was damaged and has been moved aside; another attempt will succeed.
            sqlite3.Error: it can't be used now.
            OSError: it can't be made.
        """
        opened = self._make()
        try:
            with closing(_connect(self.path)) as connection:
                _prepare(connection)
                connection.execute("BEGIN IMMEDIATE")
                yield Rows(connection)
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._move_aside(opened, error)
            raise DamagedTableError from error

    def _make(self) -> int:
        """Make the file, for the owner alone; returns its inode."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)

    def _move_aside(self, inode: int, error: sqlite3.Error) -> None:
        """Losing what is known of machines is cheaper than not to start; they come by again."""
        if not self.path.exists() or self.path.stat().st_ino != inode:
            return  # another process has done so
        for earlier in self.path.parent.glob(f"{FILE_NAME}.damaged-*"):
            earlier.unlink(missing_ok=True)
        aside = self.path.with_name(f"{FILE_NAME}.damaged-{int(time.time())}")
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(FILE_NAME + suffix).unlink(missing_ok=True)
        logger.warning("The table of clients is damaged (%s): moved to %s, starting anew.", error, aside)


class DamagedTableError(Exception):
    """The table was damaged, and has been moved aside."""


class _Damage(sqlite3.DatabaseError):
    """Damage that SQLite itself doesn't call so."""


@contextmanager
def reading(directory: Path) -> Iterator[Rows | None]:
    """The table as it is now, for any process that may read it; None if there is none. Blocks.

    Raises:
        sqlite3.Error: it can't be read.
    """
    path = directory / FILE_NAME
    if not path.exists():
        yield None
        return
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    with closing(_connect(address, uri=True)) as connection:
        form = _form(connection)
        if form > _FORM:
            raise _Damage("made by another version of clamproxy")
        connection.execute("BEGIN")
        yield Rows(connection) if form else None


def _prepare(connection: sqlite3.Connection) -> None:
    form = _form(connection)
    if form > _FORM:
        raise _Damage("made by another version of clamproxy")
    if not form:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
    connection.execute(_ADDED)
    # What was committed last may be lost with the power, the file stays whole.
    connection.execute("PRAGMA synchronous = NORMAL")


def _form(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _is_damage(error: sqlite3.Error) -> bool:
    # The low byte is the primary code: SQLITE_CORRUPT_INDEX is a case of SQLITE_CORRUPT.
    return isinstance(error, _Damage) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def _row(fields: tuple[Any, ...]) -> Row:
    uuid, address, freshclam, system, arch, first_seen, last_seen, databases, error_at, error = fields
    last_error = None if error is None else Failure(error_at, error)
    known = Knowledge(_holdings(databases), last_error)
    return Row(Agent(uuid, freshclam, system, arch), address, first_seen, last_seen, known)


def _holdings(text: str) -> dict[str, Holding]:
    """What the column says; nothing if a bad disk has changed it."""
    try:
        return {name: Holding(int(version), float(at)) for name, (version, at) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _connect(address: str | Path, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=uri, timeout=_PATIENCE, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode(errors="replace")  # a bad disk again
    return connection
