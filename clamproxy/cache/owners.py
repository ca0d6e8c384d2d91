"""Owners: the processes that have a cache directory open. Only a process that is alone may tidy it up."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from clamproxy.cache.layout import INDEX, OBJECTS, PARTIAL, QUARANTINE, is_cache
from clamproxy.files import open_lock, share_lock, sync_directory, try_lock
from clamproxy.storage.condition import Condition, look

_LOCK = "owners.lock"
_CLOSED = 0o700
"""Anybody with write access here can choose what the site's scanners load."""
_PARTS = (PARTIAL, QUARANTINE, INDEX, OBJECTS)
_FIRST_NAMES = {*_PARTS, _LOCK, "mitmproxy", "lost+found"}
"""What may be in a directory that is no cache yet. A start that the power cut short leaves some of it."""


def claim(cache: Path, place: Path) -> None:
    """Make the cache directory, or close it to other users, before anything else is put there.

    Later, that would look like another's file. What doesn't work is left to `Owners`, which says why.

    Args:
        cache: the cache directory.
        place: where something is about to be made; nothing happens if that isn't in the cache.

    Raises:
        OSError: others need the directory; see `_require_own`.
    """
    if not place.is_relative_to(cache):
        return
    try:
        _make(cache)
        is_open = _is_open(cache)
    except OSError:
        return
    if is_open:
        _require_own(cache)
        with suppress(OSError):
            cache.chmod(_CLOSED)


class Owners:
    """This process among the owners: they share a lock, which each process releases when it ends.

    Args:
        condition: told about trouble with the disk.
    """

    def __init__(self, directory: Path, condition: Condition) -> None:
        """Create what doesn't exist, as far as the disk allows it.

        Raises:
            OSError: the directory doesn't exist and can't be created, or it can't be read.
        """
        _make(directory)
        self._lock: IO[bytes] | None = None
        if is_open := _is_open(directory):
            _require_own(directory)
        try:
            if is_open:
                directory.chmod(_CLOSED)
            # A user can't write to what root creates for them.
            is_own = directory.stat().st_uid == os.geteuid()
            if is_own:
                _make_parts(directory)
            look(directory)
            lock = directory / _LOCK
            if is_own or lock.exists():
                self._lock = open_lock(lock)
        except OSError as error:
            list(directory.iterdir())  # if it can't be read either, nothing can be served
            is_foreign = isinstance(error, PermissionError) and directory.stat().st_uid != os.geteuid()
            is_to_be_moved = isinstance(error, NotADirectoryError)  # says so; later, it would be trouble
            if is_foreign or is_to_be_moved or not condition.failed(error):
                raise
            with suppress(OSError):
                self._lock = (directory / _LOCK).open("rb")

    def is_alone(self) -> bool:
        """Whether no other process has the cache open; if so, none can open it before `join`."""
        try:
            return self._lock is not None and try_lock(self._lock)
        except OSError:  # no locks on this file system
            return False

    def join(self) -> None:
        """Become one of the owners, and let others in. Blocks while another process tidies up.

        Raises:
            OSError: the file system has no locks.
        """
        if self._lock is not None:
            share_lock(self._lock)

    def leave(self) -> None:
        """Release the lock, so that another process can be alone."""
        if self._lock is not None:
            self._lock.close()


def _is_open(directory: Path) -> bool:
    return bool(stat.S_IMODE(directory.stat().st_mode) & 0o077)


def _require_own(directory: Path) -> None:
    """Refuse a directory that is no cache, but holds what others need: nobody else gets in any more.

    Raises:
        OSError: it is such a directory, for example ``/tmp``.
    """
    # In this order: another process may be making a cache of it, and begins with the first names.
    is_used = any(path.name not in _FIRST_NAMES and path.name[0] != "." for path in directory.iterdir())
    if is_used and not is_cache(directory):
        remedy = "name a directory for the cache alone, or close this one to other users (chmod 700)"
        raise OSError(errno.ENOTEMPTY, f"Not a cache, but other files are in it; {remedy}", str(directory))


def _make_parts(directory: Path) -> None:
    missing = [path for name in _PARTS if not (path := directory / name).is_dir()]
    for path in missing:
        _make(path)
    if missing:
        sync_directory(directory)  # by them, the next start sees that this is a cache


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=_CLOSED, parents=True, exist_ok=True)
    except FileExistsError as error:
        reason = "Not a directory, but a file; move it away"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(directory)) from error
