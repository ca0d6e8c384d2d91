"""Owners: the processes that have a cache directory open. Who is alone may tidy up in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from clamproxy.files import share_lock, try_lock
from clamproxy.storage.condition import Condition, look

_LOCK = "owners.lock"


class Owners:
    """This process among them: they share a lock, which ends with each process."""

    def __init__(self, directory: Path, parts: Iterable[Path], condition: Condition) -> None:
        """Make what isn't there, as far as the disk takes it.

        Args:
            directory: the cache directory.
            parts: the directories in it.
            condition: told of trouble with the disk.

        Raises:
            OSError: there is no such directory, and it can't be made; or it can't be read.
        """
        _make(directory)
        self._lock: IO[bytes] | None = None
        try:
            # Whoever can write here can choose what the site's scanners load.
            directory.chmod(0o700)
            # What root makes for another user, that user can't write to.
            is_own = directory.stat().st_uid == os.geteuid()
            if is_own:
                for path in parts:
                    _make(path)
            look(directory)
            lock = directory / _LOCK
            if is_own or lock.exists():
                self._lock = lock.open("ab")
        except OSError as error:
            list(directory.iterdir())  # what can't be read either can't be served
            is_foreign = isinstance(error, PermissionError) and directory.stat().st_uid != os.geteuid()
            if is_foreign or not condition.failed(error):
                raise
            with suppress(OSError):
                self._lock = (directory / _LOCK).open("rb")

    def is_alone(self) -> bool:
        """Whether no other process has the cache open; none can then open it before `join`."""
        try:
            return self._lock is not None and try_lock(self._lock)
        except OSError:  # no locks on this file system
            return False

    def join(self) -> None:
        """Be one of them, and let others in. Blocks while another process tidies up.

        Raises:
            OSError: the file system has no locks.
        """
        if self._lock is not None:
            share_lock(self._lock)

    def leave(self) -> None:
        """Let another process be alone."""
        if self._lock is not None:
            self._lock.close()


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        reason = "Not a directory, but a file; move it away"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(directory)) from error
