"""A DNS-over-HTTPS server on loopback (RFC 8484), and an HTTP proxy that leads there by CONNECT."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import dns.message

from tests.support.dns_server import FakeDns

PATH = "/dns-query"


class FakeDoh:
    """Gives the answers of a fake DNS server over HTTPS. Use it as a context manager."""

    def __init__(self, dns_server: FakeDns, tls: ssl.SSLContext) -> None:
        self.dns = dns_server
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Method, and header fields with names in lower case, in order."""
        self.answer: dict[str, Any] = {}
        """What is different from a right answer: status, headers, body."""
        handler = type("Handler", (_DohHandler,), {"doh": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.url = f"https://localhost:{self.port}{PATH}"
        _serve(self._server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class ConnectProxy:
    """Tunnels to loopback, whatever name is asked for. Use it as a context manager."""

    def __init__(self, credentials: str | None = None) -> None:
        self.tunnels: list[str] = []
        """host:port of each CONNECT, in order."""
        self.credentials = credentials
        handler = type("Handler", (_ConnectHandler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        _serve(self._server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that leave, or that distrust the certificate."""


def _serve(server: ThreadingHTTPServer) -> None:
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass


class _DohHandler(_Handler):
    doh: FakeDoh
    timeout = 20

    def do_POST(self) -> None:
        doh = self.doh
        doh.requests.append(("POST", {name.lower(): value for name, value in self.headers.items()}))
        wire = self.rfile.read(int(self.headers["Content-Length"]))
        answer = doh.dns.answer(dns.message.from_wire(wire))
        body = doh.answer.get("body", answer.to_wire() if answer is not None else b"")
        self.send_response(doh.answer.get("status", 200))
        fields = {"Content-Type": "application/dns-message", "Content-Length": str(len(body))}
        for name, value in (fields | doh.answer.get("headers", {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _ConnectHandler(_Handler):
    proxy: ConnectProxy

    def do_CONNECT(self) -> None:
        expected = self.proxy.credentials
        if expected is not None:
            token = base64.b64encode(expected.encode()).decode()
            if self.headers.get("Proxy-Authorization") != f"Basic {token}":
                self.send_error(407)
                return
        self.proxy.tunnels.append(self.path)
        with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2])), 10) as server:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_copy, args=(server, self.connection), daemon=True)
            back.start()
            _copy(self.connection, server)
            back.join(10)
        self.close_connection = True


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
