"""One connection of the express lane: reads requests, has the front answer them, and sends the responses."""

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

from clamproxy.front import TUNNEL_PORTS, Caller, ClientRequest, Destination, Exchange
from clamproxy.messages import Body, Response
from clamproxy.proxy.door import Leave, Prompt
from clamproxy.proxy.lane import HandOver, Lane, LanePast
from clamproxy.proxy.lane_tls import Session, Tunnel, UnfitError
from clamproxy.proxy.ordinary import read_head
from clamproxy.proxy.patience import READ, Wait, read_little
from clamproxy.proxy.senders import Sending, send_body

logger = logging.getLogger(__name__)

LONGEST_HEAD = 4096
"""Bytes; freshclam's have about 300. Requests with a longer head go to mitmproxy."""
MOST_READS = 4
"""Reads within which a head must be complete. Slower requests go to mitmproxy."""
MOST_AHEAD = READ
"""Bytes of further requests after which no more is read until the client has had its response."""

_TLS = b"\x16"
"""The first byte of TLS: RFC 8446 5.1."""
_BEGINNINGS = frozenset(b"CGH")
"""The first letters of CONNECT, GET and HEAD."""
_OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_SERVED = (Destination.DATABASES, Destination.PAGES, Destination.FILES, Destination.FEED)


