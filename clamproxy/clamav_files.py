"""ClamAV's files: all that is between the origin and the response."""

from __future__ import annotations

import asyncio

from clamproxy.announcement import Announcer
from clamproxy.cache.soundness import Soundness
from clamproxy.clock import Clock
from clamproxy.config.settings import Settings
from clamproxy.fleet import Fleet
from clamproxy.formats.header import CvdHeader
from clamproxy.foundation import Foundation
from clamproxy.notes import Notes
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfer import Resources
from clamproxy.origin.transfers import Transfers
from clamproxy.policy import negative_ttl
from clamproxy.releases.builder import CldBuilder
from clamproxy.releases.ceilings import Ceilings
from clamproxy.releases.first_seen import TOPIC as FIRST_SEEN
from clamproxy.releases.first_seen import SeenVersions
from clamproxy.releases.follower import Follower
from clamproxy.releases.holds import Holds
from clamproxy.releases.lineage import Lineages
from clamproxy.releases.object_exchange import ObjectExchange
from clamproxy.releases.prefetcher import Prefetcher
from clamproxy.releases.quiet import QuietHour
from clamproxy.releases.signs import Signs
from clamproxy.releases.stuck import StuckPatches
from clamproxy.serving.databases import WholeDatabases
from clamproxy.serving.delivery import Delivery
from clamproxy.serving.gateway import Gateway
from clamproxy.serving.ready import ReadyAnswers
from clamproxy.serving.resolution import CurrentVersions
from clamproxy.surroundings import Surroundings
from clamproxy.upkeep import Upkeep

MAX_CONNECTIONS = 16
"""How many connections to the origin transfers may use at the same time; further ones wait."""
STALL_WINDOW = 5.0
"""Over how many seconds the speed of a connection to the origin is watched."""


