"""Responses of the origin. Everything here blocks and runs in a thread of a transfer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Self

import urllib3
from werkzeug.datastructures import ContentRange
from werkzeug.http import parse_content_range_header

from clamproxy.dates import parse_http_date
from clamproxy.messages import PLAIN_FIELD
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import LIBRARY_ERRORS, OriginError, reason_of, shown
from clamproxy.origin.link import Link
from clamproxy.origin.scope import CancelScope

CHUNK = 256 * 1024
"""How many bytes are read at a time: enough that a thread spends its time in system calls."""

LONGEST_WORDS = 300
"""How many bytes of a parent gateway's reason are passed on."""
PATIENCE_WITH_WORDS = 2.0
"""Seconds to wait for that reason."""

_NUMBER = re.compile(r"[0-9]{1,18}")
_RAY = re.compile(r"[\w-]{1,64}", re.ASCII)
_FORBIDDEN_BEYOND = re.compile(r"(?:^|,)\s*clamproxy\s*;(?:[^,]*;)?\s*fwd-status=403\s*(?:[;,]|$)")
"""`messages.FORBIDDEN_BEYOND`, also among what others have added to the field (RFC 9211 2)."""


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
    def is_forbidden(self) -> bool:
        """Whether it refuses the client version: by a 403, or by what a parent gateway sends in its place."""
        status = self._response.headers.get("Cache-Status", "")
        return self.status == 403 or (self.status == 503 and bool(_FORBIDDEN_BEYOND.search(status)))

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
            raise OriginError(FailureKind.BAD_CONTENT, f"unusable Content-Length: {shown(length)}")
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


def retry_after_of(field: str | None) -> float | None:
    """Seconds to wait; the field holds seconds or a date (RFC 9110 10.2.3)."""
    if field is None:
        return None
    text = field.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    date = parse_http_date(text)
    return None if date is None else date - time.time()
