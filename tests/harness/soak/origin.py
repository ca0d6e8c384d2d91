"""The CDN and DNS of a soak, on the event loop of the gateway: simulated time knows when they work."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from tests.harness.soak.plan import Plan
from tests.support.dns_server import Zone
from tests.support.faults import Fault, Headers
from tests.support.files import File, file_answer, upload_date
from tests.support.simulated_time import Timeline

_PIECE = 8 * 1024


class Books:
    """What the origin has counted since the gateway was started."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0
        """Bytes of files that were sent. The gateway doesn't read the bodies of refusals."""
        self.unread = 0
        """How many of them the gateway may have left unread: those of each answer during or after which it
        reset the connection, and what came beyond the range that it had asked for."""
        self.whole: Counter[str] = Counter()
        """How often each file was sent completely, by its name with a version."""


class SoakOrigin:
    """Serves what has been released, with one fault at a time."""

    def __init__(self, plan: Plan, timeline: Timeline, zone: Zone) -> None:
        self._plan, self._timeline, self._zone = plan, timeline, zone
        self.names: dict[str, str] = {}
        """Files of the plan, by the names under which the CDN has them now."""
        self.fault = Fault()
        self.books = Books()
        self.when_asked: Callable[[], None] | None = None
        """Called in the middle of the next answer."""
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, int] = {}
        """Those that are open, and how many bytes of a file the last answer over each has had."""
        self._sending = 0
        """How many answers are being sent."""
        self._busy_at = 0.0
        self._healed = asyncio.Event()

    @property
    def port(self) -> int:
        return self._plan.ports[2]

    @property
    def is_connected(self) -> bool:
        return bool(self._connections)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(
            lambda: _Dns(self._zone), local_addr=("127.0.0.1", self._plan.ports[3])
        )
        await self.accept()

    async def accept(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def refuse(self) -> None:
        """Refuse connections, and end those that are open."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    def heal(self) -> None:
        self.fault = Fault()
        healed, self._healed = self._healed, asyncio.Event()
        healed.set()

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing has been asked or sent for so long."""
        return not self._sending and self._timeline.monotonic() - self._busy_at > seconds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = 0
        try:
            with suppress(asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
            _require_end(writer)
        except (OSError, asyncio.CancelledError):
            self.books.unread += self._connections[writer]
        finally:
            del self._connections[writer]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        path, fields = _parsed(await reader.readuntil(b"\r\n\r\n"))
        self._busy_at = self._timeline.monotonic()
        self.books.requests += 1
        self._connections[writer] = 0
        fault, name = self.fault, path.partition("?")[0].removeprefix("/")
        if fault.silent:
            await self._stay_silent(reader)
            return False
        file = self._file(name)
        if fault.status is not None:
            code, head, body = fault.status, fault.headers, fault.body or b""
        elif file is None:
            code, head, body = 404, {}, b"<html>not found</html>"
        else:
            code, head, body = file_answer(file, fault, fields)
        length = {} if code == 304 else {"Content-Length": str(len(body))}
        lines = [f"HTTP/1.1 {code} X", *(f"{key}: {value}" for key, value in (head | length).items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        wanted = len(body) if code == 206 else _wanted(fields, len(body))
        await self._send(reader, writer, body, fault, wanted if code in (200, 206) else None)
        if fault.cut_after is not None and fault.cut_after < len(body):
            return False
        if file is not None and body is file.body:
            self.books.whole[self.names[name]] += 1
        return True

    async def _send(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        body: bytes,
        fault: Fault,
        wanted: int | None,
    ) -> None:
        """Send a body.

        Args:
            wanted: how many bytes of a file were asked for; None if this is no file.
        """
        end = len(body) if fault.cut_after is None else min(fault.cut_after, len(body))
        self._sending += 1
        try:
            for start in range(0, end, _PIECE):
                piece = body[start : min(end, start + _PIECE)]
                if fault.rate is not None:
                    await self._timeline.let_wait(len(piece) / fault.rate)
                    if reader.at_eof():
                        raise ConnectionResetError("the gateway has left in the middle of an answer")
                if wanted is not None:
                    self._count(
                        writer, len(piece), unwanted=min(len(piece), max(0, start + len(piece) - wanted))
                    )
                writer.write(piece)
                await writer.drain()
                if self.when_asked is not None and start >= end // 2:
                    self.when_asked()
        finally:
            self._sending -= 1
            self._busy_at = self._timeline.monotonic()

    def _count(self, writer: asyncio.StreamWriter, length: int, unwanted: int) -> None:
        self.books.bytes += length
        self.books.unread += unwanted
        self._connections[writer] += length - unwanted

    async def _stay_silent(self, reader: asyncio.StreamReader) -> None:
        """Wait until the fault is over, or the peer has left."""
        self._timeline.sleepers += 1
        left, healed = asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(self._healed.wait())
        try:
            await asyncio.wait([left, healed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._timeline.sleepers -= 1
            left.cancel()
            healed.cancel()

    def _file(self, name: str) -> File | None:
        if name not in self.names:
            return None
        content = (self._plan.files / self.names[name]).read_bytes()
        return File(content, upload_date(content))


class _Dns(asyncio.DatagramProtocol):
    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | None, int]) -> None:
        if (answer := self._zone.reply(data)) is not None:
            self._transport.sendto(answer, addr)
        self._zone.queries.clear()


def _require_end(writer: asyncio.StreamWriter) -> None:
    """Raise an OSError if the peer has reset the connection after its end: it left something unread."""
    if writer.transport.is_closing():
        return
    if error := writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))


def _wanted(fields: Headers, length: int) -> int:
    """How many of the first bytes a request asks for that is answered with the whole file."""
    first, _, last = fields.get("range", "").removeprefix("bytes=").partition("-")
    return int(last) + 1 if first == "0" and last else length


def _parsed(head: bytes) -> tuple[str, Headers]:
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in rest if line)
    return first.split()[1], {name.strip().lower(): text.strip() for name, _, text in pairs}
