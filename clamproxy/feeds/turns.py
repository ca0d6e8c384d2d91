"""Turns: for all processes of a machine, one request at a time asks a feed for a URL.

Whoever has the turn asks; the others wait, and get what it has stored, or why there is nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from clamproxy.feeds import sharing_rules
from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.feed_store import FeedStore
from clamproxy.feeds.plan import Plan
from clamproxy.leases.leases import Learnt, Lease, Leases, WaitEnding
from clamproxy.origin.endings import TransferEnding
from clamproxy.threads import in_thread

LONGEST_WAIT = 25.0
"""Seconds after which a process asks the feed itself, whatever the one that has the turn is doing."""
UNSHAREABLE: Learnt = {"unshareable": True}
"""What is left for those that wait for a response that may not be shared: each has to ask for itself."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of waiting for a turn."""

    lease: Lease | None = None
    """To be released in the end; None: there is none, and the feed is asked all the same."""
    brought: StoredResponse | None = None
    """What another process has stored in the meantime: then there is nothing to ask for."""
    ending: TransferEnding | None = None
    """Why another process has got nothing: then asking again is of no use."""


class Turns:
    """Gives turns. Event loop only.

    Args:
        machine: the leases of the processes that share the store.
        store: where they store what they get.
    """

    def __init__(self, machine: Leases, store: FeedStore) -> None:
        self._leases = machine
        self._store = store

    async def take(self, plan: Plan) -> Turn:
        """Wait until nobody else asks for the same URL, but no longer than `LONGEST_WAIT`."""
        name, begun_at = f"feed {plan.key}", time.monotonic()
        while (lease := await self._leases.take(name)) is None:
            left = begun_at + LONGEST_WAIT - time.monotonic()
            outcome = await self._leases.wait(name, max(0.0, left))
            if (brought := await self._brought(plan)) is not None:
                return Turn(brought=brought)
            if (ending := TransferEnding.parse(outcome.learnt, begun_at)) is not None:
                return Turn(ending=ending)
            if outcome.ending is not WaitEnding.RELEASED or "unshareable" in outcome.learnt or left <= 0:
                return Turn()
        if (brought := await self._brought(plan)) is not None:
            lease.release()
            return Turn(brought=brought)
        return Turn(lease)

    async def _brought(self, plan: Plan) -> StoredResponse | None:
        """What was stored after the request had looked, if it answers the request as well."""
        entry, before = self._store.get(plan.key), plan.stored
        if entry is None or not sharing_rules.is_selected(entry.selection, plan.sent):
            return None
        if before is not None and entry.head.received_at <= before.head.received_at:
            return None
        if self._store.is_checked(entry):
            return entry
        return entry if await in_thread("clamproxy-feeds", lambda: self._store.check(entry)) else None
