"""Connections to the outside, made by urllib3, with what it takes to rely on them for years.

* Another thread or a deadline can end a request wherever it blocks. A socket's timeout starts anew with
  each byte, so a peer that sends one byte a second would hold a thread for ever.
* A kept connection may have died silently: firewalls and NATs forget it without telling anyone. So it
  isn't reused after a while, and a request that gets no response over it is repeated at once.
* Redirects stay with the host that was asked.
"""

from __future__ import annotations

import base64
import logging
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import ConnectionPool, HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NewConnectionError,
    ResponseError,
)
from urllib3.util import Retry, Timeout
from urllib3.util.wait import wait_for_read

from clamproxy.config.units import Address, HttpProxy
from clamproxy.origin.link import Link
from clamproxy.origin.proxy_auth import LoginConnection
from clamproxy.origin.strict_http import StrictConnection
from clamproxy.threads import in_thread

# urllib3 writes URLs into its warnings and debug lines, and some URLs are secrets.
logging.getLogger("urllib3").setLevel(logging.ERROR)

LONGEST_IDLE = 30.0
"""How long after its last response began a connection may be reused, in seconds: some NATs forget one after
a minute."""
PATIENCE_WITH_REUSED = 1.0
"""Seconds until the first byte of a response over a reused connection. That is half the time that a client
waits if it can be served something older, so that the repetition is in time for it."""

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


class CancelledScopeError(OSError):
    """The request was cancelled from outside."""


class StaleConnectionError(ConnectionError):
    """A connection that had been used before brought no response."""


class CancelScope:
    """The requests of one thread, which any thread can end by shutting their connections down."""

    def __init__(self) -> None:
        self.is_overdue = False
        """Whether its deadline ended it."""
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._held_back = 0.0
        self._paused_at: float | None = None
        # Duplicates, because TLS takes the descriptor away from the socket that was connected.
        self._held: list[socket.socket] = []

    def cancel(self) -> None:
        """End whatever blocks and all later requests. Any thread; idempotent."""
        with self._lock:
            self._cancelled.set()
            for held in self._held:
                with suppress(OSError):  # it has ended already
                    held.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Put what this thread requests in the meantime into the scope, and end it after `seconds`."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        outer, _thread.scope = _thread.scope, self
        try:
            yield
        finally:
            _thread.scope = outer
            timer.cancel()

    def check(self) -> None:
        """Raises `CancelledScopeError` if the scope was cancelled."""
        if self._cancelled.is_set():
            raise CancelledScopeError("given up")

    def pause(self, seconds: float) -> None:
        """Wait before reading on.

        Raises:
            CancelledScopeError: the scope was cancelled before or meanwhile.
        """
        self._paused_at = begun = time.monotonic()
        self._cancelled.wait(seconds)
        self._paused_at, self._held_back = None, self._held_back + time.monotonic() - begun
        self.check()

    @property
    def held_back(self) -> float:
        """Seconds that were spent in `pause` so far: nothing could arrive then. Any thread."""
        paused_at = self._paused_at
        return self._held_back + (time.monotonic() - paused_at if paused_at is not None else 0.0)

    def hold(self, connection: Any) -> None:
        """Add a socket to the scope.

        Raises:
            CancelledScopeError: the scope was cancelled already.
        """
        with self._lock:
            self.check()
            self._held.append(socket.socket(fileno=os.dup(connection.fileno())))

    @contextmanager
    def unless_cancelled(self) -> Iterator[None]:
        """What is done meanwhile is done before `cancel` returns, or not at all. Takes milliseconds.

        Raises:
            CancelledScopeError: it is too late.
        """
        with self._lock:
            self.check()
            yield

    def close(self) -> None:
        """Release the connections; cancelling has no effect on them any more."""
        with self._lock:
            while self._held:
                self._held.pop().close()

    def _expire(self) -> None:
        self.is_overdue = True
        self.cancel()


class _Thread(threading.local):
    scope: CancelScope | None = None


