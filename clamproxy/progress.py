"""Tells those who wait on the event loop what progress a thread has made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

PAUSE = 0.025
"""Seconds between two wake-ups. A hundred readers of a growing file, woken for every piece, keep the loop
busy with small writes. After a pause, each of them sends everything that has come meanwhile."""


class Progress:
    """Wakes those who wait: at once by `wake`, or now and then by `report`, for more of the same."""

    def __init__(self, notice: Callable[[], None]) -> None:
        """Belongs to the running event loop.

        Args:
            notice: called on the loop after a `report`, just before those who wait are woken.
        """
        self._notice = notice
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_reported = False
        self._next_at = 0.0

    async def wait(self) -> None:
        """Wait for the next wake-up. Check first whether there is anything to wait for."""
        await self._changed.wait()

    def wake(self) -> None:
        """Wake all who wait, at once. Event loop only."""
        self._next_at = self._loop.time() + PAUSE
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def report(self) -> None:
        """Have all who wait woken soon: now, or when the pause since the last time is over. Any thread."""
        if not self._is_reported:
            self._is_reported = True
            with suppress(RuntimeError):  # the loop is closed: the process is ending
                self._loop.call_soon_threadsafe(self._arrange)

    def _arrange(self) -> None:
        if self._loop.time() >= self._next_at:
            self._tell()
        else:
            self._loop.call_at(self._next_at, self._tell)

    def _tell(self) -> None:
        self._is_reported = False  # first: progress from here on is reported anew
        self._notice()
        self.wake()
