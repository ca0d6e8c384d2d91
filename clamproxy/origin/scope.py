"""Requests that another thread or a deadline can end, wherever they block.

A socket's timeout starts anew with each byte, so a peer that sends one byte a second would hold a thread for
ever.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import urllib3

from clamproxy.threads import in_thread


class CancelledScopeError(OSError):
    """The request was cancelled from outside."""


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

    def checked(self, response: urllib3.BaseHTTPResponse) -> urllib3.BaseHTTPResponse:
        """A response whose head has just arrived. http.client takes a truncated head for a complete one.

        Raises:
            CancelledScopeError: the scope was cancelled; the response is closed.
        """
        try:
            self.check()
        except OSError:
            response.close()
            raise
        return response

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


def current_scope() -> CancelScope | None:
    """The scope of what this thread requests; None if nothing can end it."""
    return _thread.scope


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
