"""When clients were last given a feed's response that isn't stored, or not yet, by any process.

The files beside it have to keep step with it as well, see `pairs`.

    given/<key>   an empty file, whose time is that of the response

It is marked before a client gets anything, so whichever process it asks next knows.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from clamproxy.feeds.listing import Listing

MOST = 4096
"""How many responses are remembered; clients choose them. The oldest make room."""
_LOOK_AFTER = 256
"""Marks after which this process looks whether there are too many."""


class Given:
    """All marks. Thread-safe. Marking blocks for a moment; looking is quick.

    Args:
        directory: for the marks; created when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._listing = Listing(directory)
        self._marked = 0

    def names(self) -> frozenset[str] | None:
        """The keys of all marks; None if they have just changed. Quick."""
        return self._listing.names()

    def at(self, key: str) -> float:
        """When the response arrived, in Unix seconds; 0 if nothing is known."""
        try:
            return os.stat(f"{self._directory}/{key}").st_mtime  # noqa: PTH116 -- called all the time
        except OSError:
            return 0.0

    def mark(self, key: str, at: float) -> None:
        """Note that clients are given what arrived at this time, in Unix seconds."""
        with suppress(OSError):  # the disk can't be written to: nothing new is stored, either
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._directory / key
            path.touch(0o600)
            os.utime(path, (at, at))
            self._marked += 1
            if self._marked % _LOOK_AFTER == 0:
                self._make_room()

    def forget(self, key: str, at: float) -> None:
        """Remove a mark, unless a newer one has taken its place: the response is stored now, or of no use."""
        with suppress(OSError):
            if self.at(key) <= at:
                (self._directory / key).unlink(missing_ok=True)

    def _make_room(self) -> None:
        with os.scandir(self._directory) as found:
            by_age = sorted((entry.stat().st_mtime, entry.path) for entry in found)
        for _, path in by_age[:-MOST]:
            Path(path).unlink(missing_ok=True)
