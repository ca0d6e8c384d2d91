"""Connections that a load balancer forwards: their PROXY header gives them their client's address."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from clamproxy.proxy.proxy_protocol import LONGEST, Address, Header, ProxyProtocolError, read_header

PATIENCE = 10.0
"""Seconds for a header to arrive; a lost segment costs 3 (proxy-protocol.txt 2)."""


class ForwardedSocket(socket.socket):
    """A client's connection through a balancer. Whoever asks for its ends gets those that the client sees.

    asyncio asks the socket, and the lane and mitmproxy ask asyncio.
    """

    def __init__(self, connection: socket.socket, client: Address, gateway: Address) -> None:
        family, kind, protocol = connection.family, connection.type, connection.proto
        super().__init__(family, kind, protocol, connection.detach())
        self.setblocking(False)
        self._client = client
        self._gateway = gateway

    def getpeername(self) -> Address:
        return self._client

    def getsockname(self) -> Address:
        return self._gateway


async def await_header(connection: socket.socket) -> Header | None:
    """Read the header of a connection, and not a byte more.

    Args:
        connection: doesn't block; stays open whatever happens.

    Returns:
        None: nothing has come. Health checks may only connect, and some balancers send the header only when
        the client says something.

    Raises:
        ProxyProtocolError: what has come is no header, or only a part of one.
    """
    received = b""
    with suppress(OSError):
        async with asyncio.timeout(PATIENCE):
            while seen := await _peek(connection, LONGEST - len(received)):
                header = read_header(received + seen)
                rest = len(seen) if header is None else header.length - len(received)
                received += connection.recv(rest)
                if header is not None:
                    return header
    if received:
        raise ProxyProtocolError("the rest of its PROXY header did not arrive")
    return None


async def _peek(connection: socket.socket, size: int) -> bytes:
    """Wait for bytes, and leave them in the socket: what follows a header is for the client's server."""
    while True:
        try:
            return connection.recv(size, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            await _readable(connection)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
