"""What a gateway of a site shares with the others by the object store, besides objects and leases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from clamproxy.bucket.bucket import Bucket
from clamproxy.cache.store import Store
from clamproxy.clock import Clock
from clamproxy.leases.leases import Leases
from clamproxy.peers.peers import PeerState
from clamproxy.peers.site_gateways import SiteGateways
from clamproxy.releases.site_holds import SiteHolds
from clamproxy.sharing.note_exchange import NoteExchange

PATIENCE = 5.0
"""Seconds for which a gateway that starts waits for what the others know."""


class SiteExchange:
    """Exchanges notes, reports and holds with the other gateways. Owns its tasks. Event loop only.

    Args:
        store: the cache, with the records.
        leases: among the processes of the machine, one of which does the exchange.
        report: makes this gateway's report, if it fits.
        most_machines: how many machines of another gateway are shown, at most.
    """

    def __init__(
        self,
        bucket: Bucket,
        store: Store,
        leases: Leases,
        report: Callable[[], Awaitable[bytes | None]],
        most_machines: int,
        clock: Clock = time,
    ) -> None:
        self._leases = leases
        self._holds = SiteHolds(bucket, store.records.directory)
        self._exchange = NoteExchange(bucket, store, self._leases, report, clock)
        self._gateways = SiteGateways(store, most_machines, clock.time)
        self._task: asyncio.Task[None] | None = None

    @property
    def gateways(self) -> Sequence[PeerState]:
        """The other ones. Takes some 100 µs."""
        return self._gateways.states

    @property
    def problem(self) -> str | None:
        """What may be wrong because the others can't be heard, in one line."""
        return self._holds.problem

    async def catch_up(self) -> None:
        """Learn what the others know before anything is served; takes some seconds at most."""
        await asyncio.gather(self._holds.learn(PATIENCE), self._exchange.catch_up(PATIENCE))

    def start(self, first: Callable[[], Awaitable[None]]) -> None:
        """Begin to exchange.

        Args:
            first: what to do before; see `catch_up`.
        """
        self._task = asyncio.create_task(self._begin(first), name="catch up with the site")

    async def _begin(self, first: Callable[[], Awaitable[None]]) -> None:
        await first()
        self._holds.start(self._leases)
        self._exchange.start()
        self._gateways.start()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._holds.stop()
        self._exchange.stop()
        self._gateways.stop()
