"""One computation for all who want its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from clamproxy.threads import in_thread

SHORTEST = 1.0
"""Seconds for which a result counts at least."""
SHARE = 10
"""A result counts for so many times the seconds that it took: a tenth of the time is spent on it."""


class Shared[T]:
    """Computes in a thread, at most once a second, however many ask. Event loop only."""

    def __init__(
        self, name: str, prepare: Callable[[], Callable[[], T]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare; nothing is computed yet.

        Args:
            name: of the thread.
            prepare: called on the event loop; returns what the thread calls. It blocks.
            clock: seconds that only grow.
        """
        self._name = name
        self._prepare = prepare
        self._clock = clock
        self._future: asyncio.Future[T] | None = None
        self._counts_until = 0.0

    async def get(self) -> T:
        """The last result while it counts, else a new one. Who leaves doesn't stop it for others.

        Raises:
            Exception: what the computation raised; that counts like a result.
        """
        if self._future is None or (self._future.done() and self._clock() >= self._counts_until):
            self._future = self._begin()
        return await asyncio.shield(self._future)

    def _begin(self) -> asyncio.Future[T]:
        begun = self._clock()
        future = in_thread(self._name, self._prepare())

        def note(done: asyncio.Future[T]) -> None:
            now = self._clock()
            self._counts_until = max(begun + SHORTEST, now + SHARE * (now - begun))
            if not done.cancelled():
                done.exception()  # seen, though all who asked may have left

        future.add_done_callback(note)
        return future