_thread = _Thread()


async def in_scope[T](name: str, seconds: float, function: Callable[[CancelScope], T]) -> T:
    """Run requests in a separate thread, which ends when nobody waits for it any more.

    Args:
        name: of the thread.
        seconds: the deadline for everything together.
        function: is given the scope.

    Raises:
        TimeoutError: it took longer.
    """
    scope = CancelScope()

    def run() -> T:
        try:
            with scope.within(seconds):
                return function(scope)
        finally:
            scope.close()

    try:
        return await in_thread(name, run)
    except Exception as error:
        if scope.is_overdue:
            raise TimeoutError from error
        raise
    finally:
        scope.cancel()


class _Connection(LoginConnection):
    """A connection that belongs to the scope of the thread that uses it, and knows its age.

    Args:
        link: what it is part of; None if nobody limits it.
        addresses: of the host, in the order in which to try them; if empty, DNS is asked.
    """

    _answered_at: float | None = None
    """When the last response over it began, in monotonic seconds; None while it is new."""

    def __init__(
        self,
        *args: Any,
        link: Link | None = None,
        addresses: Sequence[Address] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._link = link
        self._addresses = addresses

    @property
    def is_connected(self) -> bool:
        """Whether the pool may reuse it."""
        is_idle = self._answered_at is not None and time.monotonic() - self._answered_at >= LONGEST_IDLE
        return super().is_connected and not is_idle

    def _new_conn(self) -> socket.socket:
        self._answered_at = None
        scope = _thread.scope
        if scope is not None:
            scope.check()
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
        if not self._addresses:
            return super()._new_conn()
        host, port = self._dns_host, self.port
        *others, last = self._addresses
        try:
            for address in others:
                # The name stays with everything but the connection: Host, SNI, the certificate.
                self._dns_host, self.port = address.host, address.port or port
                with suppress(ConnectTimeoutError, NewConnectionError):
                    return super()._new_conn()
            self._dns_host, self.port = last.host, last.port or port
            return super()._new_conn()
        finally:
            self._dns_host, self.port = host, port

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request.

        Raises:
            StaleConnectionError: a reused connection had been closed.
        """
        if not self._is_reused:
            super().request(*args, **kwargs)
            return
        if _thread.scope is not None:
            _thread.scope.hold(self.sock)
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
    addresses: Sequence[Address] = (),
) -> urllib3.PoolManager:
    """Connections to the outside, through the proxy if there is one, trusting the configured certificates.

    Args:
        ca_bundle: certificates to trust besides the system's.
        link: limits what is read; None if nothing does.
        addresses: where to connect, whatever host is asked for; if empty, DNS is asked.
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
    login = proxy if proxy is not None and proxy.scheme != "basic" else None
    means: dict[str, Any] = {"link": link, "addresses": tuple(addresses), "login": login}
    makers: Any = {"http": partial(_Pool, **means), "https": partial(_TlsPool, **means)}
    manager.pool_classes_by_scheme = makers
    return manager


class Retries(Retry):
    """What urllib3 may do on its own: follow redirects, and repeat what a dead connection swallowed."""

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
                return self
            location = response.get_redirect_location() if response is not None else None
            if location and not _may_follow(url or "", location):
                raise MaxRetryError(_pool, url or "", ResponseError("a redirect to another host"))
        return super().increment(method, url, response, error, _pool, _stacktrace)


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


def _may_follow(url: str, location: str) -> bool:
    """Whether a redirect stays with the host, and doesn't lead from https to http."""
    try:
        asked, target = urlsplit(url), urlsplit(urljoin(url, location))
        is_downgrade = asked.scheme == "https" and target.scheme != "https"
        return target.hostname == asked.hostname and not is_downgrade
    except ValueError:
        return False


def _close_idle(pool: HTTPConnectionPool) -> None:
    while pool.pool is not None:
        try:
            connection = pool.pool.get_nowait()
        except queue.Empty:
            return
        if connection is not None:
            connection.close()
