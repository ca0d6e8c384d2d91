"""Requests to the origin. Everything here blocks and runs in a thread of a transfer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    InvalidHeader,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import SKIP_HEADER, Timeout

from clamproxy.config.units import Address, HttpProxy, port_of
from clamproxy.messages import Requester
from clamproxy.origin.addresses import Addresses
from clamproxy.origin.connections import REDIRECTS_ONLY, make_pool
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import LIBRARY_ERRORS, NotFoundError, OriginError, RangeError, reason_of, shown
from clamproxy.origin.link import Link
from clamproxy.origin.proxy_auth import login_error
from clamproxy.origin.response import OriginResponse
from clamproxy.origin.scope import CancelScope

_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d{3})(.*)")
"""How http.client reports that a proxy refused a CONNECT."""
_NOT_CONNECTED = (ConnectTimeoutError, NewConnectionError, ProxyError, ReadTimeoutError, SSLError)


class Upstream:
    """The origin: the CDN, a mirror or a parent gateway. Thread-safe.

    Args:
        url: where files are fetched, without a trailing slash.
        ca_bundle: certificates to trust besides the system's.
        connect_timeout: seconds.
        read_timeout: seconds of silence.
        via: the Via field by which a loop is recognised.
        count: is told the number of requests, redirected and repeated ones too, and of body bytes, from any
            thread.
        note: is told the path of each request, from any thread.
        offline: whether to ask for nothing; every file then counts as not found.
        link: what files are read over; by default, one without a limit.
        addresses: of the URL's host; if empty, DNS is asked.
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
        self._retries = REDIRECTS_ONLY.new(sends_another=lambda: count(1, 0))
        self._pool = make_pool(
            proxy,
            ca_bundle,
            Timeout(connect=connect_timeout, read=read_timeout),
            link=self._link,
            addresses=Addresses(addresses, port_of(urlsplit(url))) if addresses else None,
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
                    retries=self._retries,
                )
            return scope.checked(response)
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
        if login := login_error(cause):
            return OriginError(FailureKind.PROXY_AUTHENTICATION, f"{self._unauthenticated} (407): {login}")
        if refusal and refusal[1] == "407":
            return OriginError(FailureKind.PROXY_AUTHENTICATION, f"{self._unauthenticated} (407)")
        if refusal:
            words = shown(f"{refusal[1]}{refusal[2]}".rstrip("')"))
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
                    FailureKind.BAD_CONTENT, f"answer is encoded as {shown(answer.encoding)}{ray}"
                )
            return
        if status in (404, 410):
            raise NotFoundError(f"{status}{ray}")
        if status == 416:
            raise RangeError(f"{status}{ray}")
        if status == 407:
            raise OriginError(FailureKind.PROXY_AUTHENTICATION, f"{self._unauthenticated} (407)")
        failure = FailureKind.RATE_LIMITED if status == 429 else FailureKind.SERVER_ERROR
        if answer.is_forbidden:
            failure = FailureKind.FORBIDDEN
        reason = f"status {status}{ray}{answer.words()}"
        if answer.redirects:
            reason += ": a redirect to another scheme, host or port, or one too many"
        raise OriginError(failure, reason, answer.retry_after)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()


def longest_head(connect_timeout: float, read_timeout: float) -> float:
    """Seconds for everything before the content: connection, tunnel, TLS, redirects and header fields.

    That is twice what the two steps may take, so that there is time for a second address or a redirect.
    """
    return 2 * (connect_timeout + read_timeout)
