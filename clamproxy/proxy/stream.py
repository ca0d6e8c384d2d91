"""Bodies from disk to the client's socket: with heads.py the one that reaches into mitmproxy.

An addon can give mitmproxy a whole body in memory, or none: 10 TLS clients of a 100 MB file
took 2 GB and seconds to the first byte (mitmproxy.md section 1). So the head of an answer goes
through mitmproxy's layers as usual, then one hook that blocks only this stream sends the body
straight to the transport, then the layers end the message.

* plain HTTP, also inside CONNECT: ``loop.sendfile()``;
* TLS, HTTP/1: encrypted in pieces into the transport;
* anything else (HTTP/2, TLS in TLS): piece by piece through the layers.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from mitmproxy import connection, ctx, flow
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.layers.http import DropStream, HttpLayer, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ResponseData,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHook
from mitmproxy.proxy.layers.http._http1 import Http1Server
from OpenSSL import SSL

from clamproxy.messages import Body, SourceError
from clamproxy.proxy.heads import HeadLimits, LimitedServer, LimitedStream
from clamproxy.waiting import wait_while

PIECE = 64 * 1024
"""Bytes that are encrypted at a time: the fastest, larger pieces miss the CPU's cache."""
SMALLEST_SLICE, LARGEST_SLICE = 256 * 1024, 8 * 1024 * 1024
"""Bytes that one call of sendfile may send; adapted to the speed of the client."""
STALL_TIMEOUT = 120.0
"""Seconds in which a client must take a slice or piece."""

_HTTP_1 = (None, b"", b"http/1.0", b"http/1.1")
"""What a client has agreed on by ALPN."""

JOB = "clamproxy_job"
"""The key of a `BodyJob` in the metadata of a flow."""


@dataclass(eq=False)
class BodyJob:
    """A body on its way to a client."""

    body: Body
    sent: int = 0
    error: str | None = None
    stream: BodyStream | None = field(default=None, repr=False)
    piece: bytes = field(default=b"", repr=False)
    """The next piece, where pieces go through mitmproxy's layers."""

    @property
    def complete(self) -> bool:
        """Whether all of it has been sent."""
        return self.sent == self.body.length


@dataclass
class SendBodyHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """Asks the addon to send a whole body; calls its ``send_body``."""

    job: BodyJob


@dataclass
class ReadPieceHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """Asks the addon for the next piece of a body; calls its ``read_piece``."""

    job: BodyJob


class BodyStream(LimitedStream):
    """One request and its answer; knows how to send a `BodyJob`."""

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        """Send the answer that the addon has set."""
        job: BodyJob | None = self.flow.metadata.get(JOB)
        if already_streamed or job is None or self.flow.response is None:
            yield from super().send_response(already_streamed)
            return
        job.stream = self
        self.flow.response.timestamp_end = time.time()
        yield HttpResponseHook(self.flow)
        self.server_state = self.state_done
        if (yield from self.check_killed(False)):
            job.body.source.close()
            return
        yield SendHttp(
            ResponseHeaders(self.stream_id, self.flow.response, end_stream=False), self.context.client
        )
        if _direct_tls_layers(self) is None:
            yield from self._send_through_layers(job)
        else:
            yield SendBodyHook(job)
        if not job.complete:
            yield from self._cut(job)
        elif self.client_state == self.state_done:
            yield from self.flow_done()

    def _send_through_layers(self, job: BodyJob) -> layer.CommandGenerator[None]:
        while not job.complete:
            yield ReadPieceHook(job)
            if job.error is not None or not job.piece:
                return
            yield SendHttp(ResponseData(self.stream_id, job.piece), self.context.client)
            job.sent += len(job.piece)

    def _cut(self, job: BodyJob) -> layer.CommandGenerator[None]:
        """Close the connection: a Content-Length was given, so the client knows and tries again."""
        self.flow.error = flow.Error(job.error or "body not sent")
        yield HttpErrorHook(self.flow)
        yield commands.CloseConnection(self.context.client)
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)


