"""Waiting, but not for longer than a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


async def wait_while(condition: Callable[[], object], limit: float, every: float) -> None:
    """Wait while a condition holds, by checking it repeatedly.

    For conditions that depend on several parts, or on another program: no event tells when they end.

    Args:
        condition: whether to go on waiting. Must be quick.
        limit: seconds after which to stop waiting in any case.
        every: seconds between checks.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            while condition():  # noqa: ASYNC110  (see above)
                await asyncio.sleep(every)


async def is_set_within(event: asyncio.Event, limit: float) -> bool:
    """Wait until an event is set, but no longer than `limit` seconds; returns whether it is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(limit, 0)):
            await event.wait()
    return event.is_set()
