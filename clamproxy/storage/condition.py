"""The condition of a directory: what errors of the disk mean, and since when there is trouble.

This is the only place that decides it. What can't be written is kept in memory for the time being and
tried again. So trouble is a state with a beginning and an end, with one line in the log for each, however
many writes fail in between.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clamproxy.config.units import MIB

logger = logging.getLogger(__name__)

LEAST_SPACE = MIB
"""Free bytes below which a disk counts as full: SQLite needs some hundred KiB for its log alone."""


class Trouble(StrEnum):
    """Why a directory can't be written to."""

    FULL = "full"
    READ_ONLY = "read-only"
    BROKEN = "broken"
    """It can't be reached or read, because of a hardware error or because the directory is gone."""
    LOCKED = "locked"
    DAMAGED = "damaged"


class LockedError(Exception):
    """Another program has locked a file for longer than any of ours does."""


_BY_ERRNO = {
    errno.ENOSPC: Trouble.FULL,
    errno.EDQUOT: Trouble.FULL,
    errno.EROFS: Trouble.READ_ONLY,
    errno.EACCES: Trouble.READ_ONLY,
    errno.EPERM: Trouble.READ_ONLY,
    errno.EIO: Trouble.BROKEN,
    errno.ESTALE: Trouble.BROKEN,
    errno.ENODEV: Trouble.BROKEN,
    # Something else has the name of one of our directories.
    errno.ENOTDIR: Trouble.BROKEN,
    errno.EEXIST: Trouble.BROKEN,
    errno.ELOOP: Trouble.BROKEN,
}
_BY_CODE = {
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_READONLY: Trouble.READ_ONLY,
    sqlite3.SQLITE_PERM: Trouble.READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: Trouble.BROKEN,
    sqlite3.SQLITE_IOERR: Trouble.BROKEN,
    sqlite3.SQLITE_BUSY: Trouble.LOCKED,
    sqlite3.SQLITE_LOCKED: Trouble.LOCKED,
}
"""Any other SQLite error on one of our queries means that the file isn't what was written."""

_IN_WORDS = {
    Trouble.FULL: "is full",
    Trouble.READ_ONLY: "can't be written to",
    Trouble.BROKEN: "can't be used",
    Trouble.LOCKED: "is locked by another program",
    Trouble.DAMAGED: "is damaged",
}


def trouble_of(error: BaseException) -> Trouble | None:
    """What an error means for the disk; None if it has nothing to do with the disk."""
    for one in _with_causes(error):
        if isinstance(one, sqlite3.Error):
            # The low byte is the primary code: SQLITE_CORRUPT_INDEX is a case of SQLITE_CORRUPT.
            return _BY_CODE.get(getattr(one, "sqlite_errorcode", 0) & 0xFF, Trouble.DAMAGED)
        if isinstance(one, OSError) and one.errno in _BY_ERRNO:
            return _BY_ERRNO[one.errno]
    return Trouble.LOCKED if isinstance(error, LockedError) else None


def is_out_of_descriptors(error: BaseException) -> bool:
    """Whether something failed only because this process, or the system, has too many files open."""
    return any(
        isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE) for one in _with_causes(error)
    )


@dataclass(frozen=True, slots=True)
class LastingTrouble:
    trouble: Trouble
    reason: str
    """One line for logs and people."""
    since: float
    """When it began, in Unix seconds."""


class Condition:
    """Whether a directory can be written to, as far as known. Thread-safe.

    Args:
        directory: where things are written.
        what: its name in the log, such as "The cache directory".
        clock: gives Unix seconds.
    """

    def __init__(self, directory: Path, what: str, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._what = what
        self._clock = clock
        self._lock = threading.Lock()
        self._state: LastingTrouble | None = None

    @property
    def state(self) -> LastingTrouble | None:
        """The trouble, if there is any."""
        return self._state

    def failed(self, error: BaseException) -> bool:
        """Note that something could not be read or written.

        Returns:
            Whether the disk is in trouble, which has then been logged. If not, the error has another
            cause.
        """
        trouble = trouble_of(error)
        if trouble is None:
            return False
        with self._lock:
            if self._state is None or self._state.trouble is not trouble:
                reason = f"{self._directory} {_IN_WORDS[trouble]}: {_reason(error)}"
                self._state = LastingTrouble(trouble, reason, self._clock())
                logger.warning(
                    "%s: what is intact is served, but nothing can be stored: %s", self._what, reason
                )
        return True

    def recovered(self) -> None:
        """Note that everything has been written."""
        with self._lock:
            if self._state is not None:
                logger.warning("%s can be written to again: %s", self._what, self._directory)
            self._state = None


def look(directory: Path) -> None:
    """Check that a directory can be written to. Blocks; writes one byte to a file without a name.

    Raises:
        OSError: it can't, or the disk is almost full.
    """
    require_space(directory)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"\0")


def require_space(directory: Path) -> None:
    """Check that the disk isn't almost full. Quick.

    Raises:
        OSError: it is, or the directory is gone.
    """
    space = os.statvfs(directory)
    if space.f_bavail * space.f_frsize < LEAST_SPACE or (space.f_files and not space.f_favail):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def free_bytes(place: Path | int) -> int:
    """How many bytes can still be written in a directory, or where an open file is; 0 if unknown."""
    try:
        space = os.statvfs(place)
    except OSError:
        return 0
    return space.f_bavail * space.f_frsize


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _reason(error: BaseException) -> str:
    for one in _with_causes(error):
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
        if isinstance(one, sqlite3.Error):
            return f"SQLite: {one}"
    return type(error).__name__
