"""Connections to the outside, made by urllib3, with what it takes to rely on them for years.

* Another thread or a deadline can end a request wherever it blocks (`CancelScope`).
* A kept connection may have died silently: firewalls and NATs forget it without telling anyone. So it
  isn't reused after a while, and a request that gets no response over it is repeated at once.
* Redirects stay with the scheme, host and port that were asked, or lead from http to https.
"""

from __future__ import annotations

import base64
import logging
import queue
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPSConnection, port_by_scheme
from urllib3.connectionpool import ConnectionPool, HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, ResponseError
from urllib3.util import Retry, Timeout
from urllib3.util.wait import wait_for_read

from clamproxy.config.units import HttpProxy
from clamproxy.guarded_addresses import describe, find_guarded_blocking, is_guarded
from clamproxy.origin.addresses import Addresses
from clamproxy.origin.link import Link
from clamproxy.origin.proxy_auth import LoginConnection, admission_to
from clamproxy.origin.scope import current_scope
from clamproxy.origin.strict_http import StrictConnection

# urllib3 writes URLs into its warnings and debug lines, and some URLs are secrets.
logging.getLogger("urllib3").setLevel(logging.ERROR)

LONGEST_IDLE = 30.0
"""How long after its last response began a connection may be reused, in seconds: some NATs forget one after
a minute."""
PATIENCE_WITH_REUSED = 1.0
"""Seconds until the first byte of a response over a reused connection. That is half the time that a client
waits if it can be served something older, so that the repetition is in time for it."""

_LONGEST_DRAINED = 64 * 1024
"""Bytes of a redirect's body that are read so that the connection can be used again."""

_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_SOCKET_OPTIONS = [
    *StrictConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _KEEPALIVE.items()
        if hasattr(socket, name)
    ),
]

type MayLeadTo = Callable[[str, str], bool]
"""Tells whether a host may have an address that is guarded."""


class StaleConnectionError(ConnectionError):
    """A connection that had been used before brought no response."""


