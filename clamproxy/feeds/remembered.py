"""Keys that are remembered for some time; the oldest make room, as clients choose them."""

from __future__ import annotations

import time
from collections.abc import Callable

MOST = 4096


class Remembered:
    """A set whose members leave by themselves."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty.

        Args:
            seconds: for which a key is remembered.
            clock: gives seconds.
        """
        self._seconds = seconds
        self._clock = clock
        self._until: dict[str, float] = {}

    def __contains__(self, key: str) -> bool:
        return self._until.get(key, 0.0) > self._clock()

    def add(self, key: str) -> None:
        """Remember a key from now on."""
        self.discard(key)
        self._until[key] = self._clock() + self._seconds
        if len(self._until) > MOST:
            del self._until[next(iter(self._until))]

    def discard(self, key: str) -> None:
        """Forget a key."""
        self._until.pop(key, None)
