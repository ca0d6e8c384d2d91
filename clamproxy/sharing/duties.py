"""Duties: background work that one process does for all; if it ends, another goes on within seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from clamproxy.sharing.leases import Ending, Lease, Leases

LONGEST_WAIT = 60.0
"""Seconds after which a process that is not on duty tries to be, whatever it was told."""
_REST = 1.0
"""Seconds until the next try if nobody knows who is on duty."""

type Work = Callable[[], Awaitable[float]]
"""Does something once, and returns how many seconds later it should do it again."""


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
