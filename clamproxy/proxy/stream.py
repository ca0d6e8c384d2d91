"""Bodies from disk to the sockets of mitmproxy's clients, by way of its internals.

An addon can give mitmproxy a whole body in memory or none at all: 10 TLS clients of a 100 MB file took 2
GB and seconds to the first byte (docs/architecture.md 5.1). So the head of a response goes through
mitmproxy's layers as usual. Then a hook that blocks only this stream sends the body straight to the
transport, and finally the layers end the message.

HTTP/1, plain or in TLS, is sent by the `senders`. Everything else (HTTP/2, TLS in TLS) goes through the
layers piece by piece.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mitmproxy import connection, ctx, flow
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy import commands, events, layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.layers.http import DropStream, HttpLayer, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ResponseData,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHook
from mitmproxy.proxy.layers.http._http1 import Http1Server
from OpenSSL import SSL

from clamproxy.messages import SourceError
from clamproxy.proxy import senders
from clamproxy.proxy.header_limits import HeadLimits, LimitedServer, LimitedStream
from clamproxy.proxy.inlet import Inlet
from clamproxy.proxy.internals import require
from clamproxy.proxy.senders import PIECE, STALL_TIMEOUT, Sending, limit_backlog
from clamproxy.proxy.takeover import LaneWriter
from clamproxy.storage.condition import trouble_of
from clamproxy.waiting import wait_while

_HTTP_1 = (None, b"", b"http/1.0", b"http/1.1")
"""The results of ALPN that mean HTTP/1."""

JOB = "clamproxy_job"
"""The name of the attribute of a flow that holds its `BodyJob`."""


@dataclass(eq=False)
class BodyJob(Sending):
    """A body on its way to one of mitmproxy's clients."""

    stream: BodyStream | None = field(default=None, repr=False)
    piece: bytes = field(default=b"", repr=False)
    """The next piece, if pieces go through mitmproxy's layers."""


@dataclass
class SendBodyHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """Asks the addon to send a whole body, by its ``send_body``."""

    job: BodyJob


@dataclass
class ReadPieceHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """Asks the addon for the next piece of a body, by its ``read_piece``."""

    job: BodyJob


class BodyStream(LimitedStream):
    """One request and its response; knows how to send a `BodyJob`."""

    def send_response(self, already_streamed: bool = False) -> layer.CommandGenerator[None]:
        """Send the response that the addon has set."""
        job: BodyJob | None = vars(self.flow).get(JOB)
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
        if _direct_tls(self) is None:
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
        """Close the connection: the client was given a Content-Length, so it notices and tries again."""
        self.flow.error = flow.Error(job.error or "body not sent")
        yield HttpErrorHook(self.flow)
        yield commands.CloseConnection(self.context.client)
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)


class BodyHttpLayer(HttpLayer):
    """An HTTP connection with `BodyStream` as its streams, and with limits for requests."""

    limits = HeadLimits()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        client = self.context.client
        if isinstance(event, events.Start) and client.alpn in _HTTP_1:
            # mitmproxy doesn't replace an existing entry.
            inlet = inlet_of(client)
            server = LimitedServer(self.context.fork(), self.limits, self.mode, inlet)
            self.connections.setdefault(client, server)
        elif isinstance(event, events.Start):
            leave_time(client)  # several requests can be under way
        yield from super()._handle_event(event)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Start a stream for a new request."""
        stream = BodyStream(self.context.fork(), stream_id)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())


def choose_layer(next_layer: layer.NextLayer) -> None:
    """Let mitmproxy choose the layer: its own NextLayer is asked only after script addons."""
    if next_layer.layer is None:
        next_layer.layer = _continuation(next_layer.context)
    if next_layer.layer is None:
        _addon("nextlayer").next_layer(next_layer)


def _continuation(context: Context) -> HttpLayer | None:
    """The layer that goes on with the HTTP that a client has spoken with the express lane; else None.

    mitmproxy would take what looks like TLS for that, as if it were the first on the connection.
    """
    writer = _lane_writer(context.client)
    if writer is None or not writer.past.speaks_http:
        return None
    tunnels = sum(isinstance(one, HttpLayer) for one in context.layers)
    if tunnels != (0 if writer.past.tunnel is None else 1):
        return None
    is_proxy = not tunnels and not isinstance(context.client.proxy_mode, mode_specs.ReverseMode)
    return HttpLayer(context, HTTPMode.regular if is_proxy else HTTPMode.transparent)


def install(top: layer.Layer | None, limits: HeadLimits) -> None:
    """Make the HTTP layers of a connection send bodies from disk, and limit what they receive.

    Args:
        top: the choice of a ``next_layer`` hook; reverse mode gives a complete stack.
        limits: for the heads of requests.
    """
    current: Any = top
    while current is not None:
        if type(current) is HttpLayer:
            current.__class__ = BodyHttpLayer
            setattr(current, "limits", limits)  # noqa: B010  (mypy still takes it for an HttpLayer)
        current = current.__dict__.get("child_layer")


def check_internals() -> None:
    """Check that this version of mitmproxy has what this module relies on.

    Raises:
        RuntimeError: something is missing.
    """
    expected = {
        HttpLayer: ("_handle_event", "make_stream", "event_to_child"),
        Http1Server: (
            *("_handle_event", "read_headers", "read_body", "wait", "mark_done", "send", "make_pipe"),
            *("done", "request_done", "response_done"),
        ),
        HttpStream: (
            *("send_response", "check_killed", "check_body_size"),
            *("flow_done", "state_done", "state_errored"),
        ),
        SSL.Connection: ("sendall", "bio_read"),
    }
    require(expected)


async def send_body(job: BodyJob) -> None:
    """Send a body to the client's transport. Sets `sent`, and `error` if not all of it was sent."""
    assert job.stream is not None  # noqa: S101  (set by the stream that asks)
    tls = _direct_tls(job.stream)
    try:
        writer = _writer(job.stream)
    except KeyError as error:  # the connection is gone
        job.error = f"KeyError: {error}"
        job.body.source.close()
        return
    await senders.send_body(job, writer, tls[0] if tls else None)


