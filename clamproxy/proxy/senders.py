"""Bodies from disk to a client's socket, for the express lane and for mitmproxy.

* Plain HTTP: by ``loop.sendfile()``.
* TLS: encrypted in pieces, straight into the transport.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
from dataclasses import dataclass
from typing import Protocol

from OpenSSL import SSL

from clamproxy.access.client_rates import ClientShare
from clamproxy.messages import Body, SourceError
from clamproxy.storage.condition import trouble_of

PIECE = 64 * 1024
"""How many bytes are encrypted at a time. This is fastest: larger pieces miss the CPU's cache."""
SLICE = 256 * 1024
"""How many bytes one call of sendfile may send. Larger slices are not faster."""
LARGEST_BACKLOG = 256 * 1024
"""How many bytes may wait in a socket, besides those under way. Without a limit, it takes megabytes, and room
for more only when a third of them is gone: a slow client would seem to stall."""
STALL_TIMEOUT = 120.0
"""How many seconds a client has to accept a slice or piece."""


@dataclass(eq=False)
class Sending:
    """A body on its way to a client."""

    body: Body
    share: ClientShare | None = None
    """Paces it; None if nothing does."""
    sent: int = 0
    error: str | None = None

    @property
    def complete(self) -> bool:
        return self.sent == self.body.length


class Outlet(Protocol):
    """The way to a client, such as an `asyncio.StreamWriter`."""

    @property
    def transport(self) -> asyncio.WriteTransport: ...

    async def drain(self) -> None:
        """Wait until there is room for more.

        Raises:
            OSError: the client is gone.
        """


class Sender(Protocol):
    """Moves bytes from a file to a client."""

    async def send(self, offset: int, length: int) -> int:
        """Send some of the bytes at an offset; returns how many.

        Raises:
            OSError: the client is gone, or too slow.
        """


async def send_body(sending: Sending, outlet: Outlet, tls: SSL.Connection | None) -> None:
    """Send a body, and close its source. Sets `sent`, and `error` if not all of it was sent.

    Args:
        tls: encrypts what is sent; None for plain HTTP.
    """
    source = sending.body.source
    try:
        limit_backlog(outlet)
        descriptor = source.fileno()
        sender = TlsSender(outlet, descriptor, tls) if tls else PlainSender(outlet, descriptor)
        await _send(sending, sender)
    except (SourceError, OSError, SSL.Error, RuntimeError) as error:
        # TimeoutError is an OSError; RuntimeError means that the connection is gone.
        sending.error = f"{type(error).__name__}: {error}"
        if trouble_of(error) is not None:  # of the disk, not of the connection
            source.distrust()
    finally:
        source.close()


def limit_backlog(outlet: Outlet) -> None:
    """Let a client's socket accept bytes only at the speed at which they leave.

    Raises:
        OSError: the connection is gone.
    """
    connection = outlet.transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, LARGEST_BACKLOG)


async def _send(sending: Sending, sender: Sender) -> None:
    body, share = sending.body, sending.share
    end = body.start + body.length
    while not sending.complete:
        offset = body.start + sending.sent
        available = min(await body.source.wait(offset), end)
        while offset < available:
            length = available - offset
            sent = await sender.send(offset, length if share is None else min(length, share.turn))
            offset += sent
            sending.sent += sent
            if share is not None:
                await share.pay(sent, is_last=sending.complete)


class PlainSender:
    """Lets the kernel send."""

    def __init__(self, outlet: Outlet, descriptor: int) -> None:
        self._outlet = outlet
        self._transport = outlet.transport
        self._file = io.FileIO(descriptor, "rb", closefd=False)

    async def send(self, offset: int, length: int) -> int:
        async with asyncio.timeout(STALL_TIMEOUT):
            sent = await self._sendfile(offset, min(length, SLICE))
        if sent == 0:
            raise OSError("the file is shorter than it was")
        return sent

    async def _sendfile(self, offset: int, count: int) -> int:
        loop, transport = asyncio.get_running_loop(), self._transport
        try:
            return await loop.sendfile(transport, self._file, offset, count, fallback=False)
        except asyncio.SendfileNotAvailableError:
            if transport.is_closing():
                raise
        # The file system doesn't support sendfile, so copy.
        data = os.pread(self._file.fileno(), min(count, PIECE), offset)
        transport.write(data)
        await self._outlet.drain()
        return len(data)


class TlsSender:
    """Encrypts in pieces, and yields to the event loop after each, so that no other client starves."""

    def __init__(self, outlet: Outlet, descriptor: int, connection: SSL.Connection) -> None:
        self._outlet = outlet
        self._transport = outlet.transport
        self._descriptor = descriptor
        self._connection = connection

    async def send(self, offset: int, length: int) -> int:
        data = os.pread(self._descriptor, min(length, PIECE), offset)
        if not data:
            raise OSError("the file is shorter than it was")
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._connection.sendall(data)
        self._write_encrypted()
        if self._transport.get_write_buffer_size():
            async with asyncio.timeout(STALL_TIMEOUT):
                await self._outlet.drain()
        # While the socket keeps up, nothing above yields, and one fast client would hold the loop.
        await asyncio.sleep(0)
        return len(data)

    def _write_encrypted(self) -> None:
        room = 2 * PIECE
        encrypted = self._connection.bio_read(room)
        self._transport.write(encrypted)
        while len(encrypted) == room:  # a shorter read means that it is empty
            try:
                encrypted = self._connection.bio_read(room)
            except SSL.WantReadError:
                break
            self._transport.write(encrypted)
