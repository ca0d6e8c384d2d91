"""Puts doors in place of mitmproxy's servers, and hands connections to mitmproxy.

mitmproxy opens its ports itself. Its servers are then replaced by doors on the same sockets. The doors
pass on the connections that the express lane doesn't keep, with the bytes that were already read. No
other module knows how mitmproxy accepts a connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.mode_servers import AsyncioServerInstance
from OpenSSL import SSL

from clamproxy.proxy.door import Door, Leave, Threshold
from clamproxy.proxy.inlet import Inlet
from clamproxy.proxy.internals import require
from clamproxy.proxy.lane import Lane, LanePast
from clamproxy.proxy.lane_connection import LaneConnection
from clamproxy.proxy.patience import OpenConnections, Wait, read_little
from clamproxy.proxy.proxy_protocol import announces

type Instance = AsyncioServerInstance[mode_specs.ProxyMode]
"""One of mitmproxy's servers: a mode and a port."""


def check_internals() -> None:
    """Check that this version of mitmproxy has what this module relies on.

    Raises:
        RuntimeError: something is missing.
    """
    require({AsyncioServerInstance: ("_servers", "handle_stream"), Proxyserver: ("servers", "connections")})


class Takeover:
    """Replaces mitmproxy's servers: when told to, and whenever mitmproxy has opened others.

    Args:
        proxy: mitmproxy's addon that listens.
        threshold: says which clients may connect.
        connections: all that are open.
        lane: gives the express lane; None if mitmproxy should get all new connections.
    """

    def __init__(
        self,
        proxy: Proxyserver,
        threshold: Threshold,
        connections: OpenConnections,
        lane: Callable[[], Lane | None],
    ) -> None:
        self._proxy = proxy
        self._threshold = threshold
        self._connections = connections
        self._lane = lane
        proxy.servers.changed.connect(self.take)

    def take(self) -> None:
        """Replace the servers that still accept connections themselves. No connection is lost."""
        for instance in self._proxy.servers:
            if isinstance(instance, AsyncioServerInstance):
                servers: list[Any] = instance._servers
                servers[:] = [
                    self._door(instance, one) if isinstance(one, asyncio.Server) else one for one in servers
                ]

    def _door(self, instance: Instance, server: asyncio.Server) -> Door:
        sockets = [socket.socket(fileno=socket.dup(one.fileno())) for one in server.sockets]
        server.close()
        return Door(sockets, self._threshold, partial(self._receive, instance))

    def _receive(self, instance: Instance, leave: Leave) -> asyncio.BaseProtocol:
        lane, mode = self._lane(), instance.mode
        if lane is None or not isinstance(mode, mode_specs.RegularMode | mode_specs.ReverseMode):
            return self._mitmproxys(instance, leave)
        server = mode.address if isinstance(mode, mode_specs.ReverseMode) else None
        return LaneConnection(lane, leave, partial(self._hand_over, instance, leave), server)

    def _hand_over(
        self,
        instance: Instance,
        leave: Leave,
        transport: asyncio.Transport,
        received: bytes,
        past: LanePast,
    ) -> None:
        """Give one of the lane's connections to mitmproxy. The last three arguments are `HandOver`'s."""
        protocol = self._mitmproxys(instance, leave, past)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.read(received if past.tunnel is None else past.tunnel.connect + received)
        if past.has_ended:
            protocol.eof_received()

    def _mitmproxys(
        self, instance: Instance, leave: Leave, past: LanePast | None = None
    ) -> _MitmproxyProtocol:
        tell_unwanted = self._threshold.tell_unwanted
        return _MitmproxyProtocol(instance, leave, tell_unwanted, self._connections, past)


class _MitmproxyProtocol(asyncio.StreamReaderProtocol):
    """The protocol of a connection that mitmproxy serves.

    Args:
        leave: called when the connection is gone.
        tell_unwanted: called with the client's address if its connection begins with a PROXY header.
            That of a balancer was read at the door.
        past: what has happened in the lane, if the connection was there.
    """

    def __init__(
        self,
        instance: Instance,
        leave: Leave,
        tell_unwanted: Callable[[str], None],
        connections: OpenConnections,
        past: LanePast | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._inlet = Inlet(loop)
        super().__init__(self._inlet, partial(self._begin, instance), loop)
        self._connections = connections
        self._wait = Wait()
        self._leave = leave
        self._tell_unwanted = tell_unwanted
        self._past = past
        self._session = past.tunnel.session if past is not None and past.tunnel is not None else None
        self._has_begun = past is not None and past.speaks_http

    async def _begin(
        self, instance: Instance, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._past is not None:
            writer = LaneWriter(writer.transport, self, reader, self._wait, self._past)
        else:
            writer = ClientWriter(writer.transport, self, reader, self._wait)
        try:
            await instance.handle_stream(reader, writer)
        except asyncio.CancelledError:
            # The process ends. Before Python 3.12.2, asyncio logs a traceback if this task is cancelled.
            self._client.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = cast(asyncio.Transport, transport)
        if transport.get_extra_info("peername") is None:
            self._client.abort()  # it has left already, and nobody could tell whose requests these are
            return
        read_little(transport)
        self._connections.add(self)
        super().connection_made(transport)

    def read(self, data: bytes) -> None:
        """Take in bytes that are already decrypted."""
        if not self._has_begun and announces(data):
            self._tell_unwanted(self._client.get_extra_info("peername")[0])
            self._client.close()
            return
        self._has_begun = True
        super().data_received(data)

    def data_received(self, data: bytes) -> None:
        self._wait.heard()
        session = self._session
        if session is None:
            self.read(data)
            return
        try:
            said, to_send = session.receive(data)
        except SSL.Error:  # nothing more can be read or sent
            self._client.write(session.take())
            self._client.close()
            return
        self._client.write(to_send)
        if said:
            self.read(said)
        if session.has_ended:
            self.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._connections.discard(self)
        self._leave()

    def end_if_silent_since(self, moment: float) -> None:
        """Close it if the client neither gets a response nor has completed a request since."""
        if not self._inlet.is_busy and self._wait.is_over(self._client, moment):
            self._client.abort()

    def cut(self) -> None:
        # Not abort(): asyncio stumbles over a transport that is lost in the middle of sendfile.
        with suppress(OSError):
            self._client.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class ClientWriter(asyncio.StreamWriter):
    """Writes for mitmproxy to a client: whatever is sent to it answers something that it has completed."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        wait: Wait,
    ) -> None:
        super().__init__(transport, protocol, reader, asyncio.get_running_loop())
        self._wait = wait

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send some bytes."""
        self._wait.begin_again()
        super().write(data)


class LaneWriter(ClientWriter):
    """Writes for mitmproxy to a client that was in the lane, and into its tunnel if the lane has opened one.

    mitmproxy gets the client's CONNECT again, to learn where the tunnel leads. Its response is dropped.
    """

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        wait: Wait,
        past: LanePast,
    ) -> None:
        super().__init__(transport, protocol, reader, wait)
        self.past = past
        self._session = past.tunnel.session if past.tunnel is not None else None
        self._is_open = past.tunnel is None

    @property
    def tls(self) -> SSL.Connection | None:
        """The TLS inside the tunnel; None if there is none."""
        return self._session.connection if self._session is not None else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything except the response to the lane's CONNECT, which the client already has."""
        if not self._is_open:
            self._is_open = True
            head, _, data = bytes(data).partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                self.close()
                return
        if data and self._session is not None:
            try:
                data = self._session.encrypt(bytes(data))
            except SSL.Error:  # for whatever the client did
                self.close()
                return
        if data:
            super().write(data)
