"""How long clients may keep the gateway waiting, whether the express lane or mitmproxy serves them."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from clamproxy.front import Front
from clamproxy.proxy.senders import STALL_TIMEOUT
from clamproxy.waiting import wait_while

PATIENCE_AT_LIMIT = 5.0
"""Seconds after which an idle connection is closed while other clients wait to connect."""
READ = 16 * 1024
"""Bytes that are read from a client at a time. asyncio would take 256 KiB, and has to store them."""


def read_little(transport: asyncio.BaseTransport) -> None:
    """Read no more than `READ` bytes of a client at a time: what it sends in advance has to be stored."""
    setattr(transport, "max_size", READ)  # noqa: B010  (asyncio's, but not in its documentation)


class Wait:
    """Since when a connection has kept the gateway waiting for a whole request, or for room to write.

    Bytes that don't complete anything give a client no more time, or it could occupy a connection for
    hours with one byte a minute.
    """

    __slots__ = ("_has_begun", "_since")

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._has_begun = False

    def heard(self) -> None:
        """Bytes have arrived. The time for a request counts from its first byte."""
        if not self._has_begun:
            self._has_begun = True
            self._since = time.monotonic()

    def begin_again(self) -> None:
        """The client has completed a request, or the gateway has sent it something."""
        self._has_begun = False
        self._since = time.monotonic()

    def is_over(self, transport: asyncio.WriteTransport, moment: float) -> bool:
        """Whether the client has kept the gateway waiting since `moment`, in monotonic seconds.

        A client that doesn't read what was written has `STALL_TIMEOUT`, as with bodies from disk.
        """
        if transport.get_write_buffer_size():
            moment = min(moment, time.monotonic() - STALL_TIMEOUT)
        return self._since <= moment


class Ending(Protocol):
    """What `OpenConnections` needs from a connection."""

    def end_if_silent_since(self, moment: float) -> None:
        """Close the connection if the client has kept it waiting since `moment`, in monotonic seconds."""

    def cut(self) -> None:
        """Close the connection, whatever it is doing."""


class OpenConnections:
    """All TCP connections of clients. Closes those that stay idle too long."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._all: set[Ending] = set()
        self._sweeping: asyncio.Task[None] | None = None

    def add(self, connection: Ending) -> None:
        self._all.add(connection)

    def discard(self, connection: Ending) -> None:
        """Forget a connection that is gone, or that is now another object's."""
        self._all.discard(connection)

    def start(self) -> None:
        self._sweeping = asyncio.create_task(self._sweep(), name="idle connections")

    def end_silent_since(self, moment: float) -> None:
        """Close the connections whose clients have been silent since `moment`, in monotonic seconds."""
        for connection in list(self._all):
            connection.end_if_silent_since(moment)

    async def end_all(self, limit: float) -> None:
        """Close all connections now, and wait until they are gone, but no longer than `limit` seconds."""
        for connection in list(self._all):
            connection.cut()
        await wait_while(lambda: self._all, limit, every=0.01)
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _sweep(self) -> None:
        """Look once a second. One pass over all is cheaper than a timer for each."""
        while True:
            await asyncio.sleep(1)
            settings = self._front.settings
            patience = settings.access.idle_timeout if settings is not None else PATIENCE_AT_LIMIT
            if self._front.limits.is_full:
                patience = min(patience, PATIENCE_AT_LIMIT)
            self.end_silent_since(time.monotonic() - patience)
