"""Negative caching: that something can't be had is remembered for a while, and not asked again."""

from __future__ import annotations

from collections.abc import Callable, Hashable

MOST = 4096
"""Keys that are remembered. Clients choose them; those that would be forgotten first make room."""


class NegativeCache[K: Hashable]:
    """A set whose members leave by themselves."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Nothing is remembered yet.

        Args:
            clock: gives seconds; `time.monotonic`, or a test's.
        """
        self._clock = clock
        self._until: dict[K, float] = {}

    def __contains__(self, key: K) -> bool:
        until = self._until.get(key)
        return until is not None and until > self._clock()

    def add(self, key: K, seconds: float) -> None:
        """Remember a key from now on, for so long."""
        self._until[key] = self._clock() + seconds
        if len(self._until) > MOST:
            del self._until[min(self._until, key=self._until.__getitem__)]

    def discard(self, key: K) -> None:
        """Forget a key."""
        self._until.pop(key, None)
