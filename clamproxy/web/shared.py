"""One computation for all callers who want its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from clamproxy.single_flight import SingleFlight
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
        self._computation = SingleFlight[str, asyncio.Future[T]]("compute")
        self._last: asyncio.Future[T] | None = None
        self._counts_until = 0.0

    async def get(self) -> T:
        """The last result while it is recent enough, else a new one.

        A caller that is cancelled doesn't stop the computation for the others.

        Raises:
            Exception: what the computation raised; it is reused like a result.
        """
        last, now = self._last, self._clock()
        if last is None or now >= self._counts_until:
            last = await self._computation.run(self._name, partial(self._compute, now))
        return last.result()

    async def _compute(self, begun: float) -> asyncio.Future[T]:
        """A future that is done, as an exception counts like a result."""
        last = in_thread(self._name, self._prepare())
        await asyncio.wait({last})
        last.exception()  # seen, though all who asked may have left
        now = self._clock()
        self._counts_until = max(begun + SHORTEST, now + SHARE * (now - begun))
        self._last = last
        return last
