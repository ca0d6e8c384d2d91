"""One response on its way from a feed to the disk, and to all who wait for it.

A transfer belongs to no client: it goes on when they leave, so that the next try is a hit.
Where the feed tells the length, clients read along; a body that ends early then cuts them off,
and freshclam sees that. Without a length they wait until all of it is here.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from werkzeug.datastructures import Headers

from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.feed_store import FeedStore, NoRoomError, Spool
from clamproxy.feeds.fetch import Fetched, Fetcher
from clamproxy.feeds.sharing_rules import (
    ResponseHead,
    is_confirmed_by,
    is_shareable,
    renewed,
    selection,
    validators,
)
from clamproxy.feeds.target import Target
from clamproxy.messages import SourceError
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.upstream import NotFoundError, OriginError, OriginResponse
from clamproxy.progress import Progress
from clamproxy.threads import in_thread

STALL_WINDOW = 30.0
"""Seconds over which the speed of a connection is watched."""
SLOWEST = 100
"""Bytes per second below which it is given up: freshclam itself waits for one byte per second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is fetched, and for whom."""

    target: Target
    key: str
    sent: Headers
    """The fields that are sent to the feed."""
    request: Headers
    """The client's."""
    stored: StoredResponse | None = None
    """What is revalidated."""
    conditions: Mapping[str, str] | None = None
    """The client's own validators, where nobody else gets the answer."""

    def allows_sharing(self, head: ResponseHead) -> bool:
        """Whether others may have the response, too; a password in the URL counts as sent."""
        asked = Headers(self.request)
        if "Authorization" in self.sent:
            asked["Authorization"] = self.sent["Authorization"]
        return is_shareable(asked, head)


@dataclass(frozen=True, slots=True)
class FetchOutcome:
    """What came of it. Final when a transfer is ready."""

    head: ResponseHead
    status: int = 200
    """304: the client's own copy is right."""
    confirmed: StoredResponse | None = None
    """The stored response, which a 304 confirmed."""
    size: int = 0
    """Of the body that arrives, or has arrived."""
    shareable: bool = False
    """Whether it may be given to others."""


