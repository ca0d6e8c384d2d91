"""A parent proxy that wants NTLM or Negotiate; its side of the handshake is pyspnego's."""

from __future__ import annotations

import base64
import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import spnego
import spnego.exceptions

USER, PASSWORD = "SITE\\gateway", "s3cret pass"


class LoginProxy:
    """The proxy, for tunnels and for requests in absolute form. Use it as a context manager.

    Args:
        directory: for the file with the user.
        scheme: ``ntlm`` or ``negotiate``.
    """

    def __init__(self, directory: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scheme = scheme
        self.name = {"ntlm": "NTLM", "negotiate": "Negotiate"}[scheme]
        self.seen: list[str] = []
        """Each request: its method, and the status of the answer."""
        self.connections = 0
        users = directory / "users"
        domain, _, user = USER.partition("\\")
        users.write_text(f"{domain}:{user}:{PASSWORD}\n")
        monkeypatch.setenv("NTLM_USER_FILE", str(users))
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that leave."""


class _Handler(BaseHTTPRequestHandler):
    proxy: LoginProxy
    protocol_version = "HTTP/1.1"
    timeout = 20

    def setup(self) -> None:
        super().setup()
        self.proxy.connections += 1
        self._context: Any = None
        self._is_known = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        if not self._admits():
            return
        with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2])), 10) as server:
            self._note(200)
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_copy, args=(server, self.connection), daemon=True)
            back.start()
            _copy(self.connection, server)
            back.join(10)
        self.close_connection = True

    def do_GET(self) -> None:
        if not self._admits():
            return
        parts = urlsplit(self.path)
        connection = http.client.HTTPConnection("127.0.0.1", parts.port or 80, timeout=10)
        fields = {name: value for name, value in self.headers.items() if not name.startswith("Proxy-")}
        connection.request("GET", parts.path, headers=fields)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self._note(answer.status)
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _admits(self) -> bool:
        """Whether this connection is authenticated; else it is asked to go on."""
        if self._is_known:
            return True
        name, _, token = self.headers.get("Proxy-Authorization", "").partition(" ")
        challenge = b""
        if name == self.proxy.name:
            if self._context is None:
                self._context = spnego.server(protocol=self.proxy.scheme)
            try:
                challenge = self._context.step(base64.b64decode(token)) or b""
            except spnego.exceptions.SpnegoError:
                self._context = None
            else:
                if self._context.complete:
                    self._is_known = True
                    return True
        self._note(407)
        body = b"<h1>log in</h1>" * 100
        self.send_response(407)
        more = f" {base64.b64encode(challenge).decode()}" if challenge else ""
        self.send_header("Proxy-Authenticate", f"{self.proxy.name}{more}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return False

    def _note(self, status: int) -> None:
        self.proxy.seen.append(f"{self.command} {status}")


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
