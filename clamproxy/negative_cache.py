"""Negative caching: remembers for a while what isn't available, so that nobody asks for it again."""

from __future__ import annotations

from collections.abc import Callable, Hashable

MOST = 4096
"""Keys that are remembered. Clients choose them; those closest to expiry make room for new ones."""


class NegativeCache[K: Hashable]:
    """A set whose members expire.

    Args:
        clock: gives seconds; `time.monotonic`, or a test's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[K, float] = {}

    def __contains__(self, key: K) -> bool:
        until = self._until.get(key)
        return until is not None and until > self._clock()

    def add(self, key: K, seconds: float) -> None:
        """Remember a key for `seconds` from now on."""
        self._until[key] = self._clock() + seconds
        if len(self._until) > MOST:
            del self._until[min(self._until, key=self._until.__getitem__)]

    def discard(self, key: K) -> None:
        self._until.pop(key, None)
