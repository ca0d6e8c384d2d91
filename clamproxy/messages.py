"""Requests and responses as the gateway sees them: plain values, no mitmproxy, no sockets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from werkzeug.datastructures import Headers

DOCTOR_FIELD = "Clamproxy-Doctor"
"""The field in requests of `clamproxy doctor`: they are answered like all others, but not counted."""

GATEWAY_IN_VIA = "clamproxy-"
"""How each gateway's name in Via begins."""

_CLIENT_VERSION = re.compile(r"(ClamAV|CVDUPDATE)/[\w.+~-]{1,32}", re.ASCII)

PLAIN_FIELD = re.compile(r"[ -~]{1,255}")
"""A field's value that is passed on; freshclam's User-Agent has at most 127 bytes (protocol.md 1.1)."""


class Result(StrEnum):
    """How a request was answered; each request counts under exactly one of these."""

    HIT = "hit"
    MISS = "miss"
    COLLAPSED = "collapsed"
    STALE = "stale"
    NEGATIVE = "negative"
    REFUSED = "refused"
    PASSED = "passed"
    ERROR = "error"
    STATUS = "status"
    """A page about the gateway itself, or a request of the doctor; not counted among the requests."""


FROM_CACHE = frozenset({Result.HIT, Result.COLLAPSED, Result.STALE, Result.NEGATIVE})
"""The results that cost no request of their own."""

# RFC 9211 2: `fwd` says why a request went (or had to go) to the origin.
CACHE_STATUS: Mapping[Result, str] = {
    Result.HIT: "clamproxy; hit",
    Result.MISS: "clamproxy; fwd=miss",
    Result.COLLAPSED: "clamproxy; fwd=miss; collapsed",
    Result.STALE: "clamproxy; fwd=stale",
    Result.NEGATIVE: "clamproxy; hit; detail=negative",
    Result.REFUSED: "clamproxy; detail=refused",
    Result.PASSED: "clamproxy; fwd=bypass",
    Result.ERROR: "clamproxy; fwd=miss; detail=error",
    Result.STATUS: "clamproxy; detail=status",
}
"""The value of Cache-Status for each result."""


class SourceError(Exception):
    """The rest of a body cannot be had; the connection must be cut, not ended properly."""


class Source(Protocol):
    """The bytes of an object on disk, complete or still arriving."""

    @property
    def size(self) -> int:
        """Length of the whole object in bytes."""

    def fileno(self) -> int:
        """A descriptor that is read with explicit offsets (pread, sendfile)."""

    async def wait(self, offset: int) -> int:
        """Wait until there are bytes to send after `offset`.

        Returns:
            The end of the bytes that may be sent now, greater than `offset`.

        Raises:
            SourceError: there will be no more.
        """

    def close(self) -> None:
        """Release the descriptor. Closing twice does nothing."""


@dataclass(frozen=True, slots=True)
class Requester:
    """The client on whose behalf the origin is asked."""

    user_agent: str | None = None
    """The client's own, which goes upstream unchanged: the CDN admits by it (protocol.md 9.4)."""
    via: str | None = None
    """The gateways that the request came through, by which a loop is known."""

    @property
    def version(self) -> str:
        """The part of the User-Agent by which the CDN admits or refuses: ``ClamAV/1.4.6``.

        The rest of freshclam's names the machine (protocol.md 1.1). All others are one.
        """
        match = _CLIENT_VERSION.match(self.user_agent or "")
        return match[0] if match else "other"


@dataclass(frozen=True, slots=True)
class Body:
    """A span of a source: what the sender moves from disk to the client's socket."""

    source: Source
    start: int
    length: int


@dataclass(slots=True)
class Request:
    """One request of a client."""

    method: str
    path: str = field(repr=False)
    """Path with query string, as received. In a feed's both may hold a subscriber's key."""
    headers: Headers = field(repr=False)
    scheme: str = ""
    host: str = ""
    port: int = 0
    """With scheme and host: which server is asked. The databases and the pages don't look at it."""
    _fields: dict[str, str] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def fields(self) -> Mapping[str, str]:
        """The first value of each field in `headers`, by its name in lower case.

        A request is asked for some ten fields, most of which it doesn't have, and each look-up in `headers`
        costs as much as this takes for all of them. Not to be used before `headers` are complete.
        """
        if self._fields is None:
            self._fields = {}
            for name, value in self.headers:
                self._fields.setdefault(name.lower(), value)
        return self._fields

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"

    @property
    def requester(self) -> Requester:
        """For whom the origin is asked."""
        agent = self.fields.get("user-agent")
        # A field that no client sends must not make the origin refuse a file that others want.
        usable = agent is not None and PLAIN_FIELD.fullmatch(agent) is not None
        return Requester(agent if usable else None, self.via or None)

    @property
    def via(self) -> str:
        """The gateways that the request came through."""
        return "" if "via" not in self.fields else ", ".join(self.headers.get_all("Via"))

    @property
    def is_freshclams(self) -> bool:
        """Whether freshclam has sent it, to this gateway or to another one that passes it on."""
        return self.fields.get("user-agent", "").startswith("ClamAV/")

    @property
    def is_doctors(self) -> bool:
        """Whether `clamproxy doctor` has sent it; nobody needs the answer."""
        return DOCTOR_FIELD.lower() in self.fields

    @property
    def is_relayed(self) -> bool:
        """Whether another gateway asks: in a client's name, but for what it wants itself."""
        return GATEWAY_IN_VIA in self.via


@dataclass(slots=True)
class Response:
    """The answer to a `Request`."""

    status: int
    result: Result
    headers: Headers = field(default_factory=Headers)
    body: bytes | Body = b""
    version: int | None = None
    """The database version that the answer is about, for the log."""
    reason: str = ""
    """Why the client doesn't get what it asked for, or not the newest of it: for the log."""
    is_complete: bool = False
    """Whether nothing is missing in it, and nobody may change it any more: see `responses.complete`."""
    _lines: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def lines(self) -> bytes:
        """The fields of a complete response as HTTP/1 has them. Made once, sent many times."""
        if not self._lines:
            self._lines = "".join([f"{name}: {value}\r\n" for name, value in self.headers]).encode()
        return self._lines

    @property
    def length(self) -> int:
        """Bytes of content that belong to the answer."""
        return self.body.length if isinstance(self.body, Body) else len(self.body)
