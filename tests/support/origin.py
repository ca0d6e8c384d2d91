"""A fake ClamAV CDN on loopback, which misbehaves on demand and records what it was asked.

It is written on bare sockets, because HTTP libraries prevent most of what it has to do: cut a body short,
lie about its length, reset the connection, fall silent.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Self

from tests.support.faults import Fault, Headers
from tests.support.files import File, file_answer, upload_date
from tests.support.gateway import held_port

PIECE = 16 * 1024
"""Bytes per write, so that a rate limit and a cut have something to act on."""
PATIENCE = 90.0
"""Seconds after which a stalled response or a silent peer is given up; only a guard against leaks."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived, and what became of the response."""

    time: float
    method: str
    path: str
    headers: Headers
    """Names in lower case."""
    status: int
    sent: int
    """Bytes of the body that were handed to the kernel."""

    @property
    def short_name(self) -> str:
        """P for a header probe, W for a whole CVD, Dn for a cdiff; R for other Ranges.

        Source: docs/protocol.md 9.2.
        """
        name, _, _ = self.path.partition("?")
        if match := re.fullmatch(r"/[a-z]+-(\d+)\.cdiff", name):
            return f"D{match[1]}"
        if re.fullmatch(r"/[a-z]+\.cvd", name):
            wanted = self.headers.get("range")
            return {None: "W", "bytes=0-511": "P"}.get(wanted, "R")
        return name


@dataclass(slots=True)
class _Rule:
    path: str
    """A short name (P, W, D6, /test.cvd, …) or * for all."""
    fault: Fault
    skip: int
    times: int | None

    def applies(self, seen: Seen) -> bool:
        """Whether the request is one of those; counts it."""
        if self.path not in ("*", seen.path, seen.short_name):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


class _Gone(Exception):
    """The peer left, or the server is closing."""


