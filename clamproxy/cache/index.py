"""The index: rows in memory, which diskcache keeps over a restart and shares between processes.

Only the rows in memory decide what is served. The file brings the changes of other processes, and takes
those of this one as soon as it can. While the disk is full or read-only, or the file is damaged, gone or
locked, the index goes on working, and `mend` makes a new file when that is possible.

diskcache has traps of its own. It unpickles what it finds, so anyone who can write to its directory can
run code (CVE-2025-69872); therefore it is only ever used to write here. Its ``retry=True`` loops
endlessly if the disk is read-only. And its default policy evicts the object stored first, which here
would be main.cvd.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import DBNAME, MODE_BINARY, UNKNOWN

from clamproxy.cache import rows
from clamproxy.cache.rows import SHAPE_KEY, SITE_PREFIX, IndexRow
from clamproxy.cache.watches import NameOf, Watch, Watches, differences
from clamproxy.files import Identity, identity_of, make_database, set_aside
from clamproxy.storage.condition import Condition, LockedError, Trouble, look, trouble_of
from clamproxy.storage.sealing import seal

logger = logging.getLogger(__name__)

DAMAGED_SUFFIX = ".damaged"
"""Ends the name of a damaged file that was moved aside for inspection; there is at most one."""
LOOK_EVERY = 0.005
"""Seconds in which thousands of ready responses may be sent without checking for changes by other processes.
A command that changes something takes longer to end."""

_PATIENCE = 5.0
"""Seconds to wait for another process that writes; none takes that long."""
_UNREADABLE = (sqlite3.Error, ValueError)
_OF_DISKCACHE = (TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What diskcache raises when its own settings in a damaged file are wrong."""
_SETTINGS = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**50,
    "statistics": 0,
    "disk_min_file_size": 2**30,  # texts stay in their rows
    "sqlite_mmap_size": 0,  # else SIGBUS ends the process when the file is cut, or can't be read
}


@dataclass(frozen=True, slots=True)
class _Placed:
    """A file that is already in its place, as a value for diskcache."""

    filename: str


class SafeDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores texts and file names, never a pickle, and doesn't touch files."""

    def put(self, key: Any) -> tuple[Any, bool]:
        """Refuse keys that diskcache would pickle."""
        if type(key) is not str:
            raise TypeError(f"keys are text, not {type(key).__name__}")
        return key, True

    def store(self, value: Any, read: bool, key: Any = UNKNOWN) -> tuple[int, int, str | None, Any]:
        """The columns of a row."""
        if isinstance(value, _Placed):
            return 0, MODE_BINARY, value.filename, None
        if type(value) is not str:
            raise TypeError(f"values are files or text, not {type(value).__name__}")
        fields: tuple[int, int, str | None, Any] = super().store(value, False, key=key)
        return fields

    def get(self, key: Any, raw: bool) -> Any:
        """Refuse, because rows are read without diskcache."""
        raise TypeError("this index isn't read through diskcache")

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Refuse, because rows are read without diskcache."""
        raise TypeError("this index isn't read through diskcache")

    def remove(self, file_path: str) -> None:
        """Do nothing: an object's file is deleted after its row is gone for all processes."""


