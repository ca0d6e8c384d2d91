"""Which names a directory has that several processes change. A request for a feed looks for some 20."""

from __future__ import annotations

import os
import time
from pathlib import Path

_SETTLED = 1_000_000_000
"""Nanoseconds after which a change shows in the directory's time: file systems count in steps."""


class Listing:
    """Any thread. Reads the directory only after it has changed.

    Args:
        directory: need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._known: tuple[int, frozenset[str]] = (0, frozenset())
        """When the directory had last changed before its names were read, and the names."""

    def names(self) -> frozenset[str] | None:
        """The names; None if the directory has just changed, or can't be read: look for each of them."""
        try:
            changed_at = os.stat(self._directory).st_mtime_ns  # noqa: PTH116 -- twice a request
            known_at, names = self._known
            if changed_at != known_at:
                if not time.time_ns() - changed_at > _SETTLED:
                    return None
                names = frozenset(os.listdir(self._directory))  # noqa: PTH208 -- there may be thousands
                self._known = changed_at, names
        except FileNotFoundError:
            return frozenset()
        except OSError:
            return None
        return names
