"""Taking turns: work that one process at a time does, once for all, or again and again in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from clamproxy.leases.leases import Lease, Leases, WaitEnding

LONGEST_WAIT = 600.0
"""Seconds after which a process that is not on duty tries to be, whatever it was told."""
_REST = 1.0
"""Seconds until the next try if nobody knows who is on duty."""

type Work = Callable[[], Awaitable[float]]
"""Does something once, and returns how many seconds later it should do it again."""


@asynccontextmanager
async def turn(leases: Leases, name: str, limit: float) -> AsyncIterator[None]:
    """Wait until no other process does some work, and let none begin it inside this context.

    What the others have done by then, the caller has to find out.

    Args:
        name: of the lease.
        limit: seconds after which to go on in any case. Then the same work is done twice.
    """
    deadline = asyncio.get_running_loop().time() + limit
    while (lease := await leases.take(name)) is None:
        outcome = await leases.wait(name, deadline - asyncio.get_running_loop().time())
        if outcome.ending is not WaitEnding.RELEASED:
            break
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


class Duty:
    """Work that is done for all by the process that has the lease, which keeps it. Event loop only.

    Args:
        name: of the lease.
    """

    def __init__(self, leases: Leases, name: str) -> None:
        self._leases = leases
        self._name = name
        self._lease: Lease | None = None

    async def is_ours(self) -> bool:
        """Whether it is this process that does the work; it takes the work over if nobody else does."""
        if self._lease is not None and self._lease.is_lost:
            self.leave()
        if self._lease is None:
            self._lease = await self._leases.take(self._name)
        return self._lease is not None

    async def wait(self) -> None:
        """Wait until nobody does the work, if another process does it now, but not for ever."""
        outcome = await self._leases.wait(self._name, LONGEST_WAIT)
        if outcome.ending is WaitEnding.FAILED:
            await asyncio.sleep(_REST)

    def leave(self) -> None:
        """Let another process do the work."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None


async def on_duty(
    leases: Leases, name: str, work: Work, after: float = 0.0, is_able: Callable[[], bool] = lambda: True
) -> None:
    """Do something again and again while this process has a lease, and wait for the lease otherwise.

    Runs until it is cancelled or the work raises; either releases the lease.

    Args:
        name: of the lease.
        after: seconds until the work is done first, each time that this process takes it over.
        is_able: asked after the work; if not, another process may try, before this one does so again.
    """
    duty = Duty(leases, name)
    try:
        pause = after if await duty.is_ours() else 0.0
        while True:
            await asyncio.sleep(pause)
            if await duty.is_ours():
                pause = await work()
                if not is_able():
                    duty.leave()
            else:
                await duty.wait()
                pause = after if await duty.is_ours() else 0.0
    finally:
        duty.leave()
