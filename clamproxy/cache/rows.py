"""Rows of the index as stored in diskcache's file, read without diskcache."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clamproxy.notes import SITE
from clamproxy.objects import ObjectId
from clamproxy.storage.sealing import checksum, unseal

OBJECT_PREFIX = "object/"
"""Begins the keys of objects; what follows is the object's name."""
NOTE_PREFIX = "note/"
"""Begins the keys of notes."""
SITE_PREFIX = NOTE_PREFIX + SITE
"""Begins the keys of notes that came from other gateways."""
SHAPE_KEY = "meta/shape"
"""The key of the result of `shape_of` when the file was made."""

_PATIENCE = 5.0
"""Seconds to wait for a lock on the file; our own processes never hold one for long."""
_OPEN_MODES = ("mode=rw", "mode=ro", "immutable=1")
"""On a file that it can't write to, SQLite only reads WAL mode if it is told that nobody else writes."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What the index says about one key."""

    text: str
    filename: str | None = None
    """For an object: its file, below the index's directory."""
    stored: str = field(default="", compare=False)
    """The sealed text, as it was read; "" if it wasn't read."""


def object_key(object_id: ObjectId) -> str:
    """The key of an object in the index."""
    return OBJECT_PREFIX + object_id.file_name


@dataclass(slots=True)
class IndexContents:
    """What could be read of the file."""

    rows: dict[str, IndexRow] = field(default_factory=dict)
    damage: str | None = None
    """What is wrong with the file, in one line; None if nothing is."""


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for reading, as far as possible. Any thread may use the connection, one at a time.

    Raises:
        sqlite3.Error: it can't be read.
        ValueError: it can't be read.
    """
    failure: Exception | None = None
    for mode in _OPEN_MODES:
        address = f"{path.absolute().as_uri()}?{mode}"
        connection = sqlite3.connect(
            address, uri=True, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = lambda raw: raw.decode(errors="replace")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except (sqlite3.Error, ValueError) as error:  # a text of SQLite's own may be damaged, too
            connection.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise
            failure = failure or error
        else:
            return connection
    raise failure or sqlite3.OperationalError("can't be opened")


def read(connection: sqlite3.Connection, known: Mapping[str, IndexRow], *, thorough: bool) -> IndexContents:
    """All rows that can be read and are as they were written.

    Args:
        known: rows that were read before; unchanged ones aren't examined again.
        thorough: whether to check the whole file as well, which takes some milliseconds.
    """
    contents = IndexContents()
    try:
        if thorough:
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            contents.damage = None if verdict == "ok" else str(verdict).splitlines()[0]
        if not _has_table(connection):
            return contents  # another process is making it
        query = "SELECT key, tag, filename, value FROM Cache WHERE raw = 1"
        for key, tag, filename, value in connection.execute(query):
            stored, before = tag if _is_object(key) else value, known.get(key)
            if before is not None and before.stored == stored and before.filename == filename:
                contents.rows[key] = before
            else:
                _take(contents, key, stored, filename)
        shape = contents.rows.get(SHAPE_KEY)
        if thorough and shape is not None and shape.text != shape_of(connection):
            contents.damage = contents.damage or "its tables have changed"
    except (sqlite3.Error, OverflowError, ValueError) as error:
        contents.damage = contents.damage or str(error)
    return contents


def shape_of(connection: sqlite3.Connection) -> str:
    """A checksum of everything besides the rows that diskcache depends on: tables, triggers, settings."""
    schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2")
    text = repr(schema.fetchall())
    # The others are diskcache's own counts.
    settings = connection.execute(
        "SELECT key, value FROM Settings WHERE key NOT IN ('count', 'size', 'hits', 'misses') ORDER BY 1"
    )
    return checksum(text, repr(settings.fetchall()))


def data_version(connection: sqlite3.Connection) -> int:
    """A number that changes whenever another connection has changed the file."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _is_object(key: object) -> bool:
    return isinstance(key, str) and key.startswith(OBJECT_PREFIX)


def _has_table(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'Cache'"
    return connection.execute(query).fetchone() is not None


def _take(contents: IndexContents, key: object, text: object, filename: object) -> None:
    if type(text) is int:  # a counter of an earlier version
        text = str(text)
    if isinstance(key, str) and isinstance(text, str) and isinstance(filename, str | None):
        plain = unseal(key, text)
        if plain is not None:
            contents.rows[key] = IndexRow(plain, filename, text)
            return
    contents.damage = contents.damage or "a row has changed"
