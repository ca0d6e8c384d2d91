"""Requests to the origin. Everything here blocks and runs in a thread of a transfer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Self

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import SKIP_HEADER, Timeout
from werkzeug.datastructures import ContentRange
from werkzeug.http import parse_content_range_header

from clamproxy.config.units import Address, HttpProxy
from clamproxy.dates import parse_http_date
from clamproxy.messages import PLAIN_FIELD, Requester
from clamproxy.origin.connections import REDIRECTS_ONLY, CancelScope, make_pool
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.link import Link
from clamproxy.origin.proxy_auth import LoginError

CHUNK = 256 * 1024
"""How many bytes are read at a time: enough that a thread spends its time in system calls."""

LONGEST_WORDS = 300
"""How many bytes of a parent gateway's reason are passed on."""
PATIENCE_WITH_WORDS = 2.0
"""Seconds to wait for that reason."""

_WHERE = re.compile(r"^<?[\w.]+(\(.*?\)| object at \w+)>?: ")
"""What urllib3 puts before its reasons: the connection, which is known anyway."""
_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d{3})(.*)")
"""How http.client reports that a proxy refused a CONNECT."""
_NUMBER = re.compile(r"[0-9]{1,18}")
_RAY = re.compile(r"[\w-]{1,64}", re.ASCII)
_NOT_CONNECTED = (ConnectTimeoutError, NewConnectionError, ProxyError, ReadTimeoutError, SSLError)
LIBRARY_ERRORS = (HTTPError, HTTPException, OSError, ValueError)
"""What urllib3 and http.client raise if a response makes no sense."""


