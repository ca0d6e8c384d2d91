"""The origin: an HTTP server for a directory that limits its rate and counts its requests."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

from werkzeug.http import http_date, parse_date, parse_range_header

from clamproxy.formats.header import HEADER_SIZE

_PIECE = 256 * 1024
_BURST = 0.01
"""Seconds of unused time that a late sender may catch up on."""


@dataclass(slots=True)
class Counts:
    """What the origin was asked for.

    Attributes:
        files: requests answered with more than a header: the whole file, or a long range of it.
        probes: requests answered with at most the 512 bytes of the header.
        others: all other requests (304, 404, 416, HEAD).
        body_bytes: bytes of all bodies that were sent.
    """

    files: int = 0
    probes: int = 0
    others: int = 0
    body_bytes: int = 0


class Pace:
    """A rate limit for all connections together, in bytes per second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, count: int) -> None:
        """Sleep until another `count` bytes may be sent."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - _BURST) + count / self._rate
            delay = self._free_at - time.monotonic()
        if delay > 0:
            time.sleep(delay)


class Origin:
    """The files of a directory, with ETag, Last-Modified and Range; anything else is a 404.

    Args:
        directory: its files are served, by `serve`.
        rate: bytes per second, for all connections together.
    """

    def __init__(self, directory: Path, rate: float) -> None:
        self.pace = Pace(rate)
        self._directory = directory
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)
        self._lock = threading.Lock()

    def find(self, path: str) -> Path | None:
        """The file for the path of a URL."""
        file = self._directory / path.removeprefix("/")
        return file if file.parent == self._directory and file.is_file() else None

    def count(
        self, path: str, *, files: int = 0, probes: int = 0, others: int = 0, body_bytes: int = 0
    ) -> None:
        """Add to the counts of a path; any thread may call this."""
        with self._lock:
            counts = self._counts[path]
            counts.files += files
            counts.probes += probes
            counts.others += others
            counts.body_bytes += body_bytes

    def snapshot(self, path: str | None = None) -> Counts:
        """The present counts: of one path, or of all together."""
        with self._lock:
            chosen = self._counts.values() if path is None else [self._counts[path]]
            return Counts(*(sum(each) for each in zip(*map(astuple, chosen), strict=True)))

    def reset(self) -> None:
        """Start counting from 0."""
        with self._lock:
            self._counts.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    _size: int
    _modified: int
    """The file's modification time in Unix seconds."""
    _etag: str

    def __init__(self, origin: Origin, *args: object) -> None:
        self._origin = origin
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        file = self._origin.find(self.path)
        if file is None:
            self._origin.count(self.path, others=1)
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        # Opened before its size and time are read, as it may be replaced at any moment.
        with file.open("rb") as content:
            state = os.fstat(content.fileno())
            self._size, self._modified = state.st_size, int(state.st_mtime)
            self._etag = f'"{self._modified:x}-{self._size:x}"'
            self._answer_with(content, with_body)

    def _answer_with(self, content: BinaryIO, with_body: bool) -> None:
        start, end = self._span() or (0, 0)
        if self._not_modified():
            status, end = 304, 0
        elif not end:
            status = 416
        else:
            status = 200 if (start, end) == (0, self._size) else 206
        self._send_head(status, start, end)
        length = end - start if with_body and status in (200, 206) else 0
        self._origin.count(
            self.path,
            files=int(length > HEADER_SIZE),
            probes=int(0 < length <= HEADER_SIZE),
            others=int(not length),
        )
        if length:
            self._send_body(content, start, end)

    def _span(self) -> tuple[int, int] | None:
        """First byte and end of the requested range; None if it can't be satisfied."""
        whole = (0, self._size)
        condition = self.headers.get("If-Range")
        if "Range" not in self.headers or condition not in (None, self._etag, http_date(self._modified)):
            return whole
        asked = parse_range_header(self.headers["Range"])
        return whole if asked is None else asked.range_for_length(self._size)

    def _not_modified(self) -> bool:
        if "If-None-Match" in self.headers:
            return self._etag in self.headers["If-None-Match"]
        since = parse_date(self.headers.get("If-Modified-Since"))
        return since is not None and self._modified <= since.timestamp()

    def _send_head(self, status: int, start: int, end: int) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        if status in (200, 206, 304):
            self.send_header("ETag", self._etag)
            self.send_header("Last-Modified", http_date(self._modified))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{self._size}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{self._size}")
        if status != 304:
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - start if status in (200, 206) else 0))
        self.end_headers()

    def _send_body(self, content: BinaryIO, start: int, end: int) -> None:
        try:
            content.seek(start)
            while start < end:
                piece = content.read(min(_PIECE, end - start))
                self._origin.pace.wait(len(piece))
                self.wfile.write(piece)
                self._origin.count(self.path, body_bytes=len(piece))
                start += len(piece)
        except OSError:  # the client has gone away
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512


@contextmanager
def serve(
    origin: Origin, address: tuple[str, int] = ("127.0.0.1", 0), tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serve an origin from threads of this process; yields the port.

    Raises:
        PermissionError: this user may not use the port.
    """
    with _Server(address, partial(_Handler, origin)) as server:
        if tls is not None:
            # The connection's own thread does the handshake, so that it holds up no other connection.
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
