"""Attempts under watch: a connection that is too slow, or silent while clients are waiting, is given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from clamproxy.messages import Requester
from clamproxy.origin.attempt import Arrival, Attempt
from clamproxy.origin.upstream import Upstream
from clamproxy.threads import in_thread

SLOWEST = 1024
"""Bytes per second below which a connection counts as stalled."""
LONGEST_CONNECTION = 3600.0
"""Seconds after which a transfer goes on over another connection. An origin may send just fast enough not to
count as stalled, for days; it would hold up the file even after it has become well again."""
LONGEST_WITHOUT_RESUMING = 86400.0
"""The same where another connection would have to begin anew."""
_LOOK_EVERY = 1.0
"""Seconds between looks at the speed."""


class StalledError(Exception):
    """The connection is too slow to continue with."""


class UnansweredError(Exception):
    """The origin has not answered yet and more clients are waiting, which is worth a new connection."""


class WatchedAttempts:
    """Uses one connection after another for a transfer. Event loop only.

    Args:
        window: seconds over which the speed of a connection is watched.
        progress: called from another thread after bytes have arrived; what it does on the event loop is to
            include `heard`.
    """

    def __init__(self, upstream: Upstream, window: float, progress: Callable[[], None]) -> None:
        self._upstream = upstream
        self._window = window
        self._progress = progress
        self._kicked = asyncio.Event()
        self._current: Attempt | None = None
        self._heard_at = time.monotonic()

    def heard(self) -> None:
        """Note that something has arrived."""
        self._heard_at = time.monotonic()

    def kick(self) -> None:
        """Give up the connection if it is silent: another client wants the object.

        An origin that has not answered yet may just be slow, and gets twice the time.
        """
        answered = self._current is not None and self._current.begun
        if time.monotonic() - self._heard_at > self._window * (1 if answered else 2):
            self._kicked.set()

    async def run(self, arrival: Arrival, requester: Requester) -> None:
        """Fetch the rest of an arrival over one connection.

        Raises:
            StalledError, UnansweredError: the connection was given up.
            Exception: what `Attempt.run` raises.
        """
        attempt = Attempt(self._upstream, arrival, requester, self._progress)
        self._current = attempt
        self._kicked.clear()
        self.heard()
        future = in_thread(f"clamproxy-fetch-{arrival.object_id.file_name}", attempt.run)
        try:
            # Until the origin answers, upstream.read_timeout is the limit, or a kick.
            while not await self._ended(future) and not attempt.begun:
                if self._kicked.is_set():
                    raise UnansweredError
            await self._watch_speed(attempt, future, arrival)
            future.result()
        finally:
            attempt.abandon()
            future.cancel()

    async def _watch_speed(self, attempt: Attempt, future: asyncio.Future[None], arrival: Arrival) -> None:
        begun_at = marked_at = time.monotonic() - attempt.held_back
        mark = attempt.received
        while not await self._ended(future):
            longest = LONGEST_CONNECTION if arrival.partial.resumable else LONGEST_WITHOUT_RESUMING
            if time.monotonic() - attempt.held_back - begun_at >= longest:
                raise StalledError
            if (now := time.monotonic() - attempt.held_back) - marked_at >= self._window:
                if attempt.received - mark < SLOWEST * self._window:
                    raise StalledError
                mark, marked_at = attempt.received, now
            if self._kicked.is_set():
                raise StalledError

    async def _ended(self, future: asyncio.Future[None]) -> bool:
        kicked = asyncio.ensure_future(self._kicked.wait())
        waiting: set[asyncio.Future[Any]] = {future, kicked}
        try:
            await asyncio.wait(waiting, timeout=_LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:  # the transfer may be cancelled here
            kicked.cancel()
        return future.done()
