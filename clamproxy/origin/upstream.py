"""Requests to the origin. Everything here blocks and runs in a thread of a transfer."""

from __future__ import annotations

import base64
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError
from urllib3.util import SKIP_HEADER, Retry, Timeout
from werkzeug.http import parse_content_range_header

from clamproxy.config.units import HttpProxy
from clamproxy.dates import parse_http_date
from clamproxy.messages import Requester
from clamproxy.origin.cooldown import Failure

CHUNK = 256 * 1024
"""Bytes read at a time: large enough that a thread spends its time in system calls."""

# freshclam follows three redirects (protocol.md 1.1); retries are the business of the transfer.
REDIRECTS_ONLY = Retry(
    total=3,
    connect=0,
    read=0,
    redirect=3,
    status=0,
    other=0,
    raise_on_redirect=False,
    respect_retry_after_header=False,
)


_WHERE = re.compile(r"^<?[\w.]+(\(.*?\)| object at \w+)>?: ")
"""What urllib3 puts before its reasons: the connection, which is known."""


class OriginError(Exception):
    """The origin did not deliver."""

    def __init__(self, failure: Failure, reason: str, retry_after: float | None = None) -> None:
        """Describe the failure.

        Args:
            failure: its kind, which decides about the cool-down.
            reason: one line.
            retry_after: seconds that the origin asked to wait, if it did.
        """
        super().__init__(reason)
        self.failure = failure
        self.retry_after = retry_after


class NotFoundError(Exception):
    """The origin says that there is no such file."""


class KnownMissingError(NotFoundError):
    """The origin said so a short while ago, and is not asked again."""


class RangeError(Exception):
    """The origin has not the range that was asked for: what is partly here is another file."""