class Index:
    """All rows. Safe to share between threads and processes; writing blocks.

    Args:
        condition: is told about trouble with the disk.
    """

    def __init__(self, directory: Path, condition: Condition) -> None:
        """Read the file, if there is one. Blocks for some milliseconds, whatever is wrong with the file."""
        self.path = directory / DBNAME
        self._directory = directory
        self._condition = condition
        self._lock = threading.RLock()  # held for moments only
        self._writing = threading.RLock()
        self._rows: dict[str, IndexRow] = {}
        self._waiting: dict[str, int] = {}
        """Keys whose rows aren't in the file yet, with a number for each change."""
        self._numbers = itertools.count()
        self._reader: sqlite3.Connection | None = None
        self._cache: diskcache.Cache | None = None
        self._former: list[diskcache.Cache] = []
        """What isn't used any more. Until it is closed, it keeps SQLite from making the file anew."""
        self._identity: Identity | None = None
        self._version = 0
        self._damage: str | None = None
        self._generation = 0
        self._watches = Watches()
        self._looked_at = 0.0
        self._open(thorough=True)
        self.was_complete = bool(self._rows) and self._damage is None
        """Whether the file existed and was sound at the start; a file of length 0 has no rows."""

    # Reading

    def get(self, key: str) -> IndexRow | None:
        """A row, or None. Quick."""
        with self._lock:
            self._refresh()
            return self._rows.get(key)

    def get_all(self, keys: Iterable[str]) -> tuple[IndexRow | None, ...]:
        """Several rows as of one moment. As quick as one."""
        with self._lock:
            self._refresh()
            return tuple(map(self._rows.get, keys))

    def keys(self, prefix: str, suffix: str = "") -> list[str]:
        """The keys with this beginning and end. Takes some 100 µs."""
        with self._lock:
            self._refresh()
            return [key for key in self._rows if key.startswith(prefix) and key.endswith(suffix)]

    def generation(self) -> int:
        """Changes whenever a row may have changed; `LOOK_EVERY` late if another process did that. Quick."""
        if time.monotonic() - self._looked_at >= LOOK_EVERY:
            with self._lock:
                self._refresh()
        return self._generation

    def watch(self, name_of: NameOf) -> Watch:
        """Notes from now on which keys others change; for a caller that looks regularly.

        What came from other gateways counts as changed by others, whichever process wrote it here.
        """
        watch = Watch(name_of, self.generation)
        self._watches.add(watch)
        return watch

    @property
    def damage(self) -> str | None:
        """What is wrong with the file, until a new one has been made."""
        return self._damage

    # Writing

    def change(self, changes: Mapping[str, IndexRow | None]) -> None:
        """Change rows, all at once; None removes one. Blocks.

        What can't be written to the file now is written later.
        """
        self.change_later(changes)
        if self._condition.state is None:  # else it would wait each time for what doesn't come
            self.mend()

    def change_later(self, changes: Mapping[str, IndexRow | None]) -> None:
        """Like `change`, but only in memory; the file follows with the next change or `mend`. Quick."""
        with self._lock:
            self._refresh()
            for key, row in changes.items():
                self._waiting[key] = next(self._numbers)
                if row is None:
                    self._rows.pop(key, None)
                else:
                    self._rows[key] = row
            self._watches.note(key for key in changes if key.startswith(SITE_PREFIX))
            self._generation += 1

    def waits(self) -> bool:
        """Whether something hasn't been written to the file yet."""
        return bool(self._waiting)

    def mend(self) -> bool:
        """Write what waits, to a new file if the present one is damaged or gone. Blocks.

        Returns:
            Whether the file is sound and complete.
        """
        with self._writing:
            for _ in range(2):  # what is found to be damaged while it is written to is made anew
                try:
                    self._write_all()
                except Exception as error:
                    if not self._is_trouble(error):
                        raise
                    if not self._lose(error):
                        return False
                else:
                    return True
            return False

    def disconnect(self) -> None:
        """Close what diskcache has open for this thread."""
        if self._cache is not None:
            self._cache.close()

    def close(self) -> None:
        """Close everything that this thread may close."""
        self.disconnect()
        with self._lock:
            self._close_reader()

    # The file is read

    def _refresh(self) -> None:
        """Read what other processes have changed. Takes some microseconds if that is nothing."""
        self._looked_at = time.monotonic()
        try:
            if identity_of(self.path) != self._identity:
                self._open(thorough=False)
            elif self._reader is not None and rows.data_version(self._reader) != self._version:
                self._read(self._reader, thorough=False)
        except _UNREADABLE as error:
            self._lose(error)

    def _open(self, *, thorough: bool) -> None:
        """Open and read the present file."""
        self._close_reader()
        self._give_up_cache()
        self._identity, self._damage = identity_of(self.path), None
        if self._identity is None:
            self._keep_all()  # it was deleted, or there was none yet
            return
        try:
            self._reader = rows.connect(self.path)
            self._read(self._reader, thorough=thorough, is_new=True)
        except _UNREADABLE as error:
            self._lose(error)

    def _read(self, reader: sqlite3.Connection, *, thorough: bool, is_new: bool = False) -> None:
        self._version = rows.data_version(reader)
        contents = rows.read(reader, self._rows, thorough=thorough)
        before, self._rows = self._rows, contents.rows
        if is_new or contents.damage is not None:
            # What isn't in it was not removed by anybody.
            for key in before.keys() - contents.rows.keys():
                self._rows[key] = before[key]
                self._waiting.setdefault(key, next(self._numbers))
        for key in self._waiting:
            if key in before:
                self._rows[key] = before[key]
            else:
                self._rows.pop(key, None)
        if self._watches:
            self._watches.note(differences(before, self._rows))
        self._generation += 1
        if contents.damage is not None:
            self._note_damage(contents.damage)

    def _lose(self, error: BaseException) -> bool:
        """Handle a failure to read or write the file.

        Returns:
            Whether a new file must be made. If not, the disk is to blame, which is noted.
        """
        reason = self._trouble_with_disk(error)
        if reason is not None:
            self._condition.failed(reason)
            return False
        with self._lock:
            self._close_reader()
            self._give_up_cache()
            self._note_damage(str(error))
        return True

    def _trouble_with_disk(self, error: BaseException) -> BaseException | None:
        """The reason if the trouble is with the disk; None if it is with the file itself."""
        trouble = trouble_of(error)
        if isinstance(error, OSError) or trouble not in (Trouble.DAMAGED, Trouble.BROKEN, None):
            return error
        if trouble is Trouble.BROKEN:
            try:
                look(self._directory)
            except OSError as reason:  # says more than SQLite does
                return reason
        return None

    def _note_damage(self, damage: str) -> None:
        self._damage = damage
        self._keep_all()

    def _keep_all(self) -> None:
        for key in self._rows:
            self._waiting.setdefault(key, next(self._numbers))

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _give_up_cache(self) -> None:
        if self._cache is not None:
            self._former.append(self._cache)
            self._cache = None

    # The file is written

    def _write_all(self) -> None:
        with self._lock:
            self._refresh()
        while self._former:  # only this thread can close them, which may write: not under the lock
            self._former.pop().close()
        with self._lock:
            if self._identity is not None and self._reader is None and self._damage is None:
                self._open(thorough=False)  # it was locked, say
            waiting = dict(self._waiting)
            changes = {key: self._rows.get(key) for key in waiting}
            damage, identity = self._damage, self._identity
        if damage is not None:
            set_aside(self.path, identity, self.path.with_name(DBNAME + DAMAGED_SUFFIX))
        elif identity is not None and not waiting:
            return
        cache = self._cache if damage is None and self._cache is not None else self._make()
        with _transaction(cache):
            for key, row in changes.items():
                _write(cache, key, row)
        with self._lock:
            self._cache = cache
            for key, number in waiting.items():
                if self._waiting.get(key) == number:
                    del self._waiting[key]
            if identity_of(self.path) != self._identity or self._reader is None:
                self._identity, self._damage = identity_of(self.path), None
                self._close_reader()
                self._reader = rows.connect(self.path)
                self._version = 0
        if damage is not None:
            logger.warning("The index of the cache was damaged (%s), and has been rebuilt.", damage)

    def _make(self) -> diskcache.Cache:
        """The file as diskcache sees it; it is made if it doesn't exist."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_database(self.path)
        # Opening diskcache waits for a minute on a locked file: see first whether it can be written to.
        with closing(sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        cache = diskcache.Cache(str(self._directory), timeout=_PATIENCE, disk=SafeDisk, **_SETTINGS)
        with closing(rows.connect(self.path)) as connection:
            shape = rows.shape_of(connection)
        with self._lock:
            if (row := self._rows.get(SHAPE_KEY)) is None or row.text != shape:
                self._rows[SHAPE_KEY] = IndexRow(shape)
                with _transaction(cache):
                    _write(cache, SHAPE_KEY, IndexRow(shape))
        return cache

    def _is_trouble(self, error: Exception) -> bool:
        """Whether the disk or its content is to blame, because our own keys and values are always right."""
        return trouble_of(error) is not None or isinstance(error, _OF_DISKCACHE)


@contextmanager
def _transaction(cache: diskcache.Cache) -> Iterator[None]:
    try:
        with cache.transact():
            yield
    except diskcache.Timeout as error:
        # It says so whatever was wrong, and leaves SQLite's reason in the context only.
        raise LockedError("the index is locked by another program") from error.__context__


def _write(cache: diskcache.Cache, key: str, row: IndexRow | None) -> None:
    if row is None:
        cache.delete(key)
    elif row.filename is not None:
        cache.set(key, _Placed(row.filename), tag=seal(key, row.text))
    else:
        cache.set(key, seal(key, row.text))
