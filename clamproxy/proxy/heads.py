"""Limits on the heads of requests: mitmproxy would take any size, at any pace."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_error_response

MOST_AHEAD = 256 * 1024
"""Bytes of further requests that a client may send before it has its answer, besides a head."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """What a request line and header fields may take."""

    request_line: int = 8 * 1024
    """Bytes."""
    head: int = 32 * 1024
    """Bytes of the line and the fields together."""
    seconds: float = 120.0
    """From the first byte to the last one."""


class LimitedServer(Http1Server):
    """The server's side of an HTTP/1 connection, which refuses heads beyond the limits."""

    def __init__(self, context: Context, limits: HeadLimits) -> None:
        super().__init__(context)
        self._limits = limits
        self._began_at: float | None = None

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        # Whatever a client sends ahead of its turn is kept until then.
        if isinstance(event, events.DataReceived) and len(self.buf) > MOST_AHEAD + self._limits.head:
            yield commands.CloseConnection(self.conn)
            self.state = self.done
            return
        yield from super()._handle_event(event)

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Answer 414, 431 or 408 (RFC 9110 15.5, RFC 6585 5) and close, or go on as mitmproxy does."""
        refusal = self._refusal() if isinstance(event, events.DataReceived) else None
        if refusal is None:
            yield from super().read_headers(event)
            if self.state != self.read_headers:
                self._began_at = None
            return
        yield commands.SendData(self.conn, make_error_response(*refusal))
        yield commands.CloseConnection(self.conn)
        self.state = self.done

    def _refusal(self) -> tuple[int, str] | None:
        # What follows a head may be there already, but no more than mitmproxy reads at a time.
        received = bytes(self.buf)
        if not received:
            return None
        if self._began_at is None:
            self._began_at = time.monotonic()
        if _length(received, b"\n") > self._limits.request_line:
            return 414, "the request line is longer than access.max_request_line"
        length = min(_length(received, b"\r\n\r\n"), _length(received, b"\n\n"))
        if length > self._limits.head:
            return 431, "the header is larger than access.max_header_size"
        if length == len(received) and time.monotonic() - self._began_at > self._limits.seconds:
            return 408, "the header took longer than access.idle_timeout"
        return None


def _length(received: bytes, end: bytes) -> int:
    """Bytes up to an end that may be yet to come."""
    position = received.find(end)
    return len(received) if position < 0 else position
