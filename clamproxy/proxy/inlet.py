"""The bytes of mitmproxy's clients on their way to it: mitmproxy reads whatever comes, and stores it."""

from __future__ import annotations

import asyncio

from clamproxy.proxy.patience import READ

MOST_UNREAD = 8 * 1024
"""Bytes from a client that may wait for mitmproxy; beyond that, no more are taken from the system."""


class Inlet(asyncio.StreamReader):
    """What a client of mitmproxy's has sent, given out while it isn't held back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(MOST_UNREAD // 2, loop)  # asyncio stops reading at twice its limit
        self._is_free = asyncio.Event()
        self._is_free.set()
        self.is_busy = False
        """Whether the client waits for the gateway or for a host, not the gateway for the client."""

    def hold(self) -> None:
        """Give out nothing more, so that the client has to stop sending."""
        self._is_free.clear()

    def release(self) -> None:
        self._is_free.set()

    async def read(self, n: int = -1) -> bytes:
        """Read as any stream does, but little at a time, and nothing while that is on hold."""
        await self._is_free.wait()
        return await super().read(READ if n < 0 else min(n, READ))
