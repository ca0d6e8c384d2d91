"""An object store for tests: a real server, and a relay before it that does what stores do wrong."""

from __future__ import annotations

import http.client
import http.server
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from typing import Any, Self

import pytest

from tests.support.gateway import held_port

BUCKET = "site"
SERVERS = pytest.mark.parametrize("object_store", ["moto", "seaweedfs"], indirect=True)
"""For tests of what works with any server; all others use moto, which starts faster."""
_MOTO = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

def one_after_another(self, put=S3Response.put_object, lock=threading.Lock()):
    with lock:
        return put(self)

S3Response.put_object = one_after_another
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""As it is, two of its threads may both find that an object isn't there, and both put it there."""
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host"})
_PIECE = 1 << 16


def credentials(port: int) -> dict[str, str]:
    """The environment for the store at a port of this machine."""
    return {
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def moto_server() -> Iterator[int]:
    """moto's S3 in a process of its own, without a bucket; gives its port."""
    with subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield port
        finally:
            process.kill()


@dataclass(slots=True)
class Faults:
    """What the store does wrong now; by default, nothing. May be changed at any time."""

    delay: float = 0.0
    """Seconds before each response."""
    is_stalled: bool = False
    """It accepts connections and requests, and answers none."""
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By method, or LIST: status and S3's code, such as ``{"PUT": (507, "InsufficientStorage")}``."""
    cut_after: int | None = None
    """The connection ends after so many bytes of a body."""
    rate: float | None = None
    """Bytes of a body per second."""
    change: bytes | None = None
    """Replaces the first bytes of each body of an object."""
    is_truncating: bool = False
    """Half of each body is left out, and Content-Length says so."""
    is_replaying: bool = False
    """GET and HEAD are answered as they were the first time."""
    clock: float = 0.0
    """Seconds by which its clock is ahead, as Last-Modified of objects shows it."""
    ignores: tuple[str, ...] = ()
    """Header fields of requests that it ignores, such as ``If-Match``."""


FULL = dict.fromkeys(("PUT", "POST"), (507, "InsufficientStorage"))
READ_ONLY = dict.fromkeys(("PUT", "POST", "DELETE"), (403, "AccessDenied"))
BROKEN = dict.fromkeys(("GET", "HEAD", "PUT", "POST", "DELETE"), (500, "InternalError"))


@dataclass(frozen=True, slots=True)
class Seen:
    """A request, as the store got it."""

    method: str
    path: str
    status: int


class ObjectStore:
    """A store with one empty bucket, of which the data stay while it is down. Use it as a context manager.

    Args:
        port: of the server with the data, which others may use with buckets of their own.
        bucket: its name; it is made.
    """

    def __init__(self, port: int, bucket: str = BUCKET) -> None:
        self.data_port = port
        self.bucket = bucket
        self.faults = Faults()
        self.seen: list[Seen] = []
        """All requests that were answered."""
        self._answers: dict[str, tuple[int, str, Any, bytes]] = {}
        self._connections: set[socket.socket] = set()
        make_bucket(port, bucket)
        self._holder = held_port()
        self.port: int = self._holder.getsockname()[1]
        self._server = self._serve()

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/prefix"

    @property
    def environment(self) -> dict[str, str]:
        """Credentials and endpoint, as processes want them."""
        return credentials(self.port)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Set this process's environment; returns the URL."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self.url

    def go_down(self) -> None:
        """Refuse connections, and end those that there are."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Serve again at the same port, with the data of before."""
        self._server = self._serve()

    def count(self, method: str = "", part: str = "") -> int:
        """How many requests of a method have had a part in their path."""
        return sum(one.method.startswith(method) and part in one.path for one in self.seen)

    def write(self, path: str, content: bytes) -> None:
        """Put an object below the prefix, as anybody with access can."""
        self._ask_server("PUT", f"prefix/{path}", content)

    def delete(self, path: str) -> None:
        """The same for deleting one."""
        self._ask_server("DELETE", f"prefix/{path}", None)

    def objects(self) -> dict[str, bytes]:
        """All that is in the bucket, by paths, as anybody with access can read it."""
        listed = self._ask_server("GET", "?list-type=2", None).decode()
        return {path: self._ask_server("GET", path, None) for path in re.findall("<Key>(.*?)</Key>", listed)}

    def _ask_server(self, method: str, path: str, content: bytes | None) -> bytes:
        address = f"http://127.0.0.1:{self.data_port}/{self.bucket}/{path}"
        request = urllib.request.Request(address, content, _LOGIN, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status in (200, 204)
            body: bytes = response.read()
            return body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.is_stalled = False
        self.go_down()
        self._holder.close()

    def _serve(self) -> _Server:
        handler = type("Handler", (_Handler,), {"store": self})
        server = _Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that leave."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def setup(self) -> None:
        super().setup()
        self.store._connections.add(self.connection)

    def finish(self) -> None:
        self.store._connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._relay()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _relay(self) -> None:
        faults = self.store.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        while self.store.faults.is_stalled:
            time.sleep(0.02)
        time.sleep(faults.delay)
        is_refused_list = "list-type" in self.path and "LIST" in faults.refuse
        if (kind := "LIST" if is_refused_list else self.command) in faults.refuse:
            status, code = faults.refuse[kind]
            self._answer(status, "", [], f"<Error><Code>{code}</Code></Error>".encode())
            return
        key = f"{self.command} {self.path} {self.headers.get('Range')}"
        answer = self.store._answers.get(key) if faults.is_replaying else None
        answer = answer or self._ask(body)
        if self.command in ("GET", "HEAD"):
            self.store._answers.setdefault(key, answer)
        self._answer(*answer)

    def _ask(self, body: bytes) -> tuple[int, str, Any, bytes]:
        ignored = _HOP_BY_HOP | {name.lower() for name in self.store.faults.ignores}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ignored}
        connection = http.client.HTTPConnection("127.0.0.1", self.store.data_port, timeout=60)
        try:
            connection.request(self.command, self.path, body, headers | {"Host": self.headers["Host"]})
            response = connection.getresponse()
            return response.status, response.reason, response.getheaders(), response.read()
        finally:
            connection.close()

    def _answer(self, status: int, reason: str, headers: Any, body: bytes) -> None:
        faults = self.store.faults
        self.store.seen.append(Seen(self.command, self.path, status))
        is_object = self.command == "GET" and status in (200, 206) and "list-type" not in self.path
        if is_object and faults.change is not None:
            body = faults.change[: len(body)] + body[len(faults.change) :]
        if is_object and faults.is_truncating:
            body = body[: len(body) // 2]
        self.send_response(status, reason)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP | {"content-length", "date", "server"}:
                is_date = name.lower() == "last-modified"
                self.send_header(name, _shifted(value, faults.clock) if is_date else value)
        if status not in (204, 304):
            length = lengths[0] if self.command == "HEAD" and lengths else str(len(body))
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_object and faults.cut_after is not None:
            self.wfile.write(body[: faults.cut_after])
            self.close_connection = True
            return
        piece = _PIECE if faults.rate is None else max(int(faults.rate / 20), 1)
        for start in range(0, len(body), piece):
            self.wfile.write(body[start : start + piece])
            if faults.rate is not None:
                time.sleep(0.05)


def _shifted(date: str, seconds: float) -> str:
    return formatdate(parsedate_to_datetime(date).timestamp() + seconds, usegmt=True)


def make_bucket(port: int, bucket: str) -> None:
    # With the first object, SeaweedFS makes room for the bucket, which may take seconds.
    for path, content in ((bucket, b""), (f"{bucket}/beside-the-prefix", b"x")):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", content, _LOGIN, method="PUT")
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200


_LOGIN = {
    "Content-Type": "application/octet-stream",
    "Authorization": "AWS4-HMAC-SHA256 Credential=test-key/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0",
}
"""moto looks at the region in it only."""
