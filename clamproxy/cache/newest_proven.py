"""The newest version of each database that was ever proven here, whatever the cache has forgotten since.

Objects are purged, dropped or lost. Without this, an old file would then pass for news, as it is still
correctly signed. There is a small file for each database, beside the objects and the index, so that it
survives the loss of either. An administrator who deletes the cache directory begins from nothing.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from clamproxy.files import Stamp, lock, open_lock, open_to_read, replacing, stamp_of
from clamproxy.objects import MAX_VERSION
from clamproxy.storage.condition import Condition
from clamproxy.storage.sealing import seal, unseal

_LOCK = ".lock"
_LONGEST = 64
"""Bytes that are read of a file; a version takes some 20."""


class NewestProven:
    """Safe to share between threads and processes.

    Args:
        directory: for these files only; made when it is needed.
        condition: is told about trouble with the disk. What can't be written counts until the process ends.
    """

    def __init__(self, directory: Path, condition: Condition) -> None:
        self._directory = directory
        self._prefix = f"{directory}/"
        self._condition = condition
        self._lock = threading.Lock()
        self._known: dict[str, int] = {}
        self._stamps: dict[str, Stamp] = {}
        """Of the files as they were read last."""
        self._unwritten: set[str] = set()
        """The databases whose file isn't right yet, because the disk was in trouble."""

    def of(self, database: str) -> int:
        """The newest version that was ever proven; 0 if there was none. Quick."""
        stamp = stamp_of(self._prefix + database)  # with each request: a Path would be slow
        # A lost file says nothing: what was proven stays proven.
        if stamp is not None and stamp != self._stamps.get(database):
            self._stamps[database] = stamp
            self._known[database] = _read(self._directory / database) or self._known.get(database, 0)
        return self._known.get(database, 0)

    def note(self, database: str, version: int) -> None:
        """Note that a version is proven. Blocks for milliseconds if it is the newest."""
        if version > self.of(database) or stamp_of(self._directory / database) is None:
            self._write(database, version, is_lower_meant=False)

    def mend(self) -> None:
        """Write what couldn't be written. Blocks for milliseconds if there is anything."""
        for database in list(self._unwritten):
            self._write(database, self._known[database], is_lower_meant=False)

    def set_back(self, database: str, version: int) -> None:
        """Let an older version count as the newest, because an administrator wants that. Blocks."""
        self._write(database, version, is_lower_meant=True)

    def _write(self, database: str, version: int, *, is_lower_meant: bool) -> None:
        path = self._directory / database
        with self._lock:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                with open_lock(self._directory / _LOCK) as locked:
                    with suppress(OSError):  # where files can't be locked
                        lock(locked)
                    if not is_lower_meant:
                        version = max(version, self.of(database))
                    self._known[database] = version
                    with replacing(path) as file:
                        file.write(f"{seal(database, str(version))}\n".encode())
                self._unwritten.discard(database)
            except OSError as error:
                self._known[database] = version
                self._unwritten.add(database)
                if not self._condition.failed(error):
                    raise


def _read(path: Path) -> int | None:
    """The version in a file; None if it can't be read or was damaged."""
    with suppress(OSError, ValueError), open_to_read(path) as file:
        text = unseal(path.name, file.read(_LONGEST).decode("ascii").strip())
        version = int(text or "")
        return version if 0 < version <= MAX_VERSION else None
    return None