class _Connection(LoginConnection):
    """A connection that belongs to the scope of the thread that uses it, and knows its age.

    Args:
        link: what it is part of; None if nobody limits it.
        addresses: of the host; None if DNS is asked.
        may_lead_to: tells whether a host may have a guarded address; None if any host may.
    """

    _answered_at: float | None = None
    """When the last response over it began, in monotonic seconds; None while it is new."""

    def __init__(
        self,
        *args: Any,
        link: Link | None = None,
        addresses: Addresses | None = None,
        may_lead_to: MayLeadTo | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._link = link
        self._may_lead_to = may_lead_to
        self._addresses = addresses

    @property
    def is_connected(self) -> bool:
        """Whether the pool may reuse it."""
        is_idle = self._answered_at is not None and time.monotonic() - self._answered_at >= LONGEST_IDLE
        return super().is_connected and not is_idle

    def check_wanted(self) -> None:
        """Raises `CancelledScopeError` if the thread's scope was cancelled."""
        if (scope := current_scope()) is not None:
            scope.check()

    def _new_conn(self) -> socket.socket:
        self._answered_at = None
        self.check_wanted()
        scope = current_scope()
        buffer = self._link.receive_buffer if self._link is not None else None
        if buffer is not None:
            # Before the connection is made: the window that TCP agrees on depends on it.
            self.socket_options = [*_SOCKET_OPTIONS, (socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)]
        connected = self._connected()
        try:
            if scope is not None:
                scope.hold(connected)
        except BaseException:
            connected.close()
            raise
        return connected

    def _connected(self) -> socket.socket:
        if self._may_lead_to is not None:
            return self._guarded(self._may_lead_to)
        if self._addresses is None:
            return super()._new_conn()
        host, port = self._dns_host, self.port
        try:
            return self._addresses.connect(port, self._connected_to)
        finally:
            self._dns_host, self.port = host, port

    def _guarded(self, may_lead_to: MayLeadTo) -> socket.socket:
        """Connect, unless the name leads to a guarded address, or does so a moment later."""
        host = self._dns_host
        found = find_guarded_blocking(host, self.port, partial(may_lead_to, host))
        if found is None:
            connected = super()._new_conn()
            peer = connected.getpeername()[0]
            if not is_guarded(peer) or may_lead_to(host, peer):
                return connected
            connected.close()
            found = peer
        raise NewConnectionError(self, describe(host, found))

    def _connected_to(self, host: str, port: int) -> socket.socket:
        # The name stays with everything but the connection: Host, SNI, the certificate.
        self._dns_host, self.port = host, port
        return super()._new_conn()

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request.

        Raises:
            StaleConnectionError: a reused connection had been closed.
        """
        if not self._is_reused:
            super().request(*args, **kwargs)
            return
        if (scope := current_scope()) is not None:
            scope.hold(self.sock)
        try:
            super().request(*args, **kwargs)
        except OSError as error:
            raise StaleConnectionError(f"a reused connection had ended: {error}") from error

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """Wait for the head of the response.

        Raises:
            StaleConnectionError: a reused connection brought none.
        """
        response = self._response_of_reused() if self._is_reused else super().getresponse()
        self._answered_at = time.monotonic()
        return response

    def _response_of_reused(self) -> urllib3.HTTPResponse:
        limit = min(PATIENCE_WITH_REUSED, self.timeout or PATIENCE_WITH_REUSED)
        if not wait_for_read(self.sock, limit):
            raise StaleConnectionError("a reused connection is silent")
        try:
            return super().getresponse()
        except TimeoutError as error:
            if error.errno is None:  # the response has begun
                raise
            raise StaleConnectionError(f"a reused connection had ended: {error}") from error
        except OSError as error:
            raise StaleConnectionError(f"a reused connection had ended: {error}") from error

    @property
    def _is_reused(self) -> bool:
        return self.sock is not None and self._answered_at is not None


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def trusting(ca_bundle: Path | None) -> ssl.SSLContext:
    """Certificates are verified, with those of a file besides the system's."""
    context = ssl.create_default_context()
    if ca_bundle is not None:
        context.load_verify_locations(cafile=ca_bundle)
    return context


def make_pool(
    proxy: HttpProxy | None,
    ca_bundle: Path | None,
    timeout: Timeout,
    *,
    link: Link | None = None,
    addresses: Addresses | None = None,
    may_lead_to: MayLeadTo | None = None,
) -> urllib3.PoolManager:
    """Connections to the outside, through the proxy if there is one, trusting the configured certificates.

    Args:
        ca_bundle: certificates to trust besides the system's.
        link: limits what is read; None if nothing does.
        addresses: where to connect, whatever host is asked for; None if DNS is asked.
        may_lead_to: tells whether a host may have a guarded address; None if any may. The proxy itself may.
    """
    context = trusting(ca_bundle)
    shared: dict[str, Any] = {
        "maxsize": 8,
        "timeout": timeout,
        "ssl_context": context,
        "socket_options": _SOCKET_OPTIONS,
    }
    if proxy is None:
        manager = urllib3.PoolManager(**shared)
    else:
        headers = {}
        if proxy.scheme == "basic" and proxy.credentials is not None:
            # urllib3.make_headers knows Latin-1 only.
            token = base64.b64encode(proxy.credentials.encode()).decode("ascii")
            headers["Proxy-Authorization"] = f"Basic {token}"
        manager = urllib3.ProxyManager(proxy.url, proxy_headers=headers, proxy_ssl_context=context, **shared)
    logs_in = proxy is not None and (proxy.credentials is not None or proxy.scheme != "basic")
    admission = admission_to(proxy) if proxy is not None and logs_in else None
    means: dict[str, Any] = {"link": link, "addresses": addresses, "admission": admission}
    means["may_lead_to"] = may_lead_to if proxy is None else None
    makers: Any = {"http": partial(_Pool, **means), "https": partial(_TlsPool, **means)}
    manager.pool_classes_by_scheme = makers
    return manager


class Retries(Retry):
    """What urllib3 may do on its own: follow redirects, and repeat what a dead connection swallowed.

    Args:
        sends_another: called before each further request.
    """

    def __init__(self, *args: Any, sends_another: Callable[[], object] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sends_another = sends_another

    def new(self, **kw: Any) -> Self:
        """A copy, with something changed."""
        return super().new(**{"sends_another": self._sends_another, **kw})

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        """Called by urllib3 before each repetition; an exception ends the request."""
        if isinstance(_pool, HTTPConnectionPool):
            if isinstance(error, HTTPError) and isinstance(error.args[-1], StaleConnectionError):
                _close_idle(_pool)  # the other idle ones have most likely died with it
                self._tell()
                return self
            location = response.get_redirect_location() if response is not None else None
            if location and not _may_follow(url or "", location):
                raise MaxRetryError(_pool, url or "", ResponseError("a redirect to another place"))
        further = super().increment(method, url, response, error, _pool, _stacktrace)
        if response is not None and not _is_short(response):
            # urllib3 would read all of it, to use the connection again.
            response.close()
            response.release_conn()
        self._tell()
        return further

    def _tell(self) -> None:
        if self._sends_another is not None:
            self._sends_another()


# freshclam follows three redirects (docs/protocol.md 1.1); all other retries are up to the transfer.
REDIRECTS_ONLY = Retries(
    total=3,
    connect=0,
    read=0,
    redirect=3,
    status=0,
    other=0,
    raise_on_redirect=False,
    respect_retry_after_header=False,
)
ONCE = Retries(False)
"""Follows no redirects either; errors are raised unchanged."""


def _is_short(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether a body has a known length that is worth reading."""
    left = response.length_remaining if isinstance(response, urllib3.HTTPResponse) else None
    return left is not None and left <= _LONGEST_DRAINED


def _may_follow(url: str, location: str) -> bool:
    """Whether a redirect stays with the scheme, host and port, or leads to https on the default ports."""
    try:
        asked, target = _place(url), _place(urljoin(url, location))
    except ValueError:
        return False
    is_upgrade = asked == ("http", asked[1], 80) and target == ("https", asked[1], 443)
    return target == asked or is_upgrade


def _place(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port; raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or port_by_scheme.get(parts.scheme)


def _close_idle(pool: HTTPConnectionPool) -> None:
    while pool.pool is not None:
        try:
            connection = pool.pool.get_nowait()
        except queue.Empty:
            return
        if connection is not None:
            connection.close()
