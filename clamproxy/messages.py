"""Requests and responses as the gateway sees them: plain values, without mitmproxy or sockets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from werkzeug.datastructures import Headers

DOCTOR_FIELD = "Clamproxy-Doctor"
"""Marks requests from `clamproxy doctor`: they are answered like all others, but not counted."""

GATEWAY_IN_VIA = "clamproxy-"
"""How every gateway's name in Via begins."""

HELD_BACK = "held back"
"""The reason of a 404 for a version that a hold or a delay hides from the client."""

_DOCTOR_FIELD = DOCTOR_FIELD.lower()
_CLIENT_VERSION = re.compile(r"(ClamAV|CVDUPDATE)/[\w.+~-]{1,32}", re.ASCII)

PLAIN_FIELD = re.compile(r"[ -~]{1,255}")
"""A field value that is passed on; freshclam's User-Agent has at most 127 bytes (docs/protocol.md 1.1)."""


class Result(StrEnum):
    """What became of a request; each request is counted under exactly one of these."""

    HIT = "hit"
    MISS = "miss"
    COLLAPSED = "collapsed"
    STALE = "stale"
    NEGATIVE = "negative"
    REFUSED = "refused"
    PASSED = "passed"
    ERROR = "error"
    FILE = "file"
    """One of the site's own files; counted separately."""
    STATUS = "status"
    """A page about the gateway itself, or a request from the doctor; not counted among the requests."""


FROM_CACHE = frozenset({Result.HIT, Result.COLLAPSED, Result.STALE, Result.NEGATIVE})
"""Results that cost the origin no request of their own."""

# RFC 9211 2: `fwd` says why a request went, or had to go, to the origin.
CACHE_STATUS: Mapping[Result, str] = {
    Result.HIT: "clamproxy; hit",
    Result.MISS: "clamproxy; fwd=miss",
    Result.COLLAPSED: "clamproxy; fwd=miss; collapsed",
    Result.STALE: "clamproxy; fwd=stale",
    Result.NEGATIVE: "clamproxy; hit; detail=negative",
    Result.REFUSED: "clamproxy; detail=refused",
    Result.PASSED: "clamproxy; fwd=bypass",
    Result.ERROR: "clamproxy; fwd=miss; detail=error",
    Result.FILE: "clamproxy; detail=file",
    Result.STATUS: "clamproxy; detail=status",
}
"""The value of Cache-Status for each result."""

FORBIDDEN_BEYOND = "clamproxy; fwd=miss; fwd-status=403; detail=error"
"""The Cache-Status of a 503 in place of the origin's 403, which must not reach a freshclam (docs/protocol.md,
trap 20). A gateway that gets it knows that it is about one client version only."""


class SourceError(Exception):
    """The rest of a body is not available; the connection must be cut, not ended properly."""


class Source(Protocol):
    """The bytes of an object on disk, complete or still arriving."""

    @property
    def size(self) -> int:
        """Size of the whole object in bytes."""

    def fileno(self) -> int:
        """A descriptor to read with explicit offsets (pread, sendfile)."""

    async def wait(self, offset: int) -> int:
        """Wait until there are bytes to send after `offset`.

        Returns:
            The end of the bytes that may be sent now, greater than `offset`.

        Raises:
            SourceError: there will be no more.
        """

    def distrust(self) -> None:
        """Note that it could not be read, so that the file is checked before it is sent again."""

    def close(self) -> None:
        """Release the descriptor. Closing twice does nothing."""


@dataclass(frozen=True, slots=True)
class Requester:
    """The client on whose behalf the origin is asked."""

    user_agent: str | None = None
    """The client's own, which goes to the origin unchanged: the CDN decides by it (docs/protocol.md 9.4)."""
    via: str | None = None
    """The gateways that the request came through, by which a loop is detected."""

    @property
    def version(self) -> str:
        """The part of the User-Agent by which the CDN admits or refuses: ``ClamAV/1.4.6``.

        The rest of freshclam's User-Agent identifies the machine (docs/protocol.md 1.1). All other clients
        count as one version.
        """
        match = _CLIENT_VERSION.match(self.user_agent or "")
        return match[0] if match else "other"


@dataclass(frozen=True, slots=True)
class Body:
    """A span of a source, which the sender moves from disk to the client's socket."""

    source: Source
    start: int
    length: int


class Request:
    """One request from a client.

    Args:
        path: path with query string, as received. For a feed, both may contain a subscriber's key.
        headers: all fields, in their order.
        scheme: together with `host` and `port`, the server that is asked; databases and pages ignore it.
    """

    __slots__ = ("_fields", "_headers", "host", "method", "path", "port", "scheme")

    def __init__(
        self,
        method: str,
        path: str,
        headers: Headers | Sequence[tuple[str, str]],
        scheme: str = "",
        host: str = "",
        port: int = 0,
    ) -> None:
        self.method = method
        self.path = path
        self.scheme = scheme
        self.host = host
        self.port = port
        self._headers = headers
        self._fields: dict[str, str] | None = None

    @property
    def headers(self) -> Headers:
        """All fields, in their order. Building them costs as much as a small response: prefer `fields`."""
        if not isinstance(self._headers, Headers):
            self._headers = Headers(self._headers)
        return self._headers

    @property
    def fields(self) -> Mapping[str, str]:
        """The first value of each field, by its name in lower case.

        About ten fields are looked up for a request, most of which it doesn't have, and each lookup in
        `headers` costs as much as building this for all of them. Don't use it before `headers` are
        complete.
        """
        if self._fields is None:
            self._fields = fields = dict[str, str]()
            for name, value in self._headers:
                fields.setdefault(name.lower(), value)
        return self._fields

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"

    @property
    def requester(self) -> Requester:
        """The client on whose behalf the origin is asked for this."""
        agent = self.fields.get("user-agent")
        # A malformed User-Agent must not make the origin refuse a file that others want.
        usable = agent is not None and PLAIN_FIELD.fullmatch(agent) is not None
        return Requester(agent if usable else None, self.via or None)

    @property
    def via(self) -> str:
        return "" if "via" not in self.fields else ", ".join(self.headers.get_all("Via"))

    @property
    def address(self) -> str:
        """The client's IP address; empty if it isn't known."""
        return ""

    @property
    def is_freshclams(self) -> bool:
        """Whether it comes from freshclam, directly or through another gateway."""
        return self.fields.get("user-agent", "").startswith("ClamAV/")

    @property
    def is_doctors(self) -> bool:
        """Whether it comes from `clamproxy doctor`; then no machine needs the response."""
        return _DOCTOR_FIELD in self.fields

    @property
    def is_relayed(self) -> bool:
        """Whether another gateway sent it: in a client's name, but for its own needs."""
        return GATEWAY_IN_VIA in self.via


@dataclass(slots=True)
class Response:
    status: int
    result: Result
    headers: Headers = field(default_factory=Headers)
    body: bytes | Body = b""
    version: int | None = None
    """The database version that the response is about, for the log."""
    reason: str = ""
    """For the log: why the client doesn't get what it asked for, or not the newest version."""
    is_complete: bool = False
    """Whether nothing is missing, so that it must not be changed any more; set by `responses.complete`."""
    _lines: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def lines(self) -> bytes:
        """The header fields of a complete response in HTTP/1 form. Made once, sent many times."""
        if not self._lines:
            self._lines = "".join([f"{name}: {value}\r\n" for name, value in self.headers]).encode()
        return self._lines

    @property
    def length(self) -> int:
        """Bytes of content that belong to the response."""
        return self.body.length if isinstance(self.body, Body) else len(self.body)
