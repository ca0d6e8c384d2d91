"""The origin: an HTTP server with one file and a limited rate, which counts what it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from werkzeug.http import http_date, parse_date, parse_range_header

HEADER_SIZE = 512
"""Bytes of a CVD's header, which is what a header probe asks for (protocol.md 4.1)."""

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
    """A limit on the rate of all connections together."""

    def __init__(self, rate: float) -> None:
        """Args: rate: bytes per second."""
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, count: int) -> None:
        """Sleep until another `count` bytes may have been sent."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - _BURST) + count / self._rate
            delay = self._free_at - time.monotonic()
        if delay > 0:
            time.sleep(delay)


class Origin:
    """One file at one path, with ETag, Last-Modified and Range; anything else is a 404."""

    def __init__(self, file: Path, rate: float) -> None:
        """Describe the file.

        Args:
            file: served as ``/<its name>``.
            rate: bytes per second, of all connections together.
        """
        state = file.stat()
        self.file = file
        self.path = f"/{file.name}"
        self.size = state.st_size
        self.modified = int(state.st_mtime)
        self.etag = f'"{self.modified:x}-{self.size:x}"'
        self.pace = Pace(rate)
        self.counts = Counts()
        self.url = ""
        self._lock = threading.Lock()

    def count(self, *, files: int = 0, probes: int = 0, others: int = 0, body_bytes: int = 0) -> None:
        """Add to the counts; any thread may call this."""
        with self._lock:
            self.counts.files += files
            self.counts.probes += probes
            self.counts.others += others
            self.counts.body_bytes += body_bytes

    def snapshot(self) -> Counts:
        """The counts of this moment."""
        with self._lock:
            return replace(self.counts)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, origin: Origin, *args: object) -> None:
        self._origin = origin
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer with the file, a range of it, or a reason why not."""
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        origin = self._origin
        start, end = self._span() or (0, 0)
        if self.path != origin.path:
            status, end = 404, 0
        elif self._not_modified():
            status, end = 304, 0
        elif not end:
            status = 416
        else:
            status = 200 if (start, end) == (0, origin.size) else 206
        self._send_head(status, start, end)
        length = end - start if with_body and status in (200, 206) else 0
        origin.count(
            files=int(length > HEADER_SIZE), probes=int(0 < length <= HEADER_SIZE), others=int(not length)
        )
        if length:
            self._send_body(start, end)

    def _span(self) -> tuple[int, int] | None:
        """First byte and end of what is asked for; None for an impossible range."""
        origin, whole = self._origin, (0, self._origin.size)
        condition = self.headers.get("If-Range")
        if "Range" not in self.headers or condition not in (None, origin.etag, http_date(origin.modified)):
            return whole
        asked = parse_range_header(self.headers["Range"])
        return whole if asked is None else asked.range_for_length(origin.size)

    def _not_modified(self) -> bool:
        if "If-None-Match" in self.headers:
            return self._origin.etag in self.headers["If-None-Match"]
        since = parse_date(self.headers.get("If-Modified-Since"))
        return since is not None and self._origin.modified <= since.timestamp()

    def _send_head(self, status: int, start: int, end: int) -> None:
        origin = self._origin
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        if status in (200, 206, 304):
            self.send_header("ETag", origin.etag)
            self.send_header("Last-Modified", http_date(origin.modified))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{origin.size}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{origin.size}")
        if status != 304:
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - start if status in (200, 206) else 0))
        self.end_headers()

    def _send_body(self, start: int, end: int) -> None:
        try:
            with self._origin.file.open("rb") as file:
                file.seek(start)
                while start < end:
                    piece = file.read(min(_PIECE, end - start))
                    self._origin.pace.wait(len(piece))
                    self.wfile.write(piece)
                    self._origin.count(body_bytes=len(piece))
                    start += len(piece)
        except ConnectionError:
            self.close_connection = True


@contextmanager
def serve(file: Path, rate: float) -> Iterator[Origin]:
    """Serve a file from a thread of this process, on a free loopback port.

    Args:
        file: served as ``/<its name>``.
        rate: bytes per second, of all connections together.

    Yields:
        The origin; its ``url`` is where it listens.
    """
    origin = Origin(file, rate)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, origin)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        origin.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join()
