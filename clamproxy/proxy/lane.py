"""The express lane: a small HTTP/1 server in front of mitmproxy, for the requests that machines send.

It answers ordinary requests only. As soon as anything else arrives, it hands the connection to mitmproxy,
together with the bytes it has already read. That can happen at any request, also inside a tunnel, but
only while no response is on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from OpenSSL import SSL

from clamproxy.front import Front
from clamproxy.proxy.lane_tls import Tunnel
from clamproxy.proxy.patience import OpenConnections


@dataclass(frozen=True, slots=True)
class LanePast:
    """What has happened on a connection before the lane hands it over."""

    tunnel: Tunnel | None
    """The tunnel it is in, if any."""
    speaks_http: bool
    """Whether a request has come, in the tunnel if there is one. What follows is HTTP, like it or not."""
    has_ended: bool
    """Whether the client has said that it won't send any more."""


type HandOver = Callable[[asyncio.Transport, bytes, LanePast], None]
"""Hands a connection to mitmproxy. Arguments: its transport; what the client has sent, decrypted, if it is
still unanswered; and its past."""


class Lane:
    """What the connections of the express lane share.

    Args:
        context_for: returns the TLS context for a host; None if mitmproxy has to speak TLS there.
        connections: all that are open; by default, the lane has its own.
    """

    def __init__(
        self,
        front: Front,
        context_for: Callable[[str], SSL.Context | None],
        connections: OpenConnections | None = None,
    ) -> None:
        self.front = front
        self.context_for = context_for
        self.connections = connections or OpenConnections(front)
        self.is_stopping = False
        """Whether connections are closed after their responses."""
