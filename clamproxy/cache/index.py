"""The index: diskcache without its traps.

diskcache unpickles what it finds in its directory, so whoever can write there can run code
(CVE-2025-69872, for JSONDisk too); it copies files into place without fsync; and its default
policy evicts the object stored first, which here would be main.cvd.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import diskcache
from diskcache.core import MODE_BINARY, MODE_PICKLE, UNKNOWN

logger = logging.getLogger(__name__)

REFUSED_KEY = "refused"
"""What iteration yields in place of a pickled key; no real key has this form."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_ATTEMPTS = 10
_SETTINGS = {"eviction_policy": "none", "cull_limit": 0, "size_limit": 2**50, "statistics": 0}


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A complete, verified and synced file on the index's file system, to be linked into it.

    The caller removes its own name of the file once the row is committed, so that a crash in
    between loses nothing.
    """

    path: Path
    size: int


class RefusedValueError(ValueError):
    """The index holds something that clamproxy never writes."""


class SafeDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores files by linking them into place, and never unpickles anything."""

    def put(self, key: Any) -> tuple[Any, bool]:
        """Refuse the keys that diskcache would pickle."""
        if type(key) is not str:
            raise TypeError(f"keys are text, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:
        """Read a key back; a planted pickle becomes `REFUSED_KEY`, so that iteration goes on."""
        return key if raw and type(key) is str else REFUSED_KEY

    def store(self, value: Any, read: bool, key: Any = UNKNOWN) -> tuple[int, int, str | None, Any]:
        """Link a `FinishedFile` into place, or store text and numbers in the row."""
        if isinstance(value, FinishedFile):
            return value.size, MODE_BINARY, self._link_into_place(value.path), None
        if type(value) not in (str, int, float):
            raise TypeError(f"values are files, text or numbers, not {type(value).__name__}")
        fields: tuple[int, int, str | None, Any] = super().store(value, False, key=key)
        return fields

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Read a value back.

        Raises:
            RefusedValueError: the row holds a pickle or leads out of the directory.
        """
        if mode == MODE_PICKLE:
            raise RefusedValueError("a pickled value")
        if filename is not None and not _stays_inside(filename):
            raise RefusedValueError(f"a file outside the directory: {filename}")
        return super().fetch(mode, filename, value, read)

    def remove(self, file_path: str) -> None:
        """Delete a value's file, unless the row leads out of the directory."""
        if _stays_inside(file_path):
            super().remove(file_path)

    def _link_into_place(self, path: Path) -> str:
        for attempt in range(_ATTEMPTS):
            filename: str
            filename, full_path = self.filename()
            directory = Path(full_path).parent
            try:
                directory.mkdir(parents=True, exist_ok=True)
                os.link(path, full_path)
            except FileNotFoundError:
                # Another process may have removed the directory, empty until now.
                if attempt == _ATTEMPTS - 1 or not path.exists():
                    raise
            else:
                sync_directory(directory)
                return filename
        raise AssertionError("unreachable")


def open_index(directory: Path, *, may_replace: bool) -> diskcache.Cache:
    """Open or create the index. Blocks for some milliseconds.

    Args:
        directory: holds the database and the published files.
        may_replace: whether leftovers of a crash are removed, and a damaged database is moved
            aside. Only for who has the directory alone: losing a cache is cheaper than not
            starting, unless it is in use.

    Raises:
        OSError: it can't be opened.
    """
    try:
        index = _open(directory)
        if may_replace:
            _remove_orphans(index)
        return index
    except sqlite3.DatabaseError as error:
        # The low byte is the primary code: SQLITE_CORRUPT_INDEX is a case of SQLITE_CORRUPT.
        if not may_replace or error.sqlite_errorcode & 0xFF not in _DAMAGED:
            raise OSError(f"{directory}: {error}") from error
        for earlier in directory.parent.glob(f"{directory.name}.damaged-*"):
            shutil.rmtree(earlier, ignore_errors=True)
        aside = directory.with_name(f"{directory.name}.damaged-{int(time.time())}")
        logger.warning("The index is damaged (%s): moved to %s, starting with an empty one.", error, aside)
        directory.rename(aside)
        return _open(directory)


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_orphans(index: diskcache.Cache) -> None:
    """Drop files without a row and rows without a file, as a kill -9 can leave them.

    Must not run while another process publishes: its file is there before its row.
    """
    with contextlib.suppress(diskcache.Timeout):
        for warning in index.check(fix=True):
            logger.debug("Index: %s", warning.message)


def _open(directory: Path) -> diskcache.Cache:
    # Writers of another process may hold the lock; nobody holds it for seconds.
    return diskcache.Cache(str(directory), timeout=5, disk=SafeDisk, **_SETTINGS)


def _stays_inside(filename: str) -> bool:
    path = PurePath(filename)
    return not path.is_absolute() and ".." not in path.parts


def open_value(index: diskcache.Cache, key: str) -> tuple[IO[bytes], str] | None:
    """The open file and the tag of a published value, or None if there is none (any more)."""
    file, tag = _get(index, key, read=True, tag=True) or (None, None)
    if file is None or not hasattr(file, "fileno") or not isinstance(tag, str):
        return None
    return file, tag


def get_text(index: diskcache.Cache, key: str) -> str | None:
    """A text value, or None if there is none or it is of another type."""
    value = _get(index, key)
    return value if isinstance(value, str) else None


def get_number(index: diskcache.Cache, key: str) -> int | None:
    """A whole number, or None if there is none or it is of another type."""
    value = _get(index, key)
    return value if type(value) is int else None


def _get(index: diskcache.Cache, key: str, **how: bool) -> Any:
    """What diskcache gives, or None for something that clamproxy never writes, which is dropped."""
    try:
        return index.get(key, **how)
    except RefusedValueError as error:
        logger.warning("The index holds %s under %r: dropped.", error, key)
        index.delete(key, retry=True)
        return None
