"""Reloads, one after the other. Each caller gets the outcome of one that began after it had asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from clamproxy.control import ReloadOutcome


class Reloads:
    """Event loop only.

    Args:
        reload: reads the configuration once.
    """

    def __init__(self, reload: Callable[[], Coroutine[Any, Any, ReloadOutcome]]) -> None:
        self._reload = reload
        self._present: asyncio.Task[ReloadOutcome] | None = None
        self._next: asyncio.Task[ReloadOutcome] | None = None
        """Has not begun to read. One serves all that ask in the meantime."""

    def begin(self) -> None:
        _ = self._begun()  # the log tells the outcome

    async def ask(self) -> ReloadOutcome:
        """Wait for the outcome. A caller that is cancelled doesn't end the reload."""
        return await asyncio.shield(self._begun())

    def _begun(self) -> asyncio.Task[ReloadOutcome]:
        if self._next is None:
            # The file may have changed since the present one has read it.
            self._next = asyncio.create_task(self._after(self._present), name="reload")
        return self._next

    def stop(self) -> None:
        for task in (self._present, self._next):
            if task is not None:
                task.cancel()

    async def _after(self, earlier: asyncio.Task[ReloadOutcome] | None) -> ReloadOutcome:
        await asyncio.sleep(0)  # mitmproxy's tasks begin at once, but `_next` must be this one
        if earlier is not None:
            await asyncio.wait([earlier])
        self._present, self._next = self._next, None
        return await self._reload()