class BodyHttpLayer(HttpLayer):
    """An HTTP connection whose streams are `BodyStream`, and whose requests have bounds."""

    limits = HeadLimits()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        client = self.context.client
        if isinstance(event, events.Start) and client.alpn in _HTTP_1:
            # mitmproxy leaves alone what is there already.
            self.connections.setdefault(client, LimitedServer(self.context.fork(), self.limits, self.mode))
        yield from super()._handle_event(event)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Start a stream for a new request."""
        stream = BodyStream(self.context.fork(), stream_id)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())


def choose_layer(next_layer: layer.NextLayer) -> None:
    """Let mitmproxy choose the layer: script addons are asked before its own NextLayer is."""
    if next_layer.layer is None:
        _addon("nextlayer").next_layer(next_layer)


def install(top: layer.Layer | None, limits: HeadLimits) -> None:
    """Make the HTTP layers of a connection send bodies from disk, and bound what they receive.

    Args:
        top: what a ``next_layer`` hook has chosen; reverse mode hands out a ready stack.
        limits: of the heads of requests.
    """
    current: Any = top
    while current is not None:
        if type(current) is HttpLayer:
            current.__class__ = BodyHttpLayer
            setattr(current, "limits", limits)  # noqa: B010  (mypy still takes it for an HttpLayer)
        current = current.__dict__.get("child_layer")


def check_internals() -> None:
    """See that this mitmproxy is built as this module expects.

    Raises:
        RuntimeError: it isn't.
    """
    expected = {
        HttpLayer: ("_handle_event", "make_stream", "event_to_child"),
        Http1Server: ("_handle_event", "read_headers", "read_body", "wait", "send", "done"),
        HttpStream: (
            *("send_response", "check_killed", "check_body_size"),
            *("flow_done", "state_done", "state_errored"),
        ),
        SSL.Connection: ("sendall", "bio_read"),
    }
    missing = [
        f"{cls.__name__}.{name}"
        for cls, names in expected.items()
        for name in names
        if not hasattr(cls, name)
    ]
    if not hasattr(_addon("proxyserver"), "connections"):
        missing.append("proxyserver.connections")
    if missing:
        raise RuntimeError(f"this version of mitmproxy has no {', '.join(missing)}")


async def send_body(job: BodyJob) -> None:
    """Send a body to the client's transport; sets `sent`, and `error` if that is not all."""
    assert job.stream is not None  # noqa: S101  (set by the stream that asks)
    try:
        writer = _writer(job.stream)
        tls_layers = _direct_tls_layers(job.stream)
        descriptor = job.body.source.fileno()
        if tls_layers:
            await _send(job, TlsSender(writer, descriptor, tls_layers[0].tls))
        else:
            await _send(job, PlainSender(writer, descriptor))
    except (SourceError, OSError, SSL.Error, KeyError, RuntimeError) as error:
        # TimeoutError is an OSError; KeyError, RuntimeError: the connection is gone.
        job.error = f"{type(error).__name__}: {error}"
    finally:
        job.body.source.close()


async def read_piece(job: BodyJob) -> None:
    """Read the next piece of a body, when there is room for it in the client's buffer."""
    source, body = job.body.source, job.body
    assert job.stream is not None  # noqa: S101
    try:
        async with asyncio.timeout(STALL_TIMEOUT):
            await _writer(job.stream).drain()
        offset = body.start + job.sent
        end = min(await source.wait(offset), body.start + body.length, offset + PIECE)
        job.piece = os.pread(source.fileno(), end - offset, offset)
    except (SourceError, OSError, KeyError) as error:
        job.piece, job.error = b"", f"{type(error).__name__}: {error}"
    if job.error is not None or job.sent + len(job.piece) == body.length:
        source.close()


async def _send(job: BodyJob, sender: Sender) -> None:
    body = job.body
    end = body.start + body.length
    while not job.complete:
        offset = body.start + job.sent
        available = min(await body.source.wait(offset), end)
        while offset < available:
            sent = await sender.send(offset, available - offset)
            offset += sent
            job.sent += sent


class Sender(Protocol):
    """Moves bytes from a file to a client."""

    async def send(self, offset: int, length: int) -> int:
        """Send some of the bytes at an offset; returns how many.

        Raises:
            OSError: the client is gone, or too slow.
        """


