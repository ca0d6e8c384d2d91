"""A store that speaks as much of Google Cloud Storage's XML API as the bucket needs, from its documentation.

https://cloud.google.com/storage/docs/xml-api/reference-headers#xgoogifgenerationmatch
"""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    generation: int
    about: dict[str, str]

    @property
    def etag(self) -> str:
        """Of the content: two generations with the same bytes have the same one."""
        return f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, _Object]
    lock: threading.Lock
    generations: Iterator[int]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        wanted, path = self.headers.get("x-goog-if-generation-match"), unquote(urlsplit(self.path).path)
        with self.lock:
            present = self.objects.get(path)
            if wanted is not None and int(wanted) != (present.generation if present else 0):
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            about = {name: value for name, value in self.headers.items() if name.startswith("x-goog-meta-")}
            made = self.objects[path] = _Object(content, next(self.generations), about)
        self._answer(200, b"", made)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if "list-type" in query:
            self._list(parts.path.rstrip("/"), query.get("prefix", [""])[0])
            return
        found = self.objects.get(unquote(parts.path))
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer(200, found.content, found)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        found = self.objects.pop(unquote(self.path), None)
        self._answer(204 if found else 404, b"")

    def _list(self, bucket: str, prefix: str) -> None:
        listed = [
            f"<Contents><Key>{path.removeprefix(f'{bucket}/')}</Key><Size>{len(one.content)}</Size>"
            f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{one.etag}</ETag></Contents>"
            for path, one in sorted(self.objects.items())
            if path.startswith(f"{bucket}/{prefix}")
        ]
        page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(listed)}</ListBucketResult>"
        self._answer(200, page.encode())

    def _answer(self, status: int, body: bytes, about: _Object | None = None) -> None:
        self.send_response(status)
        if about is not None:
            self.send_header("ETag", about.etag)
            self.send_header("x-goog-generation", str(about.generation))
            self.send_header("Last-Modified", formatdate(usegmt=True))
            for name, value in about.about.items():
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def gcs_server() -> Iterator[dict[str, str]]:
    """A store without objects; gives the environment in which a process finds it."""
    state = {"objects": {}, "lock": threading.Lock(), "generations": iter(range(1, 10**6))}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), state))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield {
            "GOOGLE_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "GOOGLE_BEARER_TOKEN": "test-token",
            "GOOGLE_ALLOW_HTTP": "true",
        }
    finally:
        server.shutdown()
        server.server_close()
