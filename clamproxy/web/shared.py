"""One computation for all callers who want its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from clamproxy.threads import in_thread

SHORTEST = 1.0
"""Seconds for which a result is reused at least."""
SHARE = 10
"""A result is reused for this many times as long as it took: at most a tenth of the time is spent on it."""


class Shared[T]:
    """Computes in a thread, at most once a second for any number of callers. Event loop only.

    Args:
        name: the thread's name.
        prepare: called on the event loop; returns the blocking function that the thread calls.
        clock: monotonic seconds.
    """

    def __init__(
        self, name: str, prepare: Callable[[], Callable[[], T]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._prepare = prepare
        self._clock = clock
        self._future: asyncio.Future[T] | None = None
        self._counts_until = 0.0

    async def get(self) -> T:
        """The last result while it is recent enough, else a new one.

        A caller that is cancelled doesn't stop the computation for the others.

        Raises:
            Exception: what the computation raised; it is reused like a result.
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
                done.exception()  # retrieved: asyncio would complain if all callers had left

        future.add_done_callback(note)
        return future