class OriginError(Exception):
    """The origin did not deliver.

    Args:
        failure: decides about the cool-down.
        reason: one line.
        retry_after: seconds that the origin asks to wait, if it does.
    """

    def __init__(self, failure: FailureKind, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.failure = failure
        self.retry_after = retry_after


class NotFoundError(Exception):
    """The origin says that there is no such file."""


class KnownMissingError(NotFoundError):
    """The origin said a short while ago that there is no such file, and isn't asked again."""


class RangeError(Exception):
    """The origin doesn't have the requested range: what is partly here is another file."""


class OriginResponse:
    """A response of the origin whose body is still to be read. Close it in the same thread.

    Args:
        link: what the body is read over.
    """

    def __init__(
        self,
        response: urllib3.BaseHTTPResponse,
        count_bytes: Callable[[int], None],
        scope: CancelScope,
        link: Link,
    ) -> None:
        self._response = response
        self._count_bytes = count_bytes
        self._scope = scope
        self._link = link
        self._unpaid = 0
        self.status = response.status
        self.partial = response.status == 206

    @property
    def encoding(self) -> str:
        """Content-Encoding in lower case; empty if there is none."""
        return self._response.headers.get("Content-Encoding", "").strip().lower()

    @property
    def redirects(self) -> bool:
        """Whether it redirects elsewhere."""
        return bool(self._response.get_redirect_location())

    @property
    def retry_after(self) -> float | None:
        """Seconds that the origin asks to wait; None if it doesn't."""
        return retry_after_of(self._response.headers.get("Retry-After"))

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks: then its end is marked, and `chunks` fails without that mark."""
        # The same test as in http.client, which decodes the chunks.
        return str(self._response.headers.get("Transfer-Encoding", "")).lower() == "chunked"

    @property
    def size(self) -> int | None:
        """Length of the whole file in bytes; None if the origin doesn't give it.

        Raises:
            OriginError: Content-Length isn't a number.
        """
        if self.partial:
            content_range = self._content_range
            return content_range.length if content_range else None
        # RFC 9112 6.3: with chunks, Content-Length has no meaning.
        length = None if self.is_chunked else self._response.headers.get("Content-Length")
        if length is None:
            return None
        # The same length given twice counts once: RFC 9112 6.3.
        lengths = {one.strip() for one in length.split(",")}
        if len(lengths) != 1 or not _NUMBER.fullmatch(text := lengths.pop()):
            raise OriginError(FailureKind.BAD_CONTENT, f"unusable Content-Length: {_shown(length)}")
        return int(text)

    @property
    def start(self) -> int:
        """Offset in the file of the first byte of the body."""
        content_range = self._content_range
        return (content_range.start or 0) if self.partial and content_range else 0

    @property
    def _content_range(self) -> ContentRange | None:
        try:
            return parse_content_range_header(self._response.headers.get("Content-Range"))
        except ValueError:
            return None

    @property
    def etag(self) -> str | None:
        """The origin's ETag, unchanged; None if there is none that could be sent back."""
        return self._plain_field("ETag")

    @property
    def last_modified(self) -> str | None:
        """The origin's Last-Modified, unchanged; None if there is none that could be sent back."""
        return self._plain_field("Last-Modified")

    def _plain_field(self, name: str) -> str | None:
        field = self._response.headers.get(name)
        return field if field is not None and PLAIN_FIELD.fullmatch(field) else None

    @property
    def date(self) -> float | None:
        """When it was made, Unix seconds, if the origin tells the time."""
        return parse_http_date(self._response.headers.get("Date"))

    @property
    def ray(self) -> str:
        """Cloudflare's ID of the request, as text for a report to ClamAV's maintainers; else empty."""
        ray = self._response.headers.get("cf-ray", "")
        return f" (cf-ray {ray})" if _RAY.fullmatch(ray) else ""

    def words(self) -> str:
        """A parent gateway's own reason for not delivering, which names a loop wherever it closes."""
        if "clamproxy" not in self._response.headers.get("Via", ""):
            return ""
        try:
            with self._scope.within(PATIENCE_WITH_WORDS):
                text = self._response.read1(LONGEST_WORDS, decode_content=False).decode("ascii", "replace")
        except LIBRARY_ERRORS:
            return ""
        words = "".join(filter(str.isprintable, text.partition("\n")[0].removeprefix("clamproxy: ")))
        return f": {words}" if words else ""

    def chunks(self, largest: int = CHUNK) -> Iterator[bytes]:
        """The body, as it arrives.

        Args:
            largest: how many bytes to ask of the socket at a time.

        Raises:
            OriginError: the connection broke before the end.
        """
        try:
            # read1 returns what is there, so readers need not wait for a full chunk.
            while chunk := self._response.read1(self._link.turn(largest), decode_content=False):
                self._count_bytes(len(chunk))
                self._unpaid += len(chunk)
                yield chunk  # whoever reads along gets it before its price is waited for
                unpaid, self._unpaid = self._unpaid, 0
                self._link.pay(unpaid, self._scope)
        # A connection that another thread shut down raises AttributeError.
        except (*LIBRARY_ERRORS, AttributeError) as error:
            raise OriginError(FailureKind.INTERRUPTED, f"the connection broke: {reason_of(error)}") from error

    def beginning(self, length: int) -> bytes:
        """The first `length` bytes of the body, or all of it if it is shorter."""
        data = bytearray()
        for chunk in self.chunks(length):  # an origin without Range would go on sending
            data += chunk
            if len(data) >= length:
                break
        return bytes(data[:length])

    def close(self) -> None:
        """Close the connection, unless the whole body was read: then it is back in the pool."""
        self._scope.close()
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Upstream:
    """The origin: the CDN, a mirror or a parent gateway. Thread-safe.

    Args:
        url: where files are fetched, without a trailing slash.
        ca_bundle: certificates to trust besides the system's.
        connect_timeout: seconds.
        read_timeout: seconds of silence.
        via: the Via field by which a loop is recognised.
        count: is told the number of requests and of body bytes, from any thread.
        note: is told the path of each request, from any thread.
        offline: whether to ask for nothing; every file then counts as not found.
        link: what files are read over; by default, one without a limit.
        addresses: of the URL's host, in the order in which to try them; if empty, DNS is asked.
    """

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
        link: Link | None = None,
        addresses: Sequence[Address] = (),
    ) -> None:
        self._url = url
        self._via = via
        self._count = count
        self._note = note
        self._offline = offline
        self._link = link or Link()
        self._pool = make_pool(
            proxy,
            ca_bundle,
            Timeout(connect=connect_timeout, read=read_timeout),
            link=self._link,
            addresses=addresses,
        )
        self._longest_head = longest_head(connect_timeout, read_timeout)
        whose = "the parent proxy" if proxy else "a proxy on the way"
        has_credentials = proxy is not None and proxy.credentials is not None
        self._unauthenticated = (
            f"{whose} {'refuses the' if has_credentials else 'requires a'} user and password"
        )

    def get(
        self,
        path: str,
        requester: Requester,
        extra: Mapping[str, str] | None = None,
        scope: CancelScope | None = None,
    ) -> OriginResponse:
        """Ask for a file.

        Args:
            path: see `ObjectId.upstream_path`.
            requester: on whose behalf.
            scope: lets another thread end the request; closed with the response.

        Raises:
            NotFoundError: 404 or 410; any file while the gateway is offline.
            RangeError: 416.
            OriginError: no connection, no response, or any other response without a file.
        """
        answer = self.ask(path, requester, extra, scope)
        try:
            self.check(answer)
        except BaseException:
            answer.close()
            raise
        return answer

    def ask(
        self,
        path: str,
        requester: Requester,
        extra: Mapping[str, str] | None = None,
        scope: CancelScope | None = None,
    ) -> OriginResponse:
        """As `get`, but whatever the origin answers is returned.

        Raises:
            NotFoundError: the gateway is offline.
            OriginError: no connection, or no answer.
        """
        if self._offline:
            raise NotFoundError("the gateway is offline")
        headers = {
            "User-Agent": requester.user_agent or SKIP_HEADER,
            "Accept": "*/*",
            # Objects are stored and served as they were signed: docs/protocol.md, trap 32.
            "Accept-Encoding": "identity",
            "Via": f"{requester.via}, {self._via}" if requester.via else self._via,
            **(extra or {}),
        }
        self._count(1, 0)
        self._note(path)
        scope = scope or CancelScope()
        try:
            return OriginResponse(
                self._request(path, headers, scope), lambda length: self._count(0, length), scope, self._link
            )
        except BaseException:
            scope.close()
            raise

    def _request(self, path: str, headers: Mapping[str, str], scope: CancelScope) -> urllib3.BaseHTTPResponse:
        try:
            with scope.within(self._longest_head):
                response = self._pool.request(
                    "GET",
                    self._url + path,
                    headers=headers,
                    preload_content=False,
                    decode_content=False,
                    retries=REDIRECTS_ONLY,
                )
            try:
                scope.check()  # http.client takes a truncated head for a complete one
            except OSError:
                response.close()
                raise
            return response
        except LIBRARY_ERRORS as error:
            if scope.is_overdue:
                reason = f"no complete response header within {self._longest_head:.0f} s"
                raise OriginError(FailureKind.INTERRUPTED, reason) from error
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> OriginError:
        """What the absence of a response means."""
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        is_proxys = isinstance(cause, ProxyError | ProtocolError)
        refusal = _TUNNEL_REFUSED.search(str(cause)) if is_proxys else None
        if login := _login_error(cause):
            return OriginError(FailureKind.PROXY_AUTHENTICATION, f"{self._unauthenticated} (407): {login}")
        if refusal and refusal[1] == "407":
            return OriginError(FailureKind.PROXY_AUTHENTICATION, f"{self._unauthenticated} (407)")
        if refusal:
            words = _shown(f"{refusal[1]}{refusal[2]}".rstrip("')"))
            return OriginError(FailureKind.UNREACHABLE, f"the parent proxy refuses the tunnel: {words}")
        if isinstance(cause, ProxyError):
            return OriginError(FailureKind.UNREACHABLE, f"the parent proxy fails: {reason_of(cause)}")
        if isinstance(cause, InvalidHeader):
            return OriginError(FailureKind.BAD_CONTENT, reason_of(cause))
        if isinstance(cause, ValueError):  # including LocationValueError
            return OriginError(FailureKind.SERVER_ERROR, f"an invalid redirect: {reason_of(cause)}")
        # Only an origin that can't be reached at all is held back as a whole.
        failure = FailureKind.UNREACHABLE if isinstance(cause, _NOT_CONNECTED) else FailureKind.INTERRUPTED
        return OriginError(failure, reason_of(cause))

    def check(self, answer: OriginResponse) -> None:
        """Let only answers through that carry a file; raises as `get` does."""
        status, ray = answer.status, answer.ray
        if status in (200, 206):
            if answer.encoding not in ("", "identity"):
                raise OriginError(
                    FailureKind.BAD_CONTENT, f"answer is encoded as {_shown(answer.encoding)}{ray}"
                )
            return
        if status in (404, 410):
            raise NotFoundError(f"{status}{ray}")
        if status == 416:
            raise RangeError(f"{status}{ray}")
        if status == 407:
            raise OriginError(FailureKind.PROXY_AUTHENTICATION, f"{self._unauthenticated} (407)")
        failure = {403: FailureKind.FORBIDDEN, 429: FailureKind.RATE_LIMITED}.get(
            status, FailureKind.SERVER_ERROR
        )
        reason = f"status {status}{ray}{answer.words()}"
        if answer.redirects:
            reason += ": a redirect to another host, from https to http, or one too many"
        raise OriginError(failure, reason, answer.retry_after)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()


