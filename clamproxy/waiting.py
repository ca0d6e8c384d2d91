"""Waiting for what nobody announces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


async def wait_while(condition: Callable[[], object], limit: float, every: float) -> None:
    """Look again and again while something holds.

    For what several parts decide together, or another program's: no event tells of its end.

    Args:
        condition: whether to go on waiting. Quick.
        limit: seconds after which that is enough.
        every: seconds between looks.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            while condition():  # noqa: ASYNC110  (see above)
                await asyncio.sleep(every)
