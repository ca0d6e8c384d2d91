"""Requests to feeds. Everything here blocks and runs in a thread of a transfer.

No error says more about a URL than its host. urllib3, which logs whole URLs, is kept from that
(origin/connections.py).
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import SKIP_HEADER, Timeout
from werkzeug.datastructures import Headers
from werkzeug.http import parse_set_header

from clamproxy.config.settings import Settings
from clamproxy.feeds.sharing_rules import ResponseHead, explicit_lifetime, kept
from clamproxy.feeds.target import Target, TargetError
from clamproxy.messages import PLAIN_FIELD
from clamproxy.origin.connections import ONCE, make_pool
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError
from clamproxy.origin.link import Link
from clamproxy.origin.proxy_auth import login_error
from clamproxy.origin.response import OriginResponse, retry_after_of
from clamproxy.origin.scope import CancelScope
from clamproxy.origin.upstream import longest_head

MOST_REDIRECTS = 3
"""As many as freshclam follows (docs/protocol.md 1.1)."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LASTING = frozenset({301, 308})
"""Redirects that may be stored even if they give no freshness lifetime (RFC 9110 15.4)."""
_REFUSALS = frozenset({401, 402, 403, 451})
_FORWARDED = ("User-Agent", "Accept", "Accept-Language", "Authorization")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A usable response, 200 or 304, whose body is still to be read."""

    answer: OriginResponse
    status: int
    head: ResponseHead
    length: int | None
    """Length of the body in bytes; None if the feed doesn't give it."""
    chunked: bool
    """Whether the body comes in chunks, so that its end is marked even without a length."""

    @property
    def ends_visibly(self) -> bool:
        """Whether a truncated body can be told from a complete one."""
        return self.length is not None or self.chunked


def forwarded(headers: Headers, target: Target, via: str) -> Headers:
    """The fields that are sent to a feed on behalf of a client.

    Args:
        headers: of the client's request.
        via: how this gateway names itself in Via.
    """
    # RFC 9110 7.6.1: fields that Connection names are for that connection only.
    nominated = parse_set_header(", ".join(headers.getlist("Connection")))
    fields = [(name, headers[name]) for name in _FORWARDED if name in headers and name not in nominated]
    sent = Headers([(name, value) for name, value in fields if value.isascii() and value.isprintable()])
    if not PLAIN_FIELD.fullmatch(sent.get("User-Agent", "-")):
        del sent["User-Agent"]
    if target.credentials is not None:
        sent["Authorization"] = target.credentials
    sent.setdefault("Accept", "*/*")
    # freshclam doesn't decode anything: docs/protocol.md, trap 32.
    sent["Accept-Encoding"] = "identity"
    sent["Via"] = ", ".join([*headers.getlist("Via"), via])
    return sent


