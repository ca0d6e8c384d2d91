"""The express lane: a small HTTP/1 server in front of mitmproxy, for the requests that machines send.

It answers ordinary requests only. As soon as anything else arrives, it hands the connection to mitmproxy,
together with the bytes it has already read. That can happen at any request, also inside a tunnel, but
only while no response is on its way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from OpenSSL import SSL

from clamproxy.front import Front
from clamproxy.proxy.lane_tls import Tunnel
from clamproxy.waiting import wait_while

PATIENCE_AT_LIMIT = 5.0
"""Seconds after which an idle connection is closed while other clients wait to connect."""


@dataclass(frozen=True, slots=True)
class Past:
    """What has happened on a connection before the lane hands it over."""

    tunnel: Tunnel | None
    """The tunnel it is in, if any."""
    speaks_http: bool
    """Whether a request has come, in the tunnel if there is one. What follows is HTTP, like it or not."""
    has_ended: bool
    """Whether the client has said that it won't send any more."""


type HandOver = Callable[[asyncio.Transport, bytes, Past], None]
"""Hands a connection to mitmproxy. Arguments: its transport; what the client has sent, decrypted, if it is
still unanswered; and its past."""


class Ending(Protocol):
    """What the lane needs from its connections."""

    def end_if_silent_since(self, moment: float) -> None:
        """Close the connection if it is idle and nothing has arrived since `moment`, in monotonic seconds."""

    def cut(self) -> None:
        """Close the connection, whatever it is doing."""


class Lane:
    """All connections of the express lane.

    Args:
        context_for: returns the TLS context for a host; None if mitmproxy has to speak TLS there.
    """

    def __init__(self, front: Front, context_for: Callable[[str], SSL.Context | None]) -> None:
        self.front = front
        self.context_for = context_for
        self.connections: set[Ending] = set()
        self.is_stopping = False
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start closing connections that stay idle too long."""
        self._sweeping = asyncio.create_task(self._sweep(), name="express lane: idle connections")

    def end_idle(self) -> None:
        """Close connections without a request now, and all others after their responses."""
        self.is_stopping = True
        for connection in list(self.connections):
            connection.end_if_silent_since(time.monotonic())

    async def end_all(self, limit: float) -> None:
        """Close all connections now, and wait until they are gone, but no longer than `limit` seconds."""
        for connection in list(self.connections):
            connection.cut()
        await wait_while(lambda: self.connections, limit, every=0.01)
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _sweep(self) -> None:
        """Close connections that are silent too long. One pass over all is cheaper than a timer for each."""
        while True:
            await asyncio.sleep(1)
            settings = self.front.settings
            patience = settings.access.idle_timeout if settings is not None else PATIENCE_AT_LIMIT
            if self.front.limits.is_full:
                patience = min(patience, PATIENCE_AT_LIMIT)
            for connection in list(self.connections):
                connection.end_if_silent_since(time.monotonic() - patience)
