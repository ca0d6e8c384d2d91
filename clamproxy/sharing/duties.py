"""Taking turns: work that one process at a time does, once for all, or again and again in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from clamproxy.sharing.leases import Ending, Lease, Leases

LONGEST_WAIT = 60.0
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
        if outcome.ending is not Ending.RELEASED:
            break
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


async def on_duty(leases: Leases, name: str, work: Work, after: float = 0.0) -> None:
    """Do something again and again while this process holds a lease, and wait for the lease otherwise.

    Runs until it is cancelled or the work raises; either releases the lease.

    Args:
        name: of the lease.
        after: seconds until the work is done first, each time that this process comes on duty.
    """
    while True:
        lease = await _take(leases, name)
        try:
            await asyncio.sleep(after)
            while True:
                await asyncio.sleep(await work())
                if lease.is_lost:
                    lease.release()
                    lease = await _take(leases, name)
        finally:
            lease.release()


async def _take(leases: Leases, name: str) -> Lease:
    while (lease := await leases.take(name)) is None:
        outcome = await leases.wait(name, LONGEST_WAIT)
        if outcome.ending is Ending.FAILED:
            await asyncio.sleep(_REST)
    return lease
