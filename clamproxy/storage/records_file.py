"""A file of records: SQLite in WAL mode, opened anew for each use.

Any number of processes can read while one writes, and a kill -9 loses only what had not been written yet.
The file may be moved or deleted at any time.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clamproxy.files import Identity, identity_of, make_database, remove, replacing, set_aside

logger = logging.getLogger(__name__)

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PATIENCE = 5.0
"""Seconds to wait for another writer; none takes that long."""
_TO_READ = ("mode=ro", "mode=rw", "immutable=1")
"""Only a connection that may write can undo what a power failure interrupted while the file was made. On a
read-only disk, SQLite reads a file in WAL mode only if it is told that nobody writes to it."""


class DamagedFileError(Exception):
    """The file was damaged, and has been moved aside."""


class Damage(sqlite3.DatabaseError):
    """Damage that SQLite itself doesn't report as such."""


@dataclass(frozen=True, slots=True)
class RecordsFile:
    """A file with tables of one form. Blocks: use it in a thread."""

    path: Path
    schema: str
    """Statements that create the tables."""
    form: int
    """The version of the schema, in SQLite's user_version."""
    what: str
    """Its name in the log, such as "The table of machines"."""
    added: str = ""
    """Statements that create later additions to the schema; older versions of clamproxy ignore them."""

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that changes the file, which is created if it doesn't exist.

        Raises:
            DamagedFileError: it was damaged and has been moved aside; another attempt will succeed.
            sqlite3.Error: it can't be used now.
            OSError: it can't be created.
        """
        opened = self._make()
        try:
            with closing(_connect(self.path)) as connection:
                self._prepare(connection)
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not _is_damage(error):
                raise
            self._move_aside(opened, error)
            raise DamagedFileError from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """The file as it is now, for any process that may read it; None if there is none.

        Raises:
            sqlite3.Error: it can't be read.
        """
        if not self.path.exists():
            yield None
            return
        try:
            with closing(self._open_to_read()) as connection:
                form = _form(connection)
                if form > self.form:
                    raise Damage("written by another version of clamproxy")
                connection.execute("BEGIN")
                yield connection if form else None
        except UnicodeDecodeError as error:
            raise Damage(str(error)) from error

    def _open_to_read(self) -> sqlite3.Connection:
        failure: Exception | None = None
        for mode in _TO_READ:
            connection = _connect(f"{self.path.absolute().as_uri()}?{mode}", uri=True)
            try:
                _form(connection)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                connection.close()
                failure = failure or error
            else:
                return connection
        raise failure or sqlite3.OperationalError("can't be opened")

    def _make(self) -> Identity | None:
        """Create the file, for its owner only."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_database(self.path)
        return identity_of(self.path)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        form = _form(connection)
        if form > self.form:
            raise Damage("written by another version of clamproxy")
        if not form:
            _begin_wal(connection)
            connection.executescript(f"{self.schema}\nPRAGMA user_version = {self.form};")
        connection.executescript(self.added)
        # A power failure may lose the last commits, but the file stays intact.
        connection.execute("PRAGMA synchronous = NORMAL")

    def _move_aside(self, damaged: Identity | None, error: Exception) -> None:
        """Move the damaged file away: losing the records is cheaper than not starting."""
        earlier = list(self.path.parent.glob(f"{self.path.name}.damaged-*"))
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        if set_aside(self.path, damaged, aside):
            for path in earlier:
                if path != aside:
                    remove(path)
            logger.warning(
                "%s was damaged (%s); it has been moved to %s, and a new one started.",
                self.what,
                error,
                aside,
            )


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Whether the file has a table; one that was added later may be missing until a process writes."""
    query = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
    return connection.execute(query, (name,)).fetchone() is not None


def copy_file(source: Path, target: Path) -> None:
    """Copy a file of records including its log, completely or not at all. Blocks.

    Raises:
        sqlite3.Error, OSError: it can't be read or written.
    """
    with closing(_connect(source)) as reader, closing(_connect(":memory:")) as copy:
        reader.backup(copy)  # unlike `serialize`, it notices what can't be read
        with replacing(target) as file:
            file.write(copy.serialize())


def _begin_wal(connection: sqlite3.Connection) -> None:
    """Keep changes in a -wal. SQLite doesn't wait for another process that does the same."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _form(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _is_damage(error: Exception) -> bool:
    if isinstance(error, Damage | UnicodeDecodeError):  # SQLite's own texts may be damaged as well
        return True
    # The low byte is the primary code: SQLITE_CORRUPT_INDEX is a case of SQLITE_CORRUPT.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def _connect(address: str | Path, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=uri, timeout=_PATIENCE, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode(errors="replace")  # the disk may be bad
    return connection
