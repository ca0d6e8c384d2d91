"""Bodies of feeds' responses on their way to the disk."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from clamproxy.files import open_unfinished
from clamproxy.storage.growing_file import GrowingFile


class FeedsFullError(Exception):
    """A response is larger than all feeds together may be."""


class Room(Protocol):
    """Counts the bytes that are arriving."""

    def make_room(self, length: int) -> None:
        """Count bytes.

        Raises:
            FeedsFullError: there is more than feeds may use.
        """

    def give_back(self, length: int) -> None:
        """Count bytes as arriving no longer."""


class Spool(GrowingFile):
    """A body on its way to the disk. One thread writes, others read."""

    def __init__(self, room: Room, path: Path) -> None:
        super().__init__(path, open_unfinished(path))
        self._room = room
        self._reserved = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The digest of what has arrived, in hexadecimal."""
        return self._digest.hexdigest()

    def append(self, data: bytes) -> None:
        """Add what has arrived.

        Raises:
            FeedsFullError: there is more than feeds may use.
            OSError: for example, the disk is full.
        """
        self._room.make_room(len(data))
        self._reserved += len(data)
        self._digest.update(data)
        super().append(data)

    def give_back(self) -> None:
        """Stop counting its bytes as arriving."""
        reserved, self._reserved = self._reserved, 0
        self._room.give_back(reserved)

    def close(self) -> None:
        """Release its room; delete the file unless published. Readers continue. May be called again."""
        with suppress(OSError):  # the disk can't be written to any more; the next start sweeps up
            self.path.unlink(missing_ok=True)
        self.give_back()
        super().close()