def _login_error(error: BaseException | None) -> LoginError | None:
    """The error in the handshake with the parent proxy, whatever it is wrapped in."""
    while error is not None and not isinstance(error, LoginError):
        inner = [one for one in (*error.args, error.__context__) if isinstance(one, BaseException)]
        error = inner[0] if inner else None
    return error


def longest_head(connect_timeout: float, read_timeout: float) -> float:
    """Seconds for everything before the content: connection, tunnel, TLS, redirects and header fields.

    That is twice what the two steps may take, so that there is time for a second address or a redirect.
    """
    return 2 * (connect_timeout + read_timeout)


def retry_after_of(field: str | None) -> float | None:
    """Seconds to wait; the field holds seconds or a date (RFC 9110 10.2.3)."""
    if field is None:
        return None
    text = field.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    date = parse_http_date(text)
    return None if date is None else date - time.time()


def reason_of(error: BaseException) -> str:
    """An error as one short line, without the layers that urllib3 wraps it in."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return reason_of(error.reason)
    if isinstance(error, ProtocolError | ProxyError) and isinstance(error.args[-1], Exception):
        return reason_of(error.args[-1])
    first = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return _shown(_WHERE.sub("", first)) or type(error).__name__


def _shown(text: str) -> str:
    """Foreign text for a log: one line of harmless characters."""
    line = (text.splitlines() or [""])[0]
    return "".join(character if character.isprintable() else "?" for character in line)[:200].strip()
