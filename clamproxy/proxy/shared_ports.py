"""Makes mitmproxy listen on the sockets that the workers of a machine share, instead of opening its own."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.mode_servers import AsyncioServerInstance

from clamproxy.proxy.internals import require
from clamproxy.workers.worker import Worker

type Instance = AsyncioServerInstance[mode_specs.ProxyMode]

_DATAGRAM_LIFE = 30.0
"""Seconds that a response to a datagram may take; resolvers wait for less."""


def share_ports(worker: Worker) -> None:
    """Have mitmproxy's servers for TCP and DNS share their ports. Call this before mitmproxy starts.

    Raises:
        RuntimeError: this version of mitmproxy lacks what this module relies on.
    """
    require({AsyncioServerInstance: ("listen", "handle_stream")})

    async def listen(instance: Instance, host: str, port: int) -> list[Any]:
        kind = instance.mode.transport_protocol
        servers: list[Any] = []
        if kind in ("tcp", "both"):
            # In a thread, so that there is time to hold it back (see `Listening.hold_back`).
            for one in await asyncio.to_thread(worker.open, host, port):
                servers.append(await asyncio.start_server(instance.handle_stream, sock=one))
                port = one.getsockname()[1]
        if kind == "both":
            shared = worker.open(host, port, socket.SOCK_DGRAM)
            servers += [await DatagramServer.start(one, instance.handle_stream) for one in shared]
        if not servers:
            raise OSError(errno.EOPNOTSUPP, f"several workers can't share {instance.mode.description}")
        return servers

    AsyncioServerInstance.listen = listen  # type: ignore[method-assign,assignment]


class DatagramServer(asyncio.DatagramProtocol):
    """Gives mitmproxy each datagram as a connection. mitmproxy's own server can't share a port."""

    def __init__(self, receive: Callable[[Any, Any], Awaitable[None]], shared: socket.socket) -> None:
        self.sockets = [shared]
        self._receive = receive
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls, shared: socket.socket, receive: Callable[[Any, Any], Awaitable[None]]
    ) -> DatagramServer:
        """Serve a bound socket, which is closed at the end.

        Args:
            receive: serves a connection, as `handle_stream` does.
        """
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_datagram_endpoint(partial(cls, receive, shared), sock=shared)
        return protocol

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str | Any, int]) -> None:
        stream = _Datagram(self._transport, data, address)
        task = asyncio.get_running_loop().create_task(self._serve(stream), name="datagram")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: _Datagram) -> None:
        await self._receive(stream, stream)

    def close(self) -> None:
        self._transport.close()


class _Datagram:
    """One datagram and its response, as both the reader and the writer of a connection."""

    def __init__(
        self, transport: asyncio.DatagramTransport, data: bytes, peer: tuple[str | Any, int]
    ) -> None:
        self._transport = transport
        self._data = data
        self._facts = {
            "peername": peer,
            "sockname": transport.get_extra_info("sockname"),
            "transport_protocol": "udp",
        }
        self._is_done = asyncio.Event()

    async def read(self, _: int) -> bytes:
        """The datagram, and the end of the stream once it was responded to."""
        if self._data:
            data, self._data = self._data, b""
            return data
        try:
            async with asyncio.timeout(_DATAGRAM_LIFE):
                await self._is_done.wait()
        except TimeoutError:
            pass  # it was a query that nobody answers
        return b""

    def write(self, data: bytes) -> None:
        self._transport.sendto(data, self._facts["peername"])
        self._is_done.set()

    async def drain(self) -> None:
        """UDP has no back pressure."""

    def write_eof(self) -> None:
        self._is_done.set()

    def is_closing(self) -> bool:
        return self._is_done.is_set()

    def close(self) -> None:
        self._is_done.set()

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._facts.get(name, default)