async def read_piece(job: BodyJob) -> None:
    """Read the next piece of a body once there is room for it in the client's buffer."""
    source, body = job.body.source, job.body
    assert job.stream is not None  # noqa: S101
    try:
        writer = _writer(job.stream)
        limit_backlog(writer)
        async with asyncio.timeout(STALL_TIMEOUT):
            await writer.drain()
        offset = body.start + job.sent
        end = min(await source.wait(offset), body.start + body.length, offset + PIECE)
        if job.share is not None:
            end = min(end, offset + job.share.turn)
        job.piece = os.pread(source.fileno(), end - offset, offset)
        if job.share is not None:
            await job.share.pay(len(job.piece), is_last=job.sent + len(job.piece) == body.length)
    except (SourceError, OSError, KeyError) as error:
        job.piece, job.error = b"", f"{type(error).__name__}: {error}"
        if trouble_of(error) is not None:
            source.distrust()
    if job.error is not None or job.sent + len(job.piece) == body.length:
        source.close()


def _addon(name: str) -> Any:
    return ctx.master.addons.get(name)  # type: ignore[no-untyped-call]


def close(client: connection.Client) -> None:
    """Close a client's connection once everything written has been sent.

    mitmproxy forgets to do so if a command to close comes while it waits to handle what it has read.
    """
    with suppress(KeyError):
        _client_writer(client).close()


def cut(client: connection.Client, server: connection.Server) -> None:
    """Cut the connection that mitmproxy has opened to a server for a client."""
    writer = _addon("proxyserver").connections[client.id].transports[server].writer
    writer.transport.abort()


async def all_gone(limit: float) -> None:
    """Wait until mitmproxy has done with all TCP connections of clients.

    Args:
        limit: how many seconds to wait at most.
    """
    handlers = _addon("proxyserver").connections
    await wait_while(
        lambda: [one for one in handlers.values() if one.client.transport_protocol == "tcp"],
        limit,
        every=0.01,
    )


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


def inlet_of(client: connection.Client) -> Inlet | None:
    """By which a client's bytes reach mitmproxy; None if it has no TCP connection."""
    with suppress(KeyError):
        reader = _addon("proxyserver").connections[client.id].transports[client].reader
        return reader if isinstance(reader, Inlet) else None
    return None


def leave_time(client: connection.Client) -> None:
    """Let a client take its time: it uploads to a host, or only mitmproxy knows what it waits for.

    mitmproxy still closes its connection if nothing moves in either direction.
    """
    if (inlet := inlet_of(client)) is not None:
        inlet.is_busy = True


def tls_of_lane(client: connection.Client) -> SSL.Connection | None:
    """The TLS that the express lane has established with a client before it handed it over."""
    writer = _lane_writer(client)
    return writer.tls if writer is not None else None


def _lane_writer(client: connection.Client) -> LaneWriter | None:
    """The writer of a client that was in the express lane; None for others."""
    with suppress(KeyError):
        writer = _client_writer(client)
        return writer if isinstance(writer, LaneWriter) else None
    return None


def _direct_tls(stream: BodyStream) -> list[SSL.Connection] | None:
    """The TLS (empty if plain) under a stream whose body can go straight to the transport; else None."""
    tls = [found.tls for found in stream.context.layers if isinstance(found, ClientTLSLayer)]
    if (outer := tls_of_lane(stream.context.client)) is not None:
        tls.append(outer)
    if len(tls) > 1 or stream.flow.request.is_http2 or stream.flow.request.is_http3:
        return None
    return tls


def job_of(flow: HTTPFlow) -> BodyJob | None:
    """The body that follows a flow's response, if it is sent from disk."""
    job = vars(flow).get(JOB)
    return job if isinstance(job, BodyJob) else None