class OriginServer:
    """The server. Use it as a context manager."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        """May be replaced while running: a certificate that is suddenly wrong."""
        self.rate: float | None = None
        """Bytes per second over all connections together."""
        self.seen: list[Seen] = []
        self._files: dict[str, File] = {}
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._stop = threading.Event()
        self._release = threading.Event()
        self._budget_from = 0.0
        self._listener: socket.socket | None = None
        self._holder = held_port()
        self.port: int = self._holder.getsockname()[1]
        self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}"

    # What it serves

    def put(self, name: str, body: bytes, modified: str | None = None, *, undated: bool = False) -> None:
        """Serve a file; without a date, Last-Modified is a minute after a CVD's build time, or some day."""
        self._files[f"/{name}"] = File(body, None if undated else modified or upload_date(body))

    def body(self, name: str) -> bytes | None:
        """What it serves under a name; None if there is nothing."""
        file = self._files.get(f"/{name}")
        return None if file is None else file.body

    def remove(self, name: str) -> None:
        """Answer 404 from now on."""
        self._files.pop(f"/{name}", None)

    def rule(self, path: str, fault: Fault, *, times: int | None = None, skip: int = 0) -> None:
        """Answer requests with a fault.

        Args:
            path: a path, a short name (P, W, D6) or ``*``. The newest rule that applies wins.
            times: how many requests; None for all.
            skip: how many requests are answered correctly first.
        """
        with self._lock:
            self._rules.insert(0, _Rule(path, fault, skip, times))

    def heal(self) -> None:
        """Forget all rules, and release stalled responses, which are cut off, and those that were held."""
        with self._lock:
            self._rules.clear()
            release, self._release = self._release, threading.Event()
        release.set()

    # What it saw

    @property
    def trace(self) -> str:
        """The requests in short, "P D5 D6"."""
        return " ".join(seen.short_name for seen in self.requests())

    def requests(self, short_name: str | None = None) -> list[Seen]:
        """The requests so far, or those with a short name or a path."""
        with self._lock:
            return [seen for seen in self.seen if short_name in (None, seen.short_name, seen.path)]

    def count(self, short_name: str) -> int:
        """How many requests had a short name or a path."""
        return len(self.requests(short_name))

    @property
    def bytes_sent(self) -> int:
        """Bytes of bodies."""
        return sum(seen.sent for seen in self.requests())

    def forget(self) -> None:
        """Start a new record."""
        with self._lock:
            self.seen.clear()

    # Its sockets

    def accept(self) -> None:
        """Listen, on the same port as before."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(256)
        self._listener = listener
        threading.Thread(target=self._accept_loop, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections, and end those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            _shut(listener)
            listener.close()
        self._end_connections()

    def close(self) -> None:
        """Stop for good."""
        self._stop.set()
        self.heal()
        self.refuse()
        self._holder.close()

    def _end_connections(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _shut(connection)

    def _accept_loop(self, listener: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(plain, server_side=True)
            with self._lock:
                self._connections.discard(plain)
                self._connections.add(connection)
            reader = connection.makefile("rb")
            while (request := _read_request(reader)) is not None:
                if not self._answer(connection, *request):
                    break
        except (OSError, _Gone, ValueError):
            pass
        finally:
            with self._lock:
                self._connections.discard(plain)
                self._connections.discard(connection)
            connection.close()

    # One answer

    def _answer(self, connection: socket.socket, method: str, path: str, headers: Headers) -> bool:
        """Respond; returns whether the connection can carry another request."""
        seen = Seen(time.time(), method, path, headers, 0, 0)
        with self._lock:
            fault = next((rule.fault for rule in self._rules if rule.applies(seen)), Fault())
            place = len(self.seen)
            self.seen.append(seen)
            release = self._release
        sender = _Sender(self, connection, fault, release)
        code = 0
        try:
            if fault.silent:
                sender.wait_for_the_end()
            if fault.held:
                release.wait(PATIENCE)
            code, head, body = self._compose(fault, path, headers)
            self._note(place, replace(seen, status=code))  # before the client can have it all
            sender.head(code, head)
            if method != "HEAD":
                sender.body(body)
        finally:
            self._note(place, Seen(seen.time, method, path, headers, code, sender.sent))
        endless = not (fault.length or fault.chunked)
        return not endless and fault.cut_after is None and headers.get("connection", "").lower() != "close"

    def _note(self, place: int, seen: Seen) -> None:
        with self._lock:
            if place < len(self.seen) and self.seen[place].time == seen.time:
                self.seen[place] = seen

    def _compose(self, fault: Fault, path: str, request: Headers) -> tuple[int, Headers, bytes]:
        """Status, headers and body of the answer."""
        file = self._files.get(path.partition("?")[0])
        if fault.status is None and file is None:
            code, head, body = 404, {"Content-Type": "text/html"}, b"<html>not found</html>"
        elif fault.status is not None or file is None:
            code, head, body = fault.status or 404, {}, fault.body or b""
        else:
            code, head, body = file_answer(file, fault, request)
        if fault.gzipped:
            body = gzip.compress(body)
            head["Content-Encoding"] = "gzip"
        if fault.chunked:
            head["Transfer-Encoding"] = "chunked"
        elif fault.length and code != 304:
            head["Content-Length"] = str(len(body) if fault.short_length is None else fault.short_length)
        else:
            head["Connection"] = "close"
        head.setdefault("cf-ray", "6d8e7326cd40501e-TST")
        return code, head | fault.headers, body

    def pause_for(self, count: int) -> float:
        """Seconds to wait before this many bytes may leave under the common rate limit."""
        if self.rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            self._budget_from = max(self._budget_from, now) + count / self.rate
            return self._budget_from - now


class _Sender:
    """Writes one answer to one connection, with its fault."""

    def __init__(
        self, origin: OriginServer, connection: socket.socket, fault: Fault, release: threading.Event
    ) -> None:
        self._origin, self._connection, self._fault, self._release = origin, connection, fault, release
        self.sent = 0

    def head(self, code: int, headers: Headers) -> None:
        """Send the status line and the headers."""
        reason = HTTPStatus(code).phrase if code in list(HTTPStatus) else "Unknown"
        lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {text}" for name, text in headers.items())]
        self._connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def body(self, body: bytes) -> None:
        """Send the body, or as much of it as the fault lets."""
        fault = self._fault
        ends = [end for end in (fault.cut_after, fault.stall_after) if end is not None]
        end = min([len(body), *ends])
        for piece in _pieces(body[:end]):
            self._pace(len(piece))
            self._connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunked else piece)
            self.sent += len(piece)
        if fault.stall_after is not None and fault.stall_after <= len(body):
            self.wait_for_the_end()
        if fault.cut_after is not None and fault.cut_after <= len(body):
            self._cut()
        if fault.chunked:
            self._connection.sendall(b"0\r\n\r\n")

    def _pace(self, count: int) -> None:
        pause = self._origin.pause_for(count)
        if self._fault.rate:
            pause = max(pause, count / self._fault.rate)
        if pause > 0:
            self._release.wait(pause)

    def _cut(self) -> None:
        if self._fault.reset:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Gone

    def wait_for_the_end(self) -> None:
        """Stay silent until the peer leaves, the server heals or patience ends; then cut the connection."""
        deadline = time.monotonic() + PATIENCE
        while not self._release.wait(0.05) and time.monotonic() < deadline:
            readable, _, _ = select.select([self._connection], [], [], 0)
            if readable and not self._connection.recv(1):
                break
        raise _Gone


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def _read_request(reader: io.BufferedReader) -> tuple[str, str, Headers] | None:
    """Method, path and headers of the next request; None at the end of the connection."""
    lines = []
    while True:
        line = reader.readline(65536)
        if not line or line in (b"\r\n", b"\n"):
            break
        lines.append(line.decode("latin-1").rstrip("\r\n"))
    if not lines:
        return None
    method, path, _ = lines[0].split(" ", 2)
    pairs = (line.partition(":") for line in lines[1:])
    return method, path, {name.strip().lower(): text.strip() for name, _, text in pairs}


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
