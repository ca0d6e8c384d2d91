"""Feed transfers: downloads of a feed's responses, which are only revalidated where that is enough.

If the feed gives the length, clients read along; a body that ends early then cuts them off, and freshclam
notices that. Without a length, they wait until all of it is here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from clamproxy.downloads import STOPPING, Download, FileSource
from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.feed_store import FeedStore
from clamproxy.feeds.fetch import Fetched, Fetcher
from clamproxy.feeds.plan import Plan
from clamproxy.feeds.sharing_rules import ResponseHead, is_confirmed_by, renewed, selection, validators
from clamproxy.feeds.spool import FeedsFullError, Spool
from clamproxy.feeds.turns import UNSHAREABLE, Turn, Turns
from clamproxy.leases.leases import Lease
from clamproxy.origin.cooldown import Cooldown, FailureKind
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.errors import NotFoundError, OriginError
from clamproxy.origin.scope import CancelScope
from clamproxy.threads import in_thread

STALL_WINDOW = 30.0
"""Seconds over which the speed of a connection is watched."""
SLOWEST = 100
"""Bytes per second below which a connection is given up; freshclam itself waits for one byte per second."""


@dataclass(frozen=True, slots=True)
class FetchOutcome:
    """The result of a fetch. Final when the transfer is ready."""

    head: ResponseHead
    status: int = 200
    """304: the client's own copy is still valid."""
    confirmed: StoredResponse | None = None
    """The stored response that a 304 confirmed."""
    size: int = 0
    """Bytes of the body that is arriving or has arrived."""
    shareable: bool = False
    """Whether the response may be given to others."""
    is_collapsed: bool = False
    """Whether another process has asked the feed."""


class HeldBackError(OriginError):
    """A cool-down began while the transfer was waiting, so the feed wasn't asked."""


