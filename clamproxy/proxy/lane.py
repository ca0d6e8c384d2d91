"""The express lane: a small HTTP/1 server in front of mitmproxy, for what machines ask of the gateway itself.

It answers ordinary requests only. Anything else makes it hand the connection to mitmproxy, with the bytes
that were already read: at the first request or a later one, also in a tunnel, when no answer is on its way.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from OpenSSL import SSL

from clamproxy.front import TUNNEL_PORTS, Asked, Caller, Destination, Exchange, Front
from clamproxy.messages import Body
from clamproxy.proxy.door import Leave
from clamproxy.proxy.lane_tls import Session, Tunnel, UnfitError
from clamproxy.proxy.ordinary import read_head
from clamproxy.proxy.senders import STALL_TIMEOUT, Sending, send_body
from clamproxy.waiting import wait_while

logger = logging.getLogger(__name__)

LONGEST_HEAD = 4096
"""Bytes; freshclam's have about 300. Requests with longer ones go to mitmproxy."""
MOST_READS = 4
"""Reads within which a head must be complete; slower ones go to mitmproxy."""
MOST_AHEAD = 64 * 1024
"""Bytes of further requests that are read while a client waits for its answer."""
PATIENCE_AT_LIMIT = 5.0
"""Seconds after which an idle connection is closed while other clients wait to connect."""

_TLS = b"\x16"
"""The first byte of TLS: RFC 8446 5.1."""
_BEGINNINGS = frozenset(b"CGH")
"""First letters of CONNECT, GET and HEAD."""
_OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_SERVED = (Destination.DATABASES, Destination.PAGES, Destination.FEED)


type HandOver = Callable[[asyncio.Transport, bytes, Tunnel | None, bool], None]
"""Gives a connection to mitmproxy. Arguments: its transport; what the client has sent without an answer yet,
decrypted; the tunnel that it is in, if any; and whether the client has said that it sends no more."""


