"""The admin listener: serves the gateway's pages on an address of their own, without the proxy."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from weakref import WeakSet

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import bind_sockets
from werkzeug.datastructures import Headers
from werkzeug.http import parse_set_header

from clamproxy.config.units import KIB, Endpoint
from clamproxy.messages import Request
from clamproxy.responses import complete
from clamproxy.web.pages import Pages

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 64
"""Connections at a time; further ones are closed."""
LARGEST_HEADER = 16 * KIB
"""Size limit of a request line and its header fields, in bytes."""
IDLE_TIMEOUT = 60.0
"""How long a connection may wait for a request or take to send one, in seconds."""
BACKLOG = 64

type OpenPort = Callable[[str, int], list[socket.socket]]
"""Gives the sockets of a host and a port. Raises OSError if the system doesn't allow it."""


def open_port(host: str, port: int) -> list[socket.socket]:
    """Sockets that this process alone uses."""
    return bind_sockets(port, host)


class Listener:
    """Accepts connections and passes their requests to the pages. Event loop only."""

    def __init__(self, endpoint: Endpoint, site: Pages, open_port: OpenPort = open_port) -> None:
        self._endpoint = endpoint
        self._site = site
        self._open_port = open_port
        self._sockets: list[socket.socket] = []
        self._server: _Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self.port = endpoint.port
        """The port that it listens on; differs from the endpoint's if that is 0."""

    def succeed(self, former: Listener | None) -> None:
        """Open the port while another listener still serves; nobody is answered until `start`.

        Args:
            former: what listens until then. At the same endpoint, both have the same sockets, so that no
                connection is lost, and no other program gets the port in between.

        Raises:
            OSError: the system doesn't allow it; then the former one goes on.
        """
        if former is None or not former._sockets:
            self._open()
        elif former._endpoint == self._endpoint:
            self._sockets = [one.dup() for one in former._sockets]
        else:
            self._open_beside(former)

    def _open_beside(self, former: Listener) -> None:
        try:
            self._open()
        except OSError:
            if former.port != self._endpoint.port:
                raise
        else:
            return
        # All addresses instead of one, for example: the former one itself is in the way. Not while the error
        # is handled: its traceback holds on to the sockets that could be opened.
        former.stop()
        try:
            self._open()
        except OSError:
            former.start()
            raise

    def _open(self) -> None:
        sockets = self._open_port(self._endpoint.host, self.port)
        try:
            for one in sockets:
                one.listen(BACKLOG)
        except OSError:
            _close(sockets)
            raise
        self._sockets = sockets

    def start(self) -> bool:
        """Start to listen, unless `succeed` has done so, and to answer; returns whether that worked.

        A failure is only logged: the proxy matters more than its pages.
        """
        try:
            if not self._sockets:
                self._open()
        except OSError as error:
            reason = error.strerror or error
            logger.warning("Can't listen at status.listen, %s: %s.", self._endpoint, reason)
            return False
        self.port = self._sockets[0].getsockname()[1]
        self._server = _Server(
            self._take,
            max_header_size=LARGEST_HEADER,
            max_buffer_size=4 * LARGEST_HEADER,
            max_body_size=0,
            idle_connection_timeout=IDLE_TIMEOUT,
            body_timeout=IDLE_TIMEOUT,
        )
        self._server.add_sockets(self._sockets)
        logger.info("Status pages: http://%s/", Endpoint(self._endpoint.host, self.port))
        return True

    def stop(self) -> None:
        """Stop listening, and close all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            server.close_streams()
        _close(self._sockets)
        self._sockets = []
        for task in self._answering:
            task.cancel()

    def _take(self, request: HTTPServerRequest) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(request), name="status page")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, request: HTTPServerRequest) -> None:
        headers = Headers(list(request.headers.get_all()))
        peer, path = request.remote_ip or "", request.path
        if request.query:
            path += f"?{request.query}"
        asked = Request(request.method or "", path, headers)
        response = await self._site.handle(asked, peer=peer)
        complete(response, asked.method)
        fields = HTTPHeaders()
        for name, value in response.headers:
            fields.add(name, value)
        body = response.body if isinstance(response.body, bytes) else b""
        # tornado recognises "close" only if it is the whole value of a single field.
        is_last = "close" in parse_set_header(", ".join(headers.getlist("Connection")))
        if is_last:
            fields["Connection"] = "close"
        line = ResponseStartLine("HTTP/1.1", response.status, HTTPStatus(response.status).phrase)
        connection = request.connection
        if not isinstance(connection, HTTP1Connection):
            return
        try:
            async with asyncio.timeout(IDLE_TIMEOUT):
                written = connection.write_headers(line, fields, body)
                connection.finish()
                await written
            if is_last:
                connection.close()
        except TimeoutError:  # the client doesn't read
            connection.stream.close()
        except StreamClosedError:
            pass  # the client has left


def _close(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        one.close()


class _Server(HTTPServer):
    """tornado's server with a limit on connections, and without waiting for them at the end."""

    def initialize(self, *arguments: object, **options: object) -> None:
        super().initialize(*arguments, **options)  # type: ignore[arg-type]
        self._streams: WeakSet[IOStream] = WeakSet()

    def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        if sum(1 for other in self._streams if not other.closed()) >= MOST_CONNECTIONS:
            stream.close()
            return
        self._streams.add(stream)
        super().handle_stream(stream, address)

    def close_streams(self) -> None:
        for stream in list(self._streams):
            stream.close()