class FeedTransfer(Download[FetchOutcome]):
    """One response on its way. Event loop only.

    `ready` and `run` raise NotFoundError if the feed has no such file, and OriginError if it doesn't deliver.

    Args:
        check: gives the cool-down that forbids asking the feed now; None if there is none.
        turns: what it waits for before it asks the feed; None: it doesn't wait, for a response that nobody
            else gets.
    """

    def __init__(
        self,
        plan: Plan,
        fetcher: Fetcher,
        store: FeedStore,
        slots: asyncio.Semaphore,
        check: Callable[[], Cooldown | None],
        turns: Turns | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.is_collapsed = False
        """Whether another process has asked the feed; then it also notes how that ended."""
        self._fetcher = fetcher
        self._store = store
        self._slots = slots
        self._check = check
        self._turns = turns
        self._lease: Lease | None = None
        self._scope = CancelScope()
        self._spool: Spool | None = None
        self._is_receiving = False
        self._has_ended = False
        self._waiting = 0
        self._given_at = 0.0
        """When the head of a new body arrived; Unix seconds, 0 if none has."""

    def __enter__(self) -> Self:
        """Readers of the body must enter before the transfer ends; it then keeps the body for them."""
        self._waiting += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1
        self._close_unless_used()

    def source(self, outcome: FetchOutcome) -> FileSource:
        """A reader of the body that belongs to an outcome. Only inside the transfer's context."""
        assert self._spool is not None  # noqa: S101
        descriptor = os.dup(self._spool.descriptor)
        at, key = outcome.head.received_at, self.plan.key
        return FileSource(descriptor, outcome.size, self, lambda: self._store.sent(key, at))

    async def _fetch(self) -> FetchOutcome:
        turn = await self._turns.take(self.plan) if self._turns is not None else Turn()
        self._lease = turn.lease
        self.is_collapsed = turn.brought is not None or turn.ending is not None
        if turn.ending is not None:
            raise turn.ending.error or OriginError(FailureKind.LOCAL, turn.ending.reason)
        if turn.brought is not None:
            head = turn.brought.head
            return FetchOutcome(head, confirmed=turn.brought, shareable=True, is_collapsed=True)
        try:
            return await self._ask_feed()
        except NotFoundError as error:
            self._pass_on(TransferEnding(str(error)))
            raise
        except OriginError as error:
            self._pass_on(TransferEnding(str(error), error.failure, retry_after=error.retry_after))
            raise
        finally:
            self._pass_on()

    def _pass_on(self, ending: TransferEnding | None = None) -> None:
        """Let another process have its turn, once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(ending.to_json() if ending else None)

    async def _ask_feed(self) -> FetchOutcome:
        async with self._slots:
            if (cooldown := self._check()) is not None:
                raise HeldBackError(cooldown.failure, cooldown.reason)
            fetching, mark = in_thread("clamproxy-feed", self._exchange), None
            try:
                while not (await asyncio.wait({fetching}, timeout=STALL_WINDOW))[0]:
                    have = self._spool.have if self._spool is not None and self._is_receiving else None
                    if mark is not None and have is not None and have - mark < SLOWEST * STALL_WINDOW:
                        raise OriginError(FailureKind.INTERRUPTED, "too slow")
                    mark = have
                return fetching.result()
            finally:
                fetching.cancel()

    def _readable(self, last: int | None) -> int:
        return self._spool.have if self._spool is not None else 0

    def _explain(self, error: BaseException) -> Exception:
        match error:
            case asyncio.CancelledError():
                return OriginError(FailureKind.LOCAL, STOPPING)
            case NotFoundError() | OriginError():
                return error
            case FeedsFullError():
                return OriginError(FailureKind.BAD_CONTENT, str(error))
        # Only the operating system's message is certain not to contain a URL.
        detail = error.strerror if isinstance(error, OSError) else None
        return OriginError(FailureKind.LOCAL, f"the gateway failed: {detail or type(error).__name__}")

    def _set_ready(self, value: FetchOutcome) -> None:
        if not value.shareable and self._lease is not None:
            self._lease.release(UNSHAREABLE)
        super()._set_ready(value)
        self.wake()

    def _end(self) -> None:
        self._has_ended = True
        self._scope.cancel()
        if self._error is not None and self._given_at:
            self._store.given.forget(self.plan.key, self._given_at)  # nobody has all of it
        self._close_unless_used()

    def _close_unless_used(self) -> None:
        if self._has_ended and not self._waiting and self._spool is not None:
            self._spool.close()

    # In the thread

    def _exchange(self) -> FetchOutcome:
        conditions = self.plan.conditions or {}
        if self.plan.stored is not None:
            conditions = validators(self.plan.stored.head)
        # A 304 about something other than what is here: ask again.
        outcome = self._ask(conditions) or self._ask({})
        if outcome is None:
            raise OriginError(FailureKind.SERVER_ERROR, "an unexpected 304")
        return outcome

    def _ask(self, conditions: Mapping[str, str]) -> FetchOutcome | None:
        """Send one request; None if the response is about something that isn't here."""
        fetched = self._fetcher.get(self.plan.target, {**dict(self.plan.sent), **conditions}, self._scope)
        with fetched.answer:
            if fetched.status == 304:
                return self._confirm(fetched.head, conditions)
            return self._receive(fetched)

    def _confirm(self, head: ResponseHead, conditions: Mapping[str, str]) -> FetchOutcome | None:
        """Process a 304: it is about the stored response, or about the client's own copy."""
        stored = self.plan.stored
        if stored is None:
            return self.announce(FetchOutcome(head, 304)) if conditions else None
        if not is_confirmed_by(stored.head, head):
            return None
        head = renewed(stored.head, head)
        if not self.plan.allows_sharing(head):
            self._store.drop(stored)
            return None
        confirmed = self._store.renew(stored, head)
        return self.announce(FetchOutcome(head, confirmed=confirmed, shareable=True)) if confirmed else None

    def _receive(self, fetched: Fetched) -> FetchOutcome:
        """Process a 200: its body goes to the disk."""
        with self._scope.unless_cancelled():
            self._spool = spool = self._store.create()
        shareable = self.plan.allows_sharing(fetched.head)
        if fetched.length is not None:
            if fetched.length > self._store.largest:
                raise OriginError(FailureKind.BAD_CONTENT, "larger than feeds.size_limit")
            self._give(FetchOutcome(fetched.head, size=fetched.length, shareable=shareable))
        self._is_receiving = True
        for chunk in fetched.answer.chunks():
            with self._scope.unless_cancelled():
                spool.append(chunk)
            self.report()
        self._is_receiving = False
        if fetched.length not in (None, spool.have):
            raise OriginError(FailureKind.INTERRUPTED, "the answer ended early")
        outcome = self._give(FetchOutcome(fetched.head, size=spool.have, shareable=shareable))
        if shareable and fetched.ends_visibly:
            target, chosen = self.plan.target, selection(fetched.head, self.plan.sent)
            self._store.publish(spool, self.plan.key, target.place, fetched.head, chosen)
        elif self.plan.stored is not None:
            self._store.drop(self.plan.stored)
        return outcome

    def _give(self, outcome: FetchOutcome) -> FetchOutcome:
        """Let clients have a new body from now on."""
        if not self._given_at:
            self._given_at = outcome.head.received_at
            self._store.given.mark(self.plan.key, self._given_at)
        return self.announce(outcome)
