"""The client's side of an HTTP/1 connection, where mitmproxy's own is too lenient or too strict.

It concerns heads and content of any size and at any pace, line ends and fields that RFC 9112 has a server
refuse, and how a connection ends. The syntax of a head is checked in `syntax`.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from http import HTTPStatus

from mitmproxy import flow, http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode, HttpStream, SendHttp, _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    HttpEvent,
    RequestHeaders,
    RequestProtocolError,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook
from werkzeug.http import http_date

from clamproxy.front import LARGEST_CONTENT
from clamproxy.messages import CACHE_STATUS, Result
from clamproxy.proxy.inlet import Inlet
from clamproxy.proxy.syntax import Refusal, check_head, options, unfold, with_path

MOST_AHEAD = 256 * 1024
"""How many bytes of content that can't be read yet may arrive, such as the rest of a line, besides a head."""
TOO_LARGE = "clamproxy_too_large"
"""The key of a mark in a flow's metadata: its request announces more content than is read."""
_EMPTY_LINES = re.compile(rb"(?:\r?\n)+")
_HOP_BY_HOP = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"te", b"upgrade"})
"""These concern one connection only, like the fields that Connection names (RFC 9110 7.6.1)."""
_END_TO_END = frozenset({b"host", b"content-length", b"transfer-encoding", b"via"})
"""Fields that Connection cannot make hop-by-hop: the framing, and those that loops are detected by."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Limits for the head of a request."""

    request_line: int = 8 * 1024
    """Length of the request line in bytes."""
    head: int = 32 * 1024
    """Length of the request line and fields together, in bytes."""
    seconds: float = 120.0
    """Time from the first byte of the head to the last."""