class FeedTransfer:
    """One transfer. Made and used on the event loop."""

    def __init__(self, plan: Plan, fetcher: Fetcher, store: FeedStore) -> None:
        self.plan = plan
        self.arriving_since = 0.0
        """When the head of a new body came, which may be read since; Unix seconds, 0 if none has."""
        self._fetcher = fetcher
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[FetchOutcome] = self._loop.create_future()
        self._progress = Progress(self._on_progress)
        self._lock = threading.Lock()
        self._spool: Spool | None = None
        self._closed = False
        self._is_receiving = False
        self._answer: OriginResponse | None = None
        self._abandoned = False
        self._have = 0
        self._error: Exception | None = None
        self._waiting = 0

    def __enter__(self) -> Self:
        """Whoever wants the body must be there before the transfer ends; then it waits for them."""
        self._waiting += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1
        if self._abandoned and not self._waiting:
            with self._lock:
                self._close()

    async def ready(self) -> FetchOutcome:
        """Wait until there is something to answer with.

        Raises:
            NotFoundError: the feed has no such file.
            OriginError: it does not deliver.
        """
        return await asyncio.shield(self._ready)

    def source(self, outcome: FetchOutcome) -> FeedSource:
        """A reader of the body that an outcome tells of. Only inside the transfer's context."""
        assert self._spool is not None  # noqa: S101
        descriptor = os.dup(self._spool.descriptor)
        at, key = outcome.head.received_at, self.plan.key
        return FeedSource(descriptor, outcome.size, self.available, lambda: self._store.sent(key, at))

    async def available(self, offset: int) -> int:
        """Wait for bytes after `offset`; returns their end.

        Raises:
            SourceError: there will be no more.
        """
        while self._have <= offset:
            if self._error is not None:
                raise SourceError(str(self._error))
            await self._progress.wait()
        return self._have

    async def run(self, slots: asyncio.Semaphore) -> FetchOutcome:
        """Fetch; all who wait are told.

        Args:
            slots: how many may be fetched at a time.

        Returns:
            As `ready`.

        Raises:
            NotFoundError, OriginError: as `ready`, or later.
        """
        try:
            async with slots:
                return await self._watched(in_thread("clamproxy-feed", self._fetch))
        except asyncio.CancelledError:
            self._fail(OriginError(FailureKind.LOCAL, "the gateway is stopping"))
            raise
        except (NotFoundError, OriginError) as error:
            self._fail(error)
            raise
        except Exception as error:
            failure = OriginError(FailureKind.LOCAL, _local_reason(error))
            self._fail(failure)
            raise failure from None
        finally:
            self._abandon()

    async def _watched(self, fetching: asyncio.Future[FetchOutcome]) -> FetchOutcome:
        """Wait for the thread, unless it waits for a body that doesn't get on."""
        mark = None
        try:
            while not (await asyncio.wait({fetching}, timeout=STALL_WINDOW))[0]:
                have = self._spool.have if self._spool is not None and self._is_receiving else None
                if mark is not None and have is not None and have - mark < SLOWEST * STALL_WINDOW:
                    raise OriginError(FailureKind.INTERRUPTED, "too slow")
                mark = have
            return fetching.result()
        finally:
            fetching.cancel()

    # In the thread

    def _fetch(self) -> FetchOutcome:
        conditions = self.plan.conditions or {}
        if self.plan.stored is not None:
            conditions = validators(self.plan.stored.head)
        # A 304 about something else than what is here: ask anew.
        outcome = self._fetch_once(conditions) or self._fetch_once({})
        if outcome is None:
            raise OriginError(FailureKind.SERVER_ERROR, "an unexpected 304")
        return outcome

    def _fetch_once(self, conditions: Mapping[str, str]) -> FetchOutcome | None:
        """One request; None if the answer is about something that isn't here."""
        fetched = self._fetcher.get(self.plan.target, {**dict(self.plan.sent), **conditions})
        with self._lock:
            self._answer = fetched.answer
            abandoned = self._abandoned
        with fetched.answer:
            if abandoned:
                raise OriginError(FailureKind.LOCAL, "abandoned")
            if fetched.status == 304:
                return self._confirm(fetched.head, conditions)
            return self._receive(fetched)

    def _confirm(self, head: ResponseHead, conditions: Mapping[str, str]) -> FetchOutcome | None:
        """A 304: about what is stored, or about the client's own copy."""
        stored = self.plan.stored
        if stored is None:
            return self._announce(FetchOutcome(head, 304)) if conditions else None
        if not is_confirmed_by(stored.head, head):
            return None
        head = renewed(stored.head, head)
        if not self.plan.allows_sharing(head):
            self._store.drop(stored)
            return None
        confirmed = self._store.renew(stored, head)
        return self._announce(FetchOutcome(head, confirmed=confirmed, shareable=True)) if confirmed else None

    def _receive(self, fetched: Fetched) -> FetchOutcome:
        """A 200: its body goes to the disk."""
        spool = self._store.create()
        with self._lock:
            self._spool = spool
            if self._abandoned:
                self._close()
                raise OriginError(FailureKind.LOCAL, "abandoned")
        shareable = self.plan.allows_sharing(fetched.head)
        if fetched.length is not None:
            if fetched.length > self._store.largest:
                raise OriginError(FailureKind.BAD_CONTENT, "larger than feeds.size_limit")
            self._announce(FetchOutcome(fetched.head, size=fetched.length, shareable=shareable))
        self._is_receiving = True
        self._fill(spool, fetched)
        self._is_receiving = False
        if fetched.length not in (None, spool.have):
            raise OriginError(FailureKind.INTERRUPTED, "the answer ended early")
        outcome = self._announce(FetchOutcome(fetched.head, size=spool.have, shareable=shareable))
        if shareable and fetched.ends_visibly:
            self._publish(spool, fetched.head)
        elif self.plan.stored is not None:
            self._store.drop(self.plan.stored)
        return outcome

    def _fill(self, spool: Spool, fetched: Fetched) -> None:
        for chunk in fetched.answer.chunks():
            with self._lock:
                if self._abandoned:
                    raise OriginError(FailureKind.LOCAL, "abandoned")
                try:
                    spool.append(chunk)
                except NoRoomError as error:
                    raise OriginError(FailureKind.BAD_CONTENT, str(error)) from None
            self._progress.report()

    def _publish(self, spool: Spool, head: ResponseHead) -> None:
        plan = self.plan
        self._store.publish(spool, plan.key, plan.target.place, head, selection(head, plan.sent))

    def _announce(self, outcome: FetchOutcome) -> FetchOutcome:
        with suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._set_ready, outcome)
        return outcome

    # On the loop

    def _set_ready(self, outcome: FetchOutcome) -> None:
        self._wake()
        if outcome.status == 200 and outcome.confirmed is None:
            self.arriving_since = outcome.head.received_at
        if not self._ready.done():
            self._ready.set_result(outcome)

    def _on_progress(self) -> None:
        if self._spool is not None:
            self._have = self._spool.have

    def _wake(self) -> None:
        self._on_progress()
        self._progress.wake()

    def _fail(self, error: Exception) -> None:
        self._error = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # there may be nobody left who waits for it

    def _abandon(self) -> None:
        """The end, whichever: nothing more is read or written. Readers have descriptors of their own."""
        with self._lock:
            self._abandoned = True
            if self._answer is not None:
                self._answer.abort()
            if not self._waiting:
                self._close()
        self._wake()

    def _close(self) -> None:
        if self._spool is not None and not self._closed:
            self._closed = True
            self._spool.close()


class FeedSource:
    """A body for one reader: a `messages.Source`."""

    def __init__(
        self,
        descriptor: int,
        size: int,
        wait: Callable[[int], Awaitable[int]],
        closed: Callable[[], None],
    ) -> None:
        self.size = size
        self._descriptor: int | None = descriptor
        self._wait = wait
        self._closed = closed

    def fileno(self) -> int:
        """The reader's own descriptor."""
        if self._descriptor is None:
            raise ValueError("closed")
        return self._descriptor

    async def wait(self, offset: int) -> int:
        """See `messages.Source.wait`."""
        return await self._wait(offset)

    def close(self) -> None:
        """Release the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._closed()


def _local_reason(error: Exception) -> str:
    """What went wrong here; only what the operating system says is surely without a URL."""
    detail = error.strerror if isinstance(error, OSError) else None
    return f"the gateway failed: {detail or type(error).__name__}"