class PlainSender:
    """Lets the kernel send; the slices are adapted to the client's speed."""

    def __init__(self, writer: asyncio.StreamWriter, descriptor: int) -> None:
        self._writer = writer
        self._file = io.FileIO(descriptor, "rb", closefd=False)
        self._slice = SMALLEST_SLICE

    async def send(self, offset: int, length: int) -> int:
        """See `Sender.send`."""
        count = min(length, self._slice)
        started_at = time.monotonic()
        async with asyncio.timeout(STALL_TIMEOUT):
            sent = await self._sendfile(offset, count)
        if sent == 0:
            raise OSError("the file is shorter than it was")
        taken = time.monotonic() - started_at
        if taken < 1:
            self._slice = min(self._slice * 4, LARGEST_SLICE)
        elif taken > STALL_TIMEOUT / 8:
            self._slice = max(self._slice // 2, SMALLEST_SLICE)
        return sent

    async def _sendfile(self, offset: int, count: int) -> int:
        loop, transport = asyncio.get_running_loop(), self._writer.transport
        try:
            return await loop.sendfile(transport, self._file, offset, count, fallback=False)
        except asyncio.SendfileNotAvailableError:
            if self._writer.is_closing():
                raise
        # A file system without sendfile: copy.
        data = os.pread(self._file.fileno(), min(count, PIECE), offset)
        self._writer.write(data)
        await self._writer.drain()
        return len(data)


class TlsSender:
    """Encrypts in pieces; the loop gets its turn after each, so that nobody starves."""

    def __init__(self, writer: asyncio.StreamWriter, descriptor: int, connection: SSL.Connection) -> None:
        self._writer = writer
        self._descriptor = descriptor
        self._connection = connection

    async def send(self, offset: int, length: int) -> int:
        """See `Sender.send`."""
        data = os.pread(self._descriptor, min(length, PIECE), offset)
        if not data:
            raise OSError("the file is shorter than it was")
        if self._writer.is_closing():
            raise ConnectionResetError("the client is gone")
        self._connection.sendall(data)
        self._write_encrypted()
        if self._writer.transport.get_write_buffer_size():
            async with asyncio.timeout(STALL_TIMEOUT):
                await self._writer.drain()
        # While the socket keeps up, nothing above yields: one fast client would hold the loop.
        await asyncio.sleep(0)
        return len(data)

    def _write_encrypted(self) -> None:
        room = 2 * PIECE
        encrypted = self._connection.bio_read(room)
        self._writer.write(encrypted)
        while len(encrypted) == room:  # a shorter read has emptied it
            try:
                encrypted = self._connection.bio_read(room)
            except SSL.WantReadError:
                break
            self._writer.write(encrypted)


def _addon(name: str) -> Any:
    return ctx.master.addons.get(name)  # type: ignore[no-untyped-call]


def close(client: connection.Client) -> None:
    """Close a client's connection when what was written has been sent.

    mitmproxy forgets to, where a command to close comes while it waits to handle what it has read.
    """
    with suppress(KeyError):
        _client_writer(client).close()


async def end_all(limit: float) -> None:
    """Close all TCP connections of clients at once, and wait until they are gone.

    Args:
        limit: seconds to wait at most.
    """
    handlers = _addon("proxyserver").connections

    def clients() -> list[connection.Client]:
        return [one.client for one in handlers.values() if one.client.transport_protocol == "tcp"]

    for client in clients():
        # Not abort(): asyncio stumbles over a transport that is lost in the middle of sendfile.
        with suppress(KeyError, OSError):
            _client_writer(client).get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    await wait_while(clients, limit, every=0.01)


def _writer(stream: BodyStream) -> asyncio.StreamWriter:
    return _client_writer(stream.context.client)


def _client_writer(client: connection.Client) -> asyncio.StreamWriter:
    """The writer of a client's connection.

    Raises:
        KeyError: the connection is gone.
    """
    handler = _addon("proxyserver").connections[client.id]
    writer = handler.transports[client].writer
    if not isinstance(writer, asyncio.StreamWriter):
        raise KeyError("not a TCP connection")
    return writer


def _direct_tls_layers(stream: BodyStream) -> list[ClientTLSLayer] | None:
    """The TLS layers under a stream whose body can go straight to the transport, else None."""
    tls_layers = [found for found in stream.context.layers if isinstance(found, ClientTLSLayer)]
    if len(tls_layers) > 1 or stream.flow.request.is_http2 or stream.flow.request.is_http3:
        return None
    return tls_layers


def job_of(flow: HTTPFlow) -> BodyJob | None:
    """The body that goes with a flow's answer, if it doesn't go the ordinary way."""
    job = flow.metadata.get(JOB)
    return job if isinstance(job, BodyJob) else None