class LimitedServer(_http1.Http1Server):
    """Refuses, in the gateway's own words, what isn't HTTP/1.1 or exceeds the limits."""

    def __init__(
        self, context: Context, limits: HeadLimits, mode: HTTPMode, inlet: Inlet | None = None
    ) -> None:
        super().__init__(context)
        self._inlet = inlet
        self._limits = limits
        self._mode = mode
        self._began_at: float | None = None
        self._closes = False
        """Whether the client wants the connection to end with the response."""
        self._is_1_0 = False
        self._has_ended = False
        """Whether the client has finished sending; it may still wait for its response."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        # Whatever a client sends before its turn stays in the buffer.
        if isinstance(event, events.DataReceived) and len(self.buf) > MOST_AHEAD + self._limits.head:
            reason = "the client sent too much in advance"
            if self.state == self.read_body and not self.response:
                yield from self._say(413, reason)
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            if self.request is not None:
                yield ReceiveHttp(RequestProtocolError(self.stream_id, reason, ErrorCode.REQUEST_TOO_LARGE))
            return
        yield from super()._handle_event(event)

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Accept a request, or refuse it and close."""
        if not isinstance(event, events.DataReceived):
            yield from super().read_headers(event)
            return
        try:
            self._skip_empty_lines()
            self._hold_limits()
            lines = self.buf.maybe_extract_lines()
            if lines is None:
                if self._has_ended:  # the client did so while it waited for a response; no more will come
                    yield commands.CloseConnection(self.conn)
                    self.state = self.done
                return
            request = self._parse(unfold([bytes(line) for line in lines]))
        except Refusal as refusal:
            yield from self._refuse(refusal.status, str(refusal))
            return
        self._began_at = None
        self.request = request
        length = http1.expected_http_body_size(request)
        yield ReceiveHttp(RequestHeaders(self.stream_id, request, length == 0))
        self.body_reader = _http1.make_body_reader(length)
        self.state = self.read_body
        yield from self.state(event)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Say what is wrong with the framing before the connection is closed."""
        for command in super().read_body(event):
            if isinstance(command, commands.CloseConnection) and not self.request_done and not self.response:
                yield from self._log(400, "the content can't be read")
                yield from self._say(400, "the content can't be read")
                self.state = self.done
            yield command
        is_unfinished = self.state == self.read_body and not self.request_done
        if self._has_ended and is_unfinished and isinstance(event, events.DataReceived):
            yield from self.read_body(events.ConnectionClosed(self.conn))  # no more will come, as above

    def wait(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Let a client that has finished sending wait for its response, as ``nc -N`` does."""
        is_half_closed = isinstance(event, events.ConnectionClosed) and (
            event.connection.state is ConnectionState.CAN_WRITE
        )
        # Not for what is passed through: mitmproxy streams that, and would not notice if the client left.
        if is_half_closed and self.request is not None and not self.request.stream:
            self._has_ended = True
            return
        self._pace()
        yield from super().wait(event)

    def mark_done(self, *, request: bool = False, response: bool = False) -> layer.CommandGenerator[None]:
        """Note that a request, or its response, is complete."""
        yield from super().mark_done(request=request, response=response)
        self._pace()

    def _pace(self) -> None:
        """Read nothing more while a client that is ahead waits for its response."""
        if self._inlet is not None:
            self._inlet.is_busy = self.request_done and not self.response_done
            if self._inlet.is_busy and self.buf:
                self._inlet.hold()
            else:
                self._inlet.release()

    def make_pipe(self) -> layer.CommandGenerator[None]:
        """Open a tunnel, and tell the layer inside if the client has finished sending in the meantime.

        mitmproxy strips any CR and LF from what has arrived after CONNECT. Then the same bytes would have two
        meanings, by when they arrive; only empty lines are skipped here.
        """
        self._skip_empty_lines()
        self.state = self.passthrough
        if received := bytes(self.buf):
            self.buf.maybe_extract_at_most(len(received))
            yield from self.state(events.DataReceived(self.conn, received))
        if self._has_ended:
            yield from self.state(events.ConnectionClosed(self.conn))

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Send as mitmproxy does, after correcting what concerns only this connection."""
        if isinstance(event, ResponseProtocolError) and not self.response:
            status = event.code.http_status_code()
            if status is not None and self.conn.state & ConnectionState.CAN_WRITE:
                is_unreachable = event.code is ErrorCode.CONNECT_FAILED
                reason = f"the host can't be reached: {event.message}" if is_unreachable else event.message
                yield from self._say(status, reason)
                yield commands.CloseConnection(self.conn)
                self.state = self.done
                return
        if isinstance(event, ResponseHeaders) and self.request is not None:
            event = ResponseHeaders(event.stream_id, self._adapted(event.response), event.end_stream)
        yield from super().send(event)
        if self.response is not None and self.response.status_code < 200:
            self.response = None  # 100 (Continue) isn't the response: what follows may still be an error

    def _skip_empty_lines(self) -> None:
        """Skip empty lines before a request: some clients end the last one with too many (RFC 9112 2.2)."""
        received = bytes(self.buf)
        if received and self._began_at is None:
            self._began_at = time.monotonic()
        if empty := _EMPTY_LINES.match(received):
            self.buf.maybe_extract_at_most(empty.end())

    def _hold_limits(self) -> None:
        # The buffer may already contain what follows the head, but no more than mitmproxy reads at a time.
        received = bytes(self.buf)
        if _length(received, b"\n") > self._limits.request_line:
            raise Refusal(414, "the request line is longer than access.max_request_line")
        length = min(_length(received, b"\r\n\r\n"), _length(received, b"\n\n"))
        if length > self._limits.head:
            raise Refusal(431, "the header is larger than access.max_header_size")
        is_late = self._began_at is not None and time.monotonic() - self._began_at > self._limits.seconds
        if length == len(received) and is_late:
            raise Refusal(408, "the header took longer than access.idle_timeout")

    def _parse(self, lines: list[bytes]) -> http.Request:
        check_head(lines)
        request = self._read(lines)
        fields, headers = request.headers.fields, request.headers
        self._is_1_0 = request.http_version == "HTTP/1.0"
        self._closes = self._is_1_0 or b"close" in options(fields, b"connection")
        request.http_version = "HTTP/1.1"  # a proxy's own: RFC 9110 2.5
        has_content = "content-length" in headers or "transfer-encoding" in headers
        if self._is_1_0 or not has_content:
            headers.pop("expect", None)  # RFC 9110 10.1.1
        headers.pop("upgrade", None)  # never supported, and mitmproxy would log it
        # Bring these into the only form that mitmproxy accepts.
        if "content-length" in headers:
            headers["content-length"] = str(int(headers["content-length"]))
        if "transfer-encoding" in headers:
            headers["transfer-encoding"] = "chunked"
        self._direct(request)
        return request

    def _read(self, lines: list[bytes]) -> http.Request:
        lines[0], has_path = with_path(lines[0])
        try:
            request = http1.read_request_head(lines)
            request.data.authority.decode("ascii")  # mitmproxy accepts any Unicode digits in a port
        except ValueError:
            raise Refusal(400, "the target can't be read") from None
        if request.data.method == b"OPTIONS" and not has_path:
            request.data.path = b"*"  # RFC 9112 3.2.4
        return request

    def _direct(self, request: http.Request) -> None:
        """Determine where a request goes, by its form and by how it arrived (RFC 9112 3.2 and 3.3)."""
        data = request.data
        if data.authority and data.method != b"CONNECT":
            # Absolute form: Host is ignored.
            target, server = (data.host.lower(), data.port), self.context.server.address
            is_tunnel = self._mode is HTTPMode.transparent and not _is_reverse(self.context)
            if is_tunnel and server is not None and target != (server[0].lower(), server[1]):
                raise Refusal(421, f"this tunnel leads to {server[0]}:{server[1]}")
            request.headers["host"] = data.authority.decode("ascii")
            data.authority = b""
        elif not data.host and self._mode is not HTTPMode.transparent:
            # Origin form: the gateway itself is meant, whatever Host says. mitmproxy would follow Host.
            data.host, data.port = self.context.client.sockname[:2]

    def _adapted(self, response: http.Response) -> http.Response:
        assert self.request is not None  # noqa: S101  (the caller has checked)
        if response.status_code < 200 or (self.request.method == "CONNECT" and response.status_code < 300):
            return response
        if self.request.stream:
            response = response.copy()  # the connection to the host depends on the original
            response.http_version = "HTTP/1.1"
            drop_hop_by_hop(response.headers)
        if self._is_1_0 and "transfer-encoding" in response.headers:
            del response.headers["transfer-encoding"]  # it ends with the connection: RFC 9112 6.1
        if self._closes or (self._has_ended and not self.buf):
            response.headers["connection"] = "close"
        return response

    def _refuse(self, status: int, reason: str) -> layer.CommandGenerator[None]:
        yield from self._log(status, reason)
        yield from self._say(status, reason)
        yield commands.CloseConnection(self.conn)
        self.state = self.done

    def _log(self, status: int, reason: str) -> layer.CommandGenerator[None]:
        # mitmproxy adds the client's address.
        yield commands.Log(f"A request was refused: {status}, {reason}.", logging.WARNING)

    def _say(self, status: int, reason: str) -> layer.CommandGenerator[None]:
        yield commands.SendData(self.conn, _error(status, reason))


class LimitedStream(HttpStream):
    """One request and its response; mitmproxy would store content of any size until the response."""

    def check_body_size(self, request: bool) -> layer.CommandGenerator[bool]:
        """Refuse content of unannounced length once too much of it has arrived."""
        if request and len(self.request_body_buf) > LARGEST_CONTENT:
            yield from self._refuse_content()
            return True
        return (yield from super().check_body_size(request))

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        """Refuse content that is too large according to the head; the addon has marked it."""
        if self.flow.metadata.pop(TOO_LARGE, False):
            yield from self._refuse_content()
            return True
        return (yield from super().check_killed(emit_error_hook))

    def _refuse_content(self) -> layer.CommandGenerator[None]:
        reason = "the content of the request is too large"
        self.flow.error = flow.Error(reason)
        yield HttpErrorHook(self.flow)
        refusal = ResponseProtocolError(self.stream_id, reason, ErrorCode.REQUEST_TOO_LARGE)
        yield SendHttp(refusal, self.context.client)
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored


def drop_hop_by_hop(headers: http.Headers) -> None:
    """Remove the fields that concern only the connection on which they arrived."""
    named = {*options(headers.fields, b"connection")} - _END_TO_END
    headers.fields = tuple(field for field in headers.fields if field[0].lower() not in _HOP_BY_HOP | named)


def _is_reverse(context: Context) -> bool:
    return isinstance(context.client.proxy_mode, mode_specs.ReverseMode)


def _error(status: int, reason: str) -> bytes:
    body = f"clamproxy: {reason}\n".encode("ascii", "backslashreplace")
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Date: {http_date(time.time())}",
        "Connection: close",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        f"Cache-Status: {CACHE_STATUS[Result.REFUSED if status < 500 else Result.ERROR]}",
        "Via: 1.1 clamproxy",
    )
    return "\r\n".join((*head, "", "")).encode("ascii") + body


def _length(received: bytes, end: bytes) -> int:
    """How many bytes there are up to an end mark; all bytes if that hasn't arrived."""
    position = received.find(end)
    return len(received) if position < 0 else position