class Answer:
    """An answer of the origin whose body is still to be read. Close it in the same thread."""

    def __init__(self, response: urllib3.BaseHTTPResponse, count_bytes: Callable[[int], None]) -> None:
        self._response = response
        self._count_bytes = count_bytes
        self.partial = response.status == 206

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks: then its end is marked, and `chunks` fails without that mark."""
        # As http.client decides it, which takes the chunks apart.
        return str(self._response.headers.get("Transfer-Encoding", "")).lower() == "chunked"

    @property
    def size(self) -> int | None:
        """Length of the whole file in bytes, if the origin gives it.

        Raises:
            OriginError: Content-Length or Content-Range is no number.
        """
        try:
            if self.partial:
                content_range = parse_content_range_header(self._response.headers.get("Content-Range"))
                return content_range.length if content_range else None
            # RFC 9112 6.3: a Content-Length beside chunks says nothing.
            length = None if self.is_chunked else self._response.headers.get("Content-Length")
            return None if length is None else int(length)
        except ValueError as error:
            raise OriginError(Failure.BAD_CONTENT, f"unusable length: {error}") from error

    @property
    def start(self) -> int:
        """Offset of the first byte that comes."""
        content_range = parse_content_range_header(self._response.headers.get("Content-Range"))
        return (content_range.start or 0) if self.partial and content_range else 0

    @property
    def etag(self) -> str | None:
        """The origin's ETag as it stands."""
        return self._response.headers.get("ETag")

    @property
    def last_modified(self) -> str | None:
        """The origin's Last-Modified as it stands."""
        return self._response.headers.get("Last-Modified")

    @property
    def ray(self) -> str:
        """Cloudflare's id of the request, for a report to ClamAV's people; else empty."""
        ray = self._response.headers.get("cf-ray")
        return f" (cf-ray {ray})" if ray else ""

    def chunks(self, largest: int = CHUNK) -> Iterator[bytes]:
        """The body as it comes.

        Args:
            largest: bytes that are asked of the socket at a time.

        Raises:
            OriginError: the connection broke before the end.
        """
        try:
            # read1 returns what is there: readers need not wait for a full chunk.
            while chunk := self._response.read1(largest, decode_content=False):
                self._count_bytes(len(chunk))
                yield chunk
        # ValueError and AttributeError come out of a TLS socket that `abort` shut down.
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            raise OriginError(Failure.INTERRUPTED, f"the connection broke: {reason_of(error)}") from error

    def beginning(self, length: int) -> bytes:
        """The first bytes of the body, fewer only if it is shorter."""
        data = bytearray()
        for chunk in self.chunks(length):  # an origin without Range would go on sending
            data += chunk
            if len(data) >= length:
                break
        return bytes(data[:length])

    def abort(self) -> None:
        """Make a read that blocks in another thread end at once."""
        with suppress(RuntimeError, ValueError, OSError):  # it has ended already
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection, unless the whole body was read: then it is in the pool again."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Upstream:
    """The origin: the CDN, a mirror or a parent gateway. Thread-safe."""

    def __init__(
        self,
        url: str,
        *,
        proxy: HttpProxy | None,
        ca_bundle: Path | None,
        connect_timeout: float,
        read_timeout: float,
        via: str,
        count: Callable[[int, int], None],
        note: Callable[[str], None] = lambda _: None,
        offline: bool = False,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            url: where files are fetched, without a trailing slash.
            proxy: an HTTP proxy on the way, with credentials if it wants some.
            ca_bundle: certificates to trust besides the system's.
            connect_timeout: seconds.
            read_timeout: seconds of silence.
            via: the Via field that shows a loop.
            count: is told of requests and of body bytes, from any thread.
            note: is told of the path of each request, from any thread.
            offline: nothing is asked; there is no file but in the cache.
        """
        self._url = url
        self._via = via
        self._count = count
        self._note = note
        self._offline = offline
        self._pool = make_pool(proxy, ca_bundle, Timeout(connect=connect_timeout, read=read_timeout))

    def get(self, path: str, requester: Requester, extra: Mapping[str, str] | None = None) -> Answer:
        """Ask for a file.

        Args:
            path: see `ObjectId.upstream_path`.
            requester: on whose behalf.
            extra: further header fields.

        Raises:
            NotFoundError: 404 or 410; any file while the gateway is offline.
            RangeError: 416.
            OriginError: no connection, no answer, or any other answer that is no file.
        """
        if self._offline:
            raise NotFoundError("the gateway is offline")
        headers = {
            "User-Agent": requester.user_agent or SKIP_HEADER,
            "Accept": "*/*",
            # Objects are stored and served as they are signed: trap 32.
            "Accept-Encoding": "identity",
            "Via": f"{requester.via}, {self._via}" if requester.via else self._via,
            **(extra or {}),
        }
        self._count(1, 0)
        self._note(path)
        try:
            response = self._pool.request(
                "GET",
                self._url + path,
                headers=headers,
                preload_content=False,
                decode_content=False,
                retries=REDIRECTS_ONLY,
            )
        except (HTTPError, OSError, LocationValueError) as error:
            raise OriginError(Failure.UNREACHABLE, reason_of(error)) from error
        answer = Answer(response, lambda length: self._count(0, length))
        try:
            _check(response, answer.ray)
        except Exception:
            response.close()
            raise
        return answer

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()


def make_pool(proxy: HttpProxy | None, ca_bundle: Path | None, timeout: Timeout) -> urllib3.PoolManager:
    """Connections to the outside: through the proxy if there is one, with the trust that is configured."""
    context = ssl.create_default_context()
    if ca_bundle is not None:
        context.load_verify_locations(cafile=ca_bundle)
    if proxy is None:
        return urllib3.PoolManager(maxsize=8, timeout=timeout, ssl_context=context)
    headers = {}
    if proxy.credentials is not None:
        # urllib3.make_headers knows Latin-1 only.
        token = base64.b64encode(proxy.credentials.encode()).decode("ascii")
        headers["Proxy-Authorization"] = f"Basic {token}"
    return urllib3.ProxyManager(
        proxy.url,
        proxy_headers=headers,
        maxsize=8,
        timeout=timeout,
        ssl_context=context,
        proxy_ssl_context=context,
    )


def _check(response: urllib3.BaseHTTPResponse, ray: str) -> None:
    """Let only answers through that carry a file."""
    status = response.status
    if status in (200, 206):
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise OriginError(Failure.BAD_CONTENT, f"answer is encoded as {encoding}{ray}")
        return
    if status in (404, 410):
        raise NotFoundError(f"{status}{ray}")
    if status == 416:
        raise RangeError(f"{status}{ray}")
    failure = {403: Failure.FORBIDDEN, 429: Failure.RATE_LIMITED}.get(status, Failure.SERVER_ERROR)
    raise OriginError(failure, f"status {status}{ray}", retry_after_of(response.headers.get("Retry-After")))


def retry_after_of(field: str | None) -> float | None:
    """Seconds to wait: the field holds seconds or a date (RFC 9110 10.2.3)."""
    if field is None:
        return None
    text = field.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    date = parse_http_date(text)
    return None if date is None else date - time.time()


def reason_of(error: BaseException) -> str:
    """One short line: urllib3 wraps what matters in what doesn't."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return reason_of(error.reason)
    first = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    text = (first or type(error).__name__).splitlines()[0]
    return _WHERE.sub("", text)[:200]