class Lane:
    """All connections of the express lane."""

    def __init__(self, front: Front, context_for: Callable[[str], SSL.Context | None]) -> None:
        """Prepare.

        Args:
            front: answers the requests.
            context_for: gives the TLS context for a host; None if mitmproxy has to speak TLS there.
        """
        self.front = front
        self.context_for = context_for
        self.connections: set[LaneConnection] = set()
        self.is_stopping = False
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on, close idle connections."""
        self._sweeping = asyncio.create_task(self._sweep(), name="express lane: idle connections")

    def end_idle(self) -> None:
        """Close connections without a request now, and all others after their answers."""
        self.is_stopping = True
        for connection in list(self.connections):
            connection.end_if_silent_since(time.monotonic())

    async def end_all(self, limit: float) -> None:
        """Close all connections now, and wait until they are gone, but no longer than `limit` seconds."""
        for connection in list(self.connections):
            connection.cut()
        await wait_while(lambda: self.connections, limit, every=0.01)
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _sweep(self) -> None:
        """Close connections that are silent too long. One look at all is cheaper than a timer for each."""
        while True:
            await asyncio.sleep(1)
            settings = self.front.settings
            patience = settings.access.idle_timeout if settings is not None else PATIENCE_AT_LIMIT
            if self.front.limits.is_full:
                patience = min(patience, PATIENCE_AT_LIMIT)
            for connection in list(self.connections):
                connection.end_if_silent_since(time.monotonic() - patience)


class LaneConnection(asyncio.Protocol):
    """A client's connection while it is in the lane; the `Outlet` for the bodies sent to it."""

    transport: asyncio.Transport

    def __init__(
        self, lane: Lane, leave: Leave, hand_over: HandOver, server: tuple[str, int] | None = None
    ) -> None:
        """Prepare.

        Args:
            lane: what it belongs to.
            leave: called when it is gone, unless it was handed over.
            hand_over: gives it to mitmproxy.
            server: host and port of the server in whose place the gateway answers here; None: it is a proxy.
        """
        self._lane = lane
        self._leave = leave
        self._hand_over = hand_over
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._reads = 0
        """Reads since the last head was complete."""
        self._quiet_since = time.monotonic()
        self._tunnel: Tunnel | None = None
        self._work: asyncio.Task[Any] | None = None
        """What the next request has to wait for."""
        self._is_sending = False
        self._is_open = True
        """Whether requests are taken: it was neither closed nor handed over."""
        self._closes = False
        """Whether it is closed after the answer."""
        self._has_ended = False
        """Whether the client has said that it sends no more; it may still wait for its answer."""
        self._is_full = False
        """Whether the client must take some of what was written before it gets more."""
        self._room: asyncio.Future[None] | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.transport = transport
        self._lane.connections.add(self)
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer is None:  # it has left already
            transport.abort()
            return
        self._caller = Caller(peer[0], own[0], own[1], is_reverse=self._server is not None)

    def data_received(self, data: bytes) -> None:
        """Take in what the client has sent."""
        self._quiet_since = time.monotonic()
        if (session := self._session) is not None:
            data = self._decrypted(session, data)
        self._buffer += data
        self._reads += bool(data)
        self._go_on()
        if len(self._buffer) > MOST_AHEAD and self._is_open:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Answer what the client has asked for; it sends no more."""
        self._has_ended = True
        self._go_on()
        return True

    def pause_writing(self) -> None:
        """Wait: the client takes less than it gets."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Go on: the client has taken most of what was written."""
        self._is_full = False
        self._quiet_since = time.monotonic()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._go_on()

    def connection_lost(self, _: Exception | None) -> None:
        """Clean up: the connection is gone."""
        self._is_open = False
        self._lane.connections.discard(self)
        self._leave()
        if self._work is not None and self._is_sending:  # others may wait for what is not sent yet
            self._work.cancel()

    async def drain(self) -> None:
        """Wait until there is room for more, as `Outlet` has it."""
        if self.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if self._is_full:
            self._room = self._loop.create_future()
            await self._room

    # Its end

    def end_if_silent_since(self, moment: float) -> None:
        """Close it if it is idle: no answer is on its way, and nothing has come since (monotonic seconds)."""
        if self._work is not None:
            return
        if not self.transport.get_write_buffer_size():
            if self._quiet_since <= moment:
                self._close()
        elif self._quiet_since <= min(moment, time.monotonic() - STALL_TIMEOUT):
            self.transport.abort()

    def cut(self) -> None:
        """Close it, whatever is on its way."""
        if self._work is None:
            self._close()
            return
        # Not abort(): asyncio stumbles over a transport that is lost in the middle of sendfile.
        with suppress(OSError):
            self.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        self._is_open = False
        if (session := self._session) is not None:
            self.transport.write(session.end())
        self.transport.close()

    def _give_away(self) -> None:
        self._is_open = False
        self._lane.connections.discard(self)
        if not self.transport.is_reading() and not self._has_ended:
            self.transport.resume_reading()
        self._hand_over(self.transport, self._buffer, self._tunnel, self._has_ended)

    # Requests

    def _go_on(self) -> None:
        """Take the next request if it is there, and those behind it when others have had their turn."""
        if not self._is_open or self._work is not None or self._is_full:
            return
        if self._buffer[:1] == _TLS and self._tunnel is not None and self._session is None:
            self._start_tls(self._tunnel)
        if self._buffer and self._take_next():
            self._loop.call_soon(self._go_on)
        else:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        if not self._is_open:
            return
        if self._has_ended:
            self._close()
        elif not self.transport.is_reading():  # the client had to take answers first
            self.transport.resume_reading()

    def _take_next(self) -> bool:
        """Take a request, or hand the connection over. False if it was, or if no request is there yet."""
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            begun = self._buffer
            has_bare_lf = begun.count(b"\n") > begun.count(b"\r\n")
            is_odd = has_bare_lf or begun[0] not in _BEGINNINGS or len(begun) > LONGEST_HEAD
            if is_odd or self._reads >= MOST_READS or self._has_ended:
                self._give_away()
            return False
        raw = self._buffer[:end]
        try:
            asked, closes = self._asked(raw)
        except Exception:
            logger.exception("A request from %s failed.", self._caller.address)
            asked = None  # a bug here must let nothing through: mitmproxy answers
        if asked is None:
            self._give_away()
            return False
        self._buffer, self._reads, self._closes = self._buffer[end:], 0, closes
        if asked.method == "CONNECT":
            then = partial(self._enter_tunnel, Tunnel(raw, asked.host))
            self._run(self._lane.front.open_tunnel(asked), then)
        elif (ready := self._lane.front.answer_at_once(asked)) is not None:
            self._respond(ready)
        else:
            self._run(self._lane.front.answer(asked), self._respond)
        return True

    def _asked(self, raw: bytes) -> tuple[Asked | None, bool]:
        """Read a head: the request, None if it isn't for the lane; whether to close after the answer."""
        front = self._lane.front
        service, routing = front.service, front.routing
        if service is None or routing is None:
            return None, False
        access = service.settings.access
        if len(raw) > min(LONGEST_HEAD, access.max_request_line, access.max_header_size):
            return None, False
        head = read_head(raw)
        is_proxy = self._server is None and self._tunnel is None
        if head is None or (head.host and not is_proxy):
            return None, False
        scheme, host, port = (head.scheme, head.host, head.port) if head.host else self._place()
        asked = Asked(
            method=head.method,
            path=head.path,
            headers=head.headers,
            scheme=scheme,
            host=host,
            port=port,
            caller=self._caller,
            started_at=time.monotonic(),
        )
        if head.method == "CONNECT":
            is_served = port in TUNNEL_PORTS and service.settings.serving.is_clamav_host(host)
        else:
            is_served = not head.host or routing.destination(asked) in _SERVED
        return (asked if is_served else None), head.closes

    def _place(self) -> tuple[str, str, int]:
        """Scheme, host and port of a request in origin form."""
        if self._caller.tunnel is not None:
            return "http" if self._session is None else "https", *self._caller.tunnel
        if self._server is not None:
            return "http", *self._server
        return "", self._caller.own_address, self._caller.own_port

    def _run[T](self, coroutine: Coroutine[Any, Any, T], then: Callable[[T], None]) -> None:
        """Run a coroutine, then pass on its result; at once if it doesn't have to wait for anything."""
        task = asyncio.Task(coroutine, loop=self._loop, eager_start=True)
        if task.done():
            then(task.result())
            return
        self._work = task
        task.add_done_callback(partial(self._done, then))

    def _done[T](self, then: Callable[[T], None], task: asyncio.Task[T]) -> None:
        self._work = None
        if not task.cancelled():
            then(task.result())
            self._go_on()

    # Answers

    def _enter_tunnel(self, tunnel: Tunnel, refusal: Exchange | None) -> None:
        if refusal is not None:
            self._respond(refusal)
        elif self._is_open:
            self._tunnel = tunnel
            self.transport.write(_OPEN)

    def _respond(self, exchange: Exchange) -> None:
        response = exchange.response
        body = response.body
        if not self._is_open:
            if isinstance(body, Body):
                body.source.close()
            exchange.end(0, "the client has left")
            return
        self._closes = self._closes or self._lane.is_stopping or (self._has_ended and not self._buffer)
        end = b"Connection: close\r\n\r\n" if self._closes else b"\r\n"
        head = _STATUS_LINES[response.status] + response.lines + end
        if isinstance(body, Body):
            self._write(head)
            self._run(self._send(exchange, body), self._finish)
        else:
            self._write(head + body)
            exchange.end(len(body))
            self._finish(True)

    async def _send(self, exchange: Exchange, body: Body) -> bool:
        """Send a body; returns whether all of it was sent."""
        sending = Sending(body)
        self._is_sending = True
        try:
            with self._lane.front.sending():
                session = self._session
                await send_body(sending, self, session.connection if session is not None else None)
        finally:
            self._is_sending = False
            exchange.end(sending.sent, sending.error or ("" if sending.complete else "the client has left"))
        return sending.complete

    def _finish(self, is_complete: bool) -> None:
        self._quiet_since = time.monotonic()
        if not is_complete:
            self._is_open = False
            self.transport.close()  # a Content-Length was given, so the client knows and tries again
        elif self._closes or self._lane.is_stopping:
            self._close()

    def _write(self, data: bytes) -> None:
        session = self._session
        try:
            self.transport.write(data if session is None else session.encrypt(data))
        except SSL.Error:  # the client has ended TLS, for example
            self._is_open = False
            self.transport.abort()

    # TLS

    @property
    def _session(self) -> Session | None:
        """The TLS inside the tunnel, once it has begun."""
        return self._tunnel.session if self._tunnel is not None else None

    def _start_tls(self, tunnel: Tunnel) -> None:
        context = self._lane.context_for(tunnel.host)
        if context is None:
            self._give_away()
            return
        tunnel.session = Session(context, tunnel.host)
        received, self._buffer = self._buffer, b""
        self._buffer = self._decrypted(tunnel.session, received)

    def _decrypted(self, session: Session, data: bytes) -> bytes:
        """Decrypt what has arrived, as far as that is possible by now."""
        try:
            said, to_send = session.receive(data)
        except UnfitError:
            assert self._tunnel is not None  # noqa: S101
            self._tunnel.session, self._buffer = None, session.heard
            self._give_away()
            return b""
        except SSL.Error as error:
            logger.warning("%s: %s", self._caller.address, session.explain(error))
            self._is_open = False
            self.transport.write(session.take())
            self.transport.close()
            return b""
        if to_send:
            self.transport.write(to_send)
        self._has_ended = self._has_ended or session.has_ended
        return said
