"""Waiting for changes that nothing announces."""

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