class LaneConnection(Prompt):
    """A client's connection while it is in the lane; the `Outlet` for the bodies sent to it.

    Args:
        leave: called when the connection is gone, unless it was handed over.
        hand_over: hands it to mitmproxy.
        server: host and port of the server that the gateway stands in for here; None if it is a proxy.
    """

    transport: asyncio.Transport

    def __init__(
        self, lane: Lane, leave: Leave, hand_over: HandOver, server: tuple[str, int] | None = None
    ) -> None:
        self._lane = lane
        self._front = lane.front
        self._leave = leave
        self._hand_over = hand_over
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._unsent = b""
        """The rest of a response that was started at the door."""
        self._reads = 0
        """Reads since the last complete head."""
        self._wait = Wait()
        self._tunnel: Tunnel | None = None
        self._speaks_http = False
        """See `LanePast`."""
        self._work: asyncio.Task[Any] | None = None
        """The work that the next request has to wait for."""
        self._is_sending = False
        self._is_open = True
        """Whether requests are accepted: the connection was neither closed nor handed over."""
        self._closes = False
        """Whether the connection is closed after the response."""
        self._has_ended = False
        """Whether the client has said that it won't send any more. It may still wait for its response."""
        self._is_full = False
        """Whether the client must read some of what was written before it gets more."""
        self._room: asyncio.Future[None] | None = None

    # Called by the door and by asyncio

    def answer_at_door(self, client: socket.socket) -> bool:
        """Answer a request that is alone on its connection, as freshclam's are, from memory."""
        try:
            self._buffer = data = client.recv(LONGEST_HEAD)
            self._caller = self._caller_at(client.getpeername(), client.getsockname())
        except OSError:  # nothing has come yet, or the client has left: the transport will see
            return False
        self._reads = 1
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end < len(data):
            return False
        request = self._safely(self._request, data)
        if request is None or request.method == "CONNECT" or not self._closes:
            return False
        exchange = self._front.answer_at_once(request)
        if exchange is None or isinstance(exchange.response.body, Body):
            return False
        answer, self._buffer = self._head(exchange.response) + exchange.response.body, b""
        try:
            answer = answer[client.send(answer) :]
        except BlockingIOError:  # the client can't take anything yet
            pass
        except OSError:
            exchange.end(0, "the client has left")
            return True
        exchange.end(exchange.response.length)
        self._unsent = answer
        return not answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.transport = transport
        read_little(transport)
        self._lane.connections.add(self)
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer is None:  # the client has left already
            transport.abort()
            return
        if self._unsent:
            transport.write(self._unsent)
            self._close()
            return
        self._caller = self._caller_at(peer, own)
        if self._buffer:
            self._go_on()

    def _caller_at(self, peer: tuple[str, int], own: tuple[str, int]) -> Caller:
        return Caller(peer[0], own[0], own[1], is_reverse=self._server is not None)

    def data_received(self, data: bytes) -> None:
        self._wait.heard()
        if (session := self._session) is not None:
            data = self._decrypted(session, data)
        self._buffer += data
        self._reads += bool(data)
        self._go_on()
        if len(self._buffer) > MOST_AHEAD and self._is_open:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Answer the requests that are left. Returns True: asyncio keeps the connection open for that."""
        self._has_ended = True
        self._go_on()
        return True

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wait.begin_again()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._go_on()

    def connection_lost(self, _: Exception | None) -> None:
        self._is_open = False
        self._lane.connections.discard(self)
        self._leave()
        if self._work is not None and self._is_sending:  # others may wait for what is not sent yet
            self._work.cancel()

    async def drain(self) -> None:
        if self.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if self._is_full:
            self._room = self._loop.create_future()
            await self._room

    # Its end

    def end_if_silent_since(self, moment: float) -> None:
        """Close it if no response is on its way, and no request has been completed since."""
        if self._work is not None or not self._wait.is_over(self.transport, moment):
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._close()

    def cut(self) -> None:
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
        past = LanePast(self._tunnel, self._speaks_http, self._has_ended)
        received, self._buffer = self._buffer, b""
        self._hand_over(self.transport, received, past)

    # Requests

    def _go_on(self) -> None:
        """Take the next request, if there is one; those after it let other connections take a turn first."""
        if not self._is_open or self._work is not None or self._is_full:
            return
        is_tls = self._buffer[:1] == _TLS and self._session is None and not self._speaks_http
        if is_tls and self._tunnel is not None:
            self._start_tls(self._tunnel)
        if self._buffer and self._take_next() and self._buffer:
            self._loop.call_soon(self._go_on)
        else:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        if not self._is_open or self._work is not None or self._is_full:
            return
        if self._has_ended:
            self._close()
        elif not self.transport.is_reading():  # the client had to read its responses first
            self.transport.resume_reading()

    def _take_next(self) -> bool:
        """Take a request. False if none is complete yet, or if the connection was handed over."""
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            begun = self._buffer
            has_bare_lf = begun.count(b"\n") > begun.count(b"\r\n")
            is_odd = has_bare_lf or begun[0] not in _BEGINNINGS or len(begun) > LONGEST_HEAD
            if is_odd or self._reads >= MOST_READS or self._has_ended:
                self._give_away()
            return False
        raw, self._buffer, self._reads = self._buffer[:end], self._buffer[end:], 0
        self._wait.begin_again()
        if self._take(raw):
            return True
        self._buffer = raw + self._buffer
        self._give_away()
        return False

    def _take(self, raw: bytes) -> bool:
        """Start to answer a request; False if it isn't for the lane."""
        front = self._front
        if (request := self._safely(self._request, raw)) is None:
            return False
        ready = front.answer_at_once(request) if request.method != "CONNECT" else None
        if ready is None and not self._safely(self._is_served, request):
            return False
        self._speaks_http = True
        if ready is not None:
            self._respond(ready)
        elif request.method != "CONNECT":
            self._run(front.answer(request), self._respond)
        elif front.opens_at_once(request):
            self._enter_tunnel(request, Tunnel(raw, request.host), None)
        else:
            tunnel = Tunnel(raw, request.host)
            self._run(front.open_tunnel(request), partial(self._enter_tunnel, request, tunnel))
        return True

    def _safely[A, R](self, decide: Callable[[A], R], subject: A) -> R | None:
        try:
            return decide(subject)
        except Exception:
            logger.exception("A request from %s failed.", self._caller.address)
            return None  # a bug here must not let anything through: mitmproxy answers

    def _request(self, raw: bytes) -> ClientRequest | None:
        """Read a head; None if the request isn't an ordinary one."""
        settings = self._front.settings
        if settings is None:
            return None
        access, length = settings.access, len(raw)
        if length > LONGEST_HEAD or length > access.max_request_line or length > access.max_header_size:
            return None
        if (read := read_head(raw)) is None:
            return None
        head, fields = read
        if not head.host:
            scheme, host, port = self._place()
        elif self._server is None and self._tunnel is None:
            scheme, host, port = head.scheme, head.host, head.port
        else:
            return None
        self._closes = head.closes
        caller, now = self._caller, time.monotonic()
        return self._front.attribute(
            ClientRequest(head.method, head.path, fields, scheme, host, port, caller=caller, started_at=now)
        )

    def _is_served(self, request: ClientRequest) -> bool:
        routing = self._front.routing
        if routing is None:
            return False
        if request.method == "CONNECT":
            if request.port == request.caller.own_port and routing.is_for_gateway(request):
                return not request.caller.is_reverse  # for files of the site
            return request.port in TUNNEL_PORTS and routing.settings.serving.is_clamav_host(request.host)
        return self._tunnel is not None or routing.destination(request) in _SERVED

    def _place(self) -> tuple[str, str, int]:
        """The scheme, host and port of a request in origin form."""
        if self._caller.tunnel is not None:
            return "http" if self._session is None else "https", *self._caller.tunnel
        if self._server is not None:
            return "http", *self._server
        return "", self._caller.own_address, self._caller.own_port

    def _run[T](self, coroutine: Coroutine[Any, Any, T], then: Callable[[T], None]) -> None:
        """Run a coroutine, then pass on its result: immediately if it doesn't have to wait for anything."""
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

    # Responses

    def _enter_tunnel(self, request: ClientRequest, tunnel: Tunnel, refusal: Exchange | None) -> None:
        if refusal is not None:
            self._respond(refusal)
        elif self._is_open:
            self._caller, self._tunnel, self._speaks_http = request.caller, tunnel, False
            self._wait.begin_again()
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
        head = self._head(response)
        if isinstance(body, Body):
            self._write(head)
            self._run(self._send(exchange, body), lambda sent: self._finish(is_complete=sent))
        else:
            self._write(head + body)
            exchange.end(len(body))
            self._finish(is_complete=True)

    def _head(self, response: Response) -> bytes:
        end = b"Connection: close\r\n\r\n" if self._closes else b"\r\n"
        return _STATUS_LINES[response.status] + response.lines + end

    async def _send(self, exchange: Exchange, body: Body) -> bool:
        """Send a body; returns whether all of it was sent."""
        sending = Sending(body, exchange.share)
        self._is_sending = True
        try:
            with self._front.answering():
                session = self._session
                await send_body(sending, self, session.connection if session is not None else None)
        finally:
            self._is_sending = False
            exchange.end(sending.sent, sending.error or ("" if sending.complete else "the client has left"))
        return sending.complete

    def _finish(self, *, is_complete: bool) -> None:
        self._wait.begin_again()
        if not is_complete:
            self._is_open = False
            self.transport.close()  # from the Content-Length, the client can tell and try again
        elif self._closes or self._lane.is_stopping:
            self._close()

    def _write(self, data: bytes) -> None:
        session = self._session
        try:
            self.transport.write(data if session is None else session.encrypt(data))
        except SSL.Error:  # for example, the client has ended TLS
            self._is_open = False
            self.transport.abort()

    # TLS

    @property
    def _session(self) -> Session | None:
        """The TLS session inside the tunnel, once it has started."""
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
        """Decrypt what has arrived, as far as that is possible yet."""
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
        self._caller.certified_by = session.certified_by
        self._has_ended = self._has_ended or session.has_ended
        return said