class Fetcher:
    """Asks feeds. Thread-safe.

    Args:
        settings: proxy, trust and timeouts come from its section `upstream`.
        count: is told the number of requests and of body bytes, from any thread.
        link: what files are read over; by default, one without a limit.
    """

    def __init__(
        self, settings: Settings, count: Callable[[int, int], None], link: Link | None = None
    ) -> None:
        self._upstream = upstream = settings.upstream
        self._feeds = settings.feeds
        self._count = count
        self._link = link or Link()
        self._timeout = Timeout(connect=upstream.connect_timeout, read=upstream.read_timeout)

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        """Made when the first feed is asked, because loading the certificates takes a while."""
        upstream = self._upstream
        return make_pool(
            upstream.parent_proxy,
            upstream.ca_bundle,
            self._timeout,
            link=self._link,
            may_lead_to=self._feeds.may_lead_to,
        )

    def get(self, target: Target, sent: Mapping[str, str], scope: CancelScope) -> Fetched:
        """Ask for a file, and follow redirects to other feeds.

        Args:
            sent: the header fields.

        Raises:
            NotFoundError: 404 or 410.
            OriginError: no connection, no response, or any other response that is of no use.
        """
        fields = {"User-Agent": SKIP_HEADER, "Connection": "close", **sent}
        place, keeps, freshness = target, True, list[float]()
        requested_at = time.time()
        for _ in range(MOST_REDIRECTS + 1):
            response = self._request(place, fields, scope)
            received_at = time.time()
            head = ResponseHead(kept(response.headers), requested_at, received_at)
            if response.status not in _REDIRECTS:
                limit = min(freshness, default=None)
                return self._use(
                    response, ResponseHead(_marked(head, keeps), requested_at, received_at, limit), scope
                )
            scope.close()
            following = self._next(place, response)
            if following.origin != place.origin:
                fields.pop("Authorization", None)
            place = following
            keeps &= not any(name in head.directives for name in ("no-store", "private"))
            lasting = explicit_lifetime(head)
            if lasting is not None or response.status not in _LASTING:
                freshness.append(lasting or 0.0)
        raise OriginError(FailureKind.SERVER_ERROR, "too many redirects")

    def close(self) -> None:
        """Close idle connections, if any were ever made."""
        if "_pool" in self.__dict__:
            self._pool.clear()

    def _request(
        self, place: Target, fields: Mapping[str, str], scope: CancelScope
    ) -> urllib3.BaseHTTPResponse:
        self._count(1, 0)
        upstream = self._upstream
        try:
            with scope.within(longest_head(upstream.connect_timeout, upstream.read_timeout)):
                response = self._pool.request(
                    "GET",
                    place.url,
                    headers=fields,
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    retries=ONCE,
                )
            return scope.checked(response)
        except (HTTPError, OSError, ValueError) as error:
            failure = FailureKind.BAD_CONTENT if isinstance(error, InvalidHeader) else FailureKind.UNREACHABLE
            reason = explain(error)
            scope.close()
        # Raised outside the handler, so that it has no cause, whose text may contain the URL.
        raise OriginError(failure, reason)

    def _next(self, place: Target, response: urllib3.BaseHTTPResponse) -> Target:
        """Where a redirect leads."""
        location = response.headers.get("Location", "")
        response.close()
        try:
            following = place.follow(location)
        except TargetError:
            following = None
        if following is None or not location:
            raise OriginError(FailureKind.SERVER_ERROR, "a redirect that can't be followed")
        if not self._feeds.covers(following.host):
            reason = f"a redirect to {following.host}, which is not in feeds.hosts"
            raise OriginError(FailureKind.SERVER_ERROR, reason)
        return following

    def _use(self, response: urllib3.BaseHTTPResponse, head: ResponseHead, scope: CancelScope) -> Fetched:
        """Accept only responses that are of use."""
        answer = OriginResponse(response, lambda length: self._count(0, length), scope, self._link)
        try:
            _check(response)
            chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
            length = None if chunked or response.status == 304 else answer.size
            return Fetched(answer, response.status, head, length, chunked)
        except Exception:
            answer.close()
            raise


def _marked(head: ResponseHead, keeps: bool) -> Headers:
    """The fields of a response, with ``no-store`` if a redirect to it forbids storing."""
    if not keeps:
        head.headers.add("Cache-Control", "no-store")
    return head.headers


def _check(response: urllib3.BaseHTTPResponse) -> None:
    status = response.status
    if status in (200, 304):
        return
    if status in (404, 410):
        raise NotFoundError(f"status {status}")
    failure = FailureKind.SERVER_ERROR
    if status == 429:
        failure = FailureKind.RATE_LIMITED
    elif status in _REFUSALS:
        failure = FailureKind.FORBIDDEN
    raise OriginError(failure, f"status {status}", retry_after_of(response.headers.get("Retry-After")))


def explain(error: BaseException) -> str:
    """A failed connection in one short line, never with the error's own text, which may contain the URL."""
    login = login_error(error)
    return f"the proxy refuses the user and password (407): {login}" if login else _explained(error)


def _explained(error: BaseException) -> str:
    inner = error.original_error if isinstance(error, ProxyError) else error
    before = "the proxy: " if inner is not error else ""
    match inner:
        case NameResolutionError():
            return f"{before}unknown host name"
        case ConnectTimeoutError():
            return f"{before}no connection in time"
        case ReadTimeoutError() | TimeoutError():
            return f"{before}no answer in time"
        case SSLError():
            return f"{before}TLS: {_tls_reason(inner)}"
        case NewConnectionError():
            return f"{before}no connection"
        case InvalidHeader():
            return f"{before}an invalid header"
        case ProtocolError():
            return f"{before}the connection ended without an answer"
        case OSError() if str(inner).startswith("Tunnel connection failed: "):
            return before + str(inner)[:100]
        case OSError():
            return f"{before}{inner.strerror or type(inner).__name__}"
    return f"{before}{type(inner).__name__}"


def _tls_reason(error: SSLError) -> str:
    cause = error.args[0] if error.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    return (getattr(cause, "reason", None) or "no agreement").lower()