class ClamavFiles:
    """Follows releases, fetches and keeps ClamAV's files, and answers requests for them. Event loop only.

    Args:
        fleet: is told which versions machines can have.
        via: how this gateway names itself in the Via field of its requests.
        holds: what an earlier object of this process held; None if there was none.

    Raises:
        HoldsError: nobody knows what is held.
    """

    def __init__(
        self,
        settings: Settings,
        foundation: Foundation,
        fleet: Fleet,
        surroundings: Surroundings,
        via: str,
        holds: Holds | None = None,
    ) -> None:
        self._settings = settings
        self._foundation = foundation
        self._fleet = fleet
        self.databases = frozenset(settings.serving.databases)
        """The names of the databases that are served."""
        store, keys, clock = foundation.store, foundation.keys, surroundings.clock
        self.ceilings = self._make_ceilings(clock, holds)
        self.origin = Origin.open(
            settings,
            foundation.site,
            via,
            foundation.shared_notes,
            foundation.stats.count_upstream,
            clock,
            surroundings.link,
            self._learn_version,
            self.ceilings.seen.sight,
            forgives_proxy=surroundings.forgives_proxy(),
        )
        self._stuck = StuckPatches(store, foundation.shared_notes("stuck"), clock.time)
        self.transfers = self._make_transfers()
        self._soundness = Soundness(store, keys)
        self._lineages = Lineages(store, keys, self._learn_build)
        self._signs = Signs(store, keys)
        self._builder = self._make_builder()
        self.upkeep = self._make_upkeep()
        self.prefetcher = Prefetcher(store, self.origin, self._lineages, self.transfers)
        self._quiet_hour = QuietHour(foundation.shared_notes("traffic"), clock.time)
        self._follower = self._make_follower()
        self._exchange = self._make_exchange()
        self._current = CurrentVersions(
            settings, store, self.origin, self._lineages, self.prefetcher, self._exchange
        )
        self.gateway = self._make_gateway()
        versions = self.origin.versions
        self.announcer = Announcer(self._announced, lambda: versions.last_record, self._look)
        """Answers for the names of ClamAV's version records."""

    def start(self) -> None:
        """Tidy up the cache, check its content and follow releases, in the background."""
        self.ceilings.start()
        self.upkeep.start()
        self._follower.start()
        if self._exchange is not None:
            self._exchange.start()

    def retire(self) -> None:
        """Start nothing new in the background; what is under way goes on until `stop`."""
        self.upkeep.stop()
        self.ceilings.retire()
        self._follower.stop()
        if self._exchange is not None:
            self._exchange.stop()

    def stop(self) -> None:
        """Stop everything, within milliseconds. Interrupted transfers stay on disk and are resumed."""
        self.retire()
        self.ceilings.stop()
        self.prefetcher.stop()
        self._builder.stop()
        self.transfers.stop()
        self.origin.stop()

    @property
    def is_building(self) -> bool:
        """Whether a CLD is being built."""
        return self._builder.is_building

    async def renew(self, database: str) -> None:
        """Fetch everything of a database's advertised version that isn't here, for no client in particular.

        Raises:
            OriginTrouble: some of it isn't available now.
        """
        if self._exchange is not None:
            await self._exchange.bring(database)
        await self._follower.fetch_release(database)

    async def refetch(self, object_id: ObjectId) -> None:
        """Fetch an object that was dropped, or a newer version of a CVD, for no client in particular.

        Raises:
            OriginTrouble: it isn't available now, or was asked for too often within the last hour.
        """
        await self._follower.refetch(object_id)

    # Making the parts

    def _make_ceilings(self, clock: Clock, holds: Holds | None) -> Ceilings:
        foundation = self._foundation
        others = Notes(None, None, FIRST_SEEN, shared=foundation.store.noted)
        workers = foundation.shared_notes(FIRST_SEEN)
        seen = SeenVersions(foundation.kept_notes(FIRST_SEEN), clock, workers, others)
        directory = foundation.records.directory
        return Ceilings(
            self._settings.releases, foundation.store, directory, seen, clock, holds, foundation.leases
        )

    def _make_transfers(self) -> Transfers:
        foundation = self._foundation
        resources = Resources(
            self.origin.upstream,
            foundation.store,
            foundation.writer,
            foundation.keys,
            min(STALL_WINDOW, self._settings.upstream.read_timeout),
            asyncio.Semaphore(MAX_CONNECTIONS),
            foundation.site.objects,
            self.origin.heads.put_to_test,
        )
        return Transfers(
            resources,
            self.origin.cooldowns,
            self._negative_ttl,
            lambda _: self._tidy_soon(),
            self._after_failure,
            self.origin.clock,
            foundation.shared_notes("missing"),
        )

    def _make_builder(self) -> CldBuilder:
        foundation, shared = self._foundation, self._foundation.site.objects
        return CldBuilder(
            foundation.store,
            foundation.writer,
            foundation.keys,
            foundation.shared_notes("cld"),
            self._tidy_soon,
            self.origin.clock,
            foundation.leases,
            self.transfers.take_shared,
            shared.upload if shared is not None else None,
        )

    def _make_upkeep(self) -> Upkeep:
        return Upkeep(
            self._foundation.store,
            self._foundation.writer,
            self._settings.cache,
            self._soundness,
            self._lineages,
            self._signs,
            self._builder,
            self.ceilings.in_force,
        )

    def _make_follower(self) -> Follower:
        return Follower(
            self._settings,
            self._foundation.store,
            self.origin,
            self._lineages,
            self.prefetcher,
            self._builder,
            self._quiet_hour,
            self._signs,
            self._stuck,
            self._foundation.leases,
        )

    def _make_exchange(self) -> ObjectExchange | None:
        foundation, shared = self._foundation, self._foundation.site.objects
        if shared is None:
            return None
        return ObjectExchange(
            shared,
            self.transfers,
            foundation.store,
            foundation.keys,
            self.databases,
            self._settings.cache,
            self.ceilings.in_force,
        )

    def _make_gateway(self) -> Gateway:
        store, current = self._foundation.store, self._current
        delivery = Delivery(store, self.transfers, self._signs)
        whole = WholeDatabases(
            self._settings.delta,
            store,
            self.origin.heads,
            current,
            delivery,
            self.prefetcher,
            self._builder,
            self.ceilings,
        )
        return Gateway(
            self.databases,
            store,
            self._soundness,
            current,
            delivery,
            ReadyAnswers(store, self._signs),
            whole,
            self._stuck,
            self._notice,
            self.ceilings,
            offline=self._settings.upstream.offline,
        )

    # What the parts tell each other

    def _announced(self, database: str, client: str) -> int | None:
        if not self.ceilings.are_known:
            return None
        return self._current.announced(database, self.ceilings.of(database, client))

    async def _look(self, database: str, client: str) -> None:
        await self.ceilings.known()
        await self._current.look(database, self.ceilings.of(database, client))

    def _learn_version(self, database: str, version: int) -> None:
        self._fleet.note_advertised(database, version)
        head = self.origin.heads.get(database)
        self.ceilings.seen.learn(database, version, head.header.version if head else 0)

    def _learn_build(self, database: str, header: CvdHeader) -> None:
        self._fleet.note_built(database, header.version, header.stime)
        self._foundation.store.newest_proven.note(database, header.version)

    def _notice(self, database: str, user_agent: str | None) -> None:
        """Note that a client asks for something."""
        self._follower.see(database)
        self.origin.agents.see(user_agent)
        self._quiet_hour.count()

    def _negative_ttl(self, object_id: ObjectId) -> float:
        advertised = self.origin.versions.last_known(object_id.database)
        return negative_ttl(object_id, advertised.version if advertised else None)

    def _tidy_soon(self) -> None:
        """Tidy up once for everything published until the writer gets to it: it looks at every object."""
        self.upkeep.tidy_soon()

    def _after_failure(self, object_id: ObjectId, failure: FailureKind) -> None:
        """Count bad patches."""
        if object_id.kind is Kind.CDIFF and failure is FailureKind.BAD_CONTENT:
            self._stuck.note(object_id)
