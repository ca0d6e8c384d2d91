"""The service: puts the parts of the gateway together, starts and stops them."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from clamproxy.access.client_rates import ClientRates
from clamproxy.announcement import Announcer
from clamproxy.cache.soundness import Soundness
from clamproxy.cache.store import Store
from clamproxy.clock import Clock
from clamproxy.config.settings import Settings
from clamproxy.config.units import MIB, Endpoint
from clamproxy.feeds import Feeds
from clamproxy.fleet import Fleet, advertised_to_clients
from clamproxy.fleet.fleet_upkeep import FleetUpkeep
from clamproxy.fleet.live_labels import LiveLabels
from clamproxy.fleet.views import FleetViews
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.history import History
from clamproxy.messages import GATEWAY_IN_VIA
from clamproxy.notes import Notes
from clamproxy.notices.notifier import Notifier
from clamproxy.notices.report import read_report
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.link import Link
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfer import Resources
from clamproxy.origin.transfers import Transfers
from clamproxy.peers.peers import Peers, PeerState
from clamproxy.policy import negative_ttl
from clamproxy.releases.builder import CldBuilder
from clamproxy.releases.ceilings import TOPIC as FIRST_SEEN
from clamproxy.releases.ceilings import Ceilings
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
from clamproxy.setup.freshclam_lines import Mode, client_config, own_name
from clamproxy.setup.place import note_proxies
from clamproxy.sharing.shared_objects import SharedObjects
from clamproxy.sharing.site import TOPIC as FLEET_STORE
from clamproxy.sharing.site import Site
from clamproxy.site_exchange import SiteExchange
from clamproxy.site_files import SiteFiles
from clamproxy.state import make_state_directory, move_records
from clamproxy.statistics import Stats
from clamproxy.storage.records import Records
from clamproxy.threads import Writer
from clamproxy.upkeep import Upkeep
from clamproxy.waiting import wait_while
from clamproxy.web.gathering import feeds_of_all, processes_of_all, transfers_of_all
from clamproxy.web.listener import Listener, OpenPort, open_port
from clamproxy.web.pages import Pages
from clamproxy.web.sources import Place, Sources

MAX_CONNECTIONS = 16
"""How many connections to the origin transfers may use at the same time; further ones wait."""
STALL_WINDOW = 5.0
"""Over how many seconds the speed of a connection to the origin is watched."""

HELD = 64 * MIB
"""How many bytes of objects are held in memory while the disk accepts none: hundreds of patches."""

LOOK_EVERY = 0.25
"""Seconds between checks whether anything is still under way."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the service can't know on its own: about the process, and about the proxy that uses it."""

    started_at: float = field(default_factory=time.time)
    """When the process began to serve, in Unix seconds."""
    certificates: Callable[[], bytes | None] = lambda: None
    """Gives the certificates that clients must trust for https, in PEM. Blocks."""
    port: Callable[[], int | None] = lambda: None
    """Gives the port where the proxy listens."""
    clock: Clock = time
    """Tells the time to all that ask the origin."""
    link: Link = field(default_factory=Link)
    """The internet link: one for the process, as what began before a reload still uses it."""
    client_rates: ClientRates = field(default_factory=ClientRates)
    """What clients may get; one for the process."""
    open_port: OpenPort = open_port
    """Opens the port of the pages."""
    others: Callable[[], Sequence[Mapping[str, Any]]] = lambda: ()
    """Gives `Service.own_figures` of the other workers, with their pids."""


@asynccontextmanager
async def open_service(settings: Settings, keys: TrustedKeys) -> AsyncIterator[Service]:
    """A service for commands, whether or not a proxy is running. It does nothing in the background.

    Raises:
        OSError: the cache directory can't be used.
        HoldsError: nobody knows what is held.
    """
    service = Service(settings, keys)
    try:
        await service.catch_up()
        yield service
        await service.settle()
    finally:
        service.stop()


class Service:
    """Everything that runs for the gateway in one process. Made and stopped on the event loop."""

    def __init__(
        self,
        settings: Settings,
        keys: TrustedKeys,
        surroundings: Surroundings | None = None,
        holds: Holds | None = None,
    ) -> None:
        """Open the cache and make all parts. Blocks for some milliseconds.

        Args:
            keys: the public keys that objects must be signed with.
            surroundings: what the pages show about the process and the proxy.
            holds: what an earlier service of this process holds.

        Raises:
            OSError: the cache directory can't be used.
            HoldsError: nobody knows what is held.
        """
        self.settings = settings
        self.surroundings = surroundings or Surroundings()
        self.requests = 0
        """How many requests are being answered."""
        self.pseudonym = f"{GATEWAY_IN_VIA}{secrets.token_hex(4)}"
        """This gateway's name in Via, by which it recognises a loop."""
        self.via = f"1.1 {self.pseudonym}"
        self.databases = frozenset(settings.serving.databases)
        """The names of the databases that are served."""
        records = Records(make_state_directory(settings))
        self.store = Store(settings.cache.directory, records=records, keys=keys, hold=HELD)
        move_records(self.store, settings.cache.directory)
        self.writer = Writer(self.store.condition.failed)
        self.stats = Stats(self.store, self.writer)
        self.site = Site(
            settings.fleet_store,
            settings.cache.directory,
            self._notes(FLEET_STORE),
            self.stats.count_fleet_store,
        )
        bucket = self.site.bucket
        self._shared = None if bucket is None else SharedObjects(bucket, self.site.leases, self.store)
        self._leases = self.site.leases
        self.fleet = Fleet(records.directory, settings.fleet, self.writer)
        labels = LiveLabels(settings.fleet.labels)
        self._machines = FleetViews(
            records.directory, settings.fleet, labels, lambda: advertised_to_clients(self.store, settings)
        )
        self._fleet_upkeep = FleetUpkeep(
            records.directory, settings, self.writer, labels, self._machines.sample, self._leases
        )
        clock = self.surroundings.clock
        first_seen = Notes(records, self.writer, FIRST_SEEN)
        seen_by_others = Notes(None, None, FIRST_SEEN, shared=self.store.noted)
        self._ceilings = Ceilings(
            settings.releases,
            self.store,
            records.directory,
            first_seen,
            clock,
            holds,
            seen_by_others,
            workers=self._notes(FIRST_SEEN),
            leases=self._leases,
        )
        self._origin = Origin.open(
            settings,
            self.via,
            self._notes,
            self.stats.count_upstream,
            self._learn_version,
            self._ceilings.sight,
            clock,
            self.surroundings.link,
            self._leases,
            bucket,
        )
        self._stuck = StuckPatches(self.store, self._notes("stuck"), clock.time)
        self._transfers = self._make_transfers(keys)
        self._soundness = Soundness(self.store, keys)
        self._lineages = Lineages(self.store, keys, self._learn_build)
        self._signs = Signs(self.store, keys)
        self._builder = CldBuilder(
            self.store,
            self.writer,
            keys,
            self._notes("cld"),
            self._tidy_soon,
            clock,
            self._leases,
            self._transfers.take_shared,
            self._shared.upload if self._shared is not None else None,
        )
        self.upkeep = Upkeep(
            self.store,
            self.writer,
            settings.cache,
            self._soundness,
            self._lineages,
            self._signs,
            self._builder,
            self._ceilings.in_force,
        )
        self._prefetcher = Prefetcher(self.store, self._origin, self._lineages, self._transfers)
        self._quiet_hour = QuietHour(self._notes("traffic"), clock.time)
        self.follower = Follower(
            settings,
            self.store,
            self._origin,
            self._lineages,
            self._prefetcher,
            self._builder,
            self._quiet_hour,
            self._signs,
            self._stuck,
            self._leases,
        )
        self.feeds = Feeds(
            self.store.directory / "feeds",
            settings,
            self._notes,
            self.stats.count_feed_upstream,
            self.via,
            clock,
            self.surroundings.link,
            self.site.machine,
        )
        self.site_files = SiteFiles(settings.files.directory, records.directory)
        self._history = History(
            self.store.counters, Notes(records, self.writer, "history"), leases=self._leases
        )
        self._object_exchange = self._make_object_exchange(keys)
        self._current = CurrentVersions(
            settings, self.store, self._origin, self._lineages, self._prefetcher, self._object_exchange
        )
        self.gateway = self._make_gateway()
        versions = self._origin.versions
        self.announcer = Announcer(self._announced, lambda: versions.last_record, self._look)
        self.peers = Peers(settings)
        self.pages = Pages(self._make_sources())
        self._exchange = self._make_exchange()
        if self._exchange is not None and holds is None:
            self._ceilings.wait_for_others()
        self._notifier = Notifier(settings, self.pages.figures, records, self.writer, leases=self._leases)
        listen = settings.status.listen
        self._listener = (
            Listener(listen, self.pages, self.surroundings.open_port) if listen is not None else None
        )
        self._hours: asyncio.Task[None] | None = None
        self.surroundings.link.follow(settings.upstream.rate_limit)
        self.surroundings.client_rates.follow(settings.serving.rate_limit_per_client)

    async def catch_up(self) -> None:
        """Learn what the rest of the site knows. Nothing is served until then; takes some seconds at most."""
        try:
            if self._exchange is not None:
                await self._exchange.catch_up()
        finally:
            await self._ceilings.look()

    def start(self) -> None:
        """Tidy up the cache, check its content and follow releases, in the background."""
        self.site.start()
        self._ceilings.start()
        self.upkeep.start()
        self.follower.start()
        if self._object_exchange is not None:
            self._object_exchange.start()
        self.feeds.start()
        self.site_files.start()
        self._history.start()
        self.peers.start()
        if self._exchange is not None:
            self._exchange.start(self.catch_up)
        self._notifier.start()
        self._hours = asyncio.create_task(self._watch_hours(), name="hours of rate limits")
        self._fleet_upkeep.start()
        if self._listener is not None:
            self._listener.start()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Answer a request inside this context, so that `idle` waits for it."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def retire(self) -> None:
        """Start nothing new in the background; what is under way goes on until `stop`."""
        self.upkeep.stop()
        if self._listener is not None:
            self._listener.stop()
        self._history.stop()
        self.peers.stop()
        if self._exchange is not None:
            self._exchange.stop()
        self._notifier.stop()
        if self._hours is not None:
            self._hours.cancel()
        self._fleet_upkeep.stop()
        self._ceilings.retire()
        self.follower.stop()
        if self._object_exchange is not None:
            self._object_exchange.stop()
        self.site_files.stop()

    async def idle(self, limit: float) -> None:
        """Wait until nothing is under way any more, but no longer than `limit` seconds."""
        await wait_while(
            lambda: self.requests or self._transfers.under_way() or self.feeds.under_way(), limit, LOOK_EVERY
        )

    async def settle(self) -> None:
        """Wait until everything is in the object store that was to be put there."""
        if self._shared is not None:
            await self._shared.settle()

    async def flush(self) -> None:
        """Write everything that was noted to disk."""
        self.stats.flush()
        self.fleet.flush()
        await self.writer.run(self.site_files.prepare_save())

    def note_proxies(self, endpoints: Sequence[Endpoint] | None) -> None:
        self.writer.submit(lambda: note_proxies(self.store, endpoints))

    def stop(self) -> None:
        """Stop everything, within milliseconds. Interrupted transfers stay on disk and are resumed."""
        self.retire()
        self._ceilings.stop()
        self.feeds.stop()
        self._prefetcher.stop()
        self._builder.stop()
        self._transfers.stop()
        self._origin.stop()
        if self._shared is not None:
            self._shared.stop()
        self.site.stop()
        self.stats.flush()
        self.fleet.flush()
        self.writer.submit(self.site_files.prepare_save())
        self.writer.submit(self.store.mend)
        self.writer.submit(self.store.disconnect)
        self.writer.close()
        self.store.close()

    @property
    def holds(self) -> Holds:
        return self._ceilings.holds

    async def renew(self, database: str) -> None:
        """Fetch everything of a database's advertised version that isn't here, for no client in particular.

        Raises:
            OriginTrouble: some of it isn't available now.
        """
        if self._object_exchange is not None:
            await self._object_exchange.bring(database)
        await self.follower.fetch_release(database)

    async def refetch(self, object_id: ObjectId) -> None:
        """Fetch an object that was dropped, or a newer version of a CVD, for no client in particular.

        Raises:
            OriginTrouble: it isn't available now, or was asked for too often within the last hour.
        """
        await self.follower.refetch(object_id)

    def under_way(self) -> list[tuple[ObjectId, int, int]]:
        return self._transfers.under_way()

    def own_figures(self) -> dict[str, Any]:
        """What only this process knows and the pages of all workers show; see `clamproxy.web.gathering`."""
        transfers = [(object_id.file_name, have, size) for object_id, have, size in self.under_way()]
        return {"transfers": transfers, "feeds": self.feeds.figures()["hosts"]}

    def _notes(self, topic: str) -> Notes:
        return Notes(self.store, self.writer, topic, shared=self.store.noted)

    def _make_gateway(self) -> Gateway:
        settings, current = self.settings, self._current
        delivery = Delivery(self.store, self._transfers, self._signs)
        whole = WholeDatabases(
            settings.delta,
            self.store,
            self._origin.heads,
            current,
            delivery,
            self._prefetcher,
            self._builder,
            self._ceilings,
        )
        return Gateway(
            self.databases,
            self.store,
            self._soundness,
            current,
            delivery,
            ReadyAnswers(self.store, self._signs),
            whole,
            self._stuck,
            self._notice,
            self._ceilings,
        )

    def _make_sources(self) -> Sources:
        return Sources(
            settings=lambda: self.settings,
            store=self.store,
            started_at=self.surroundings.started_at,
            under_way=lambda: transfers_of_all(self.under_way(), self.surroundings.others()),
            processes=lambda: processes_of_all(self.surroundings.others()),
            cooldowns=self._origin.cooldowns.in_force,
            past=lambda: self._history.past,
            fleet=self._machines.all if self.settings.fleet.enabled else None,
            trend=self._machines.trend,
            biography=self._machines.biography,
            feeds=lambda: feeds_of_all(self.feeds.figures(), self.surroundings.others()),
            files=lambda: self.site_files.catalog,
            authority=self.surroundings.certificates,
            client_config=self._client_lines,
            peers=self._other_gateways,
            notices=lambda: read_report(self.store.records, self.settings),
            record=self.announcer.primary,
            rates=self._rates,
            fleet_store=self.site.figures,
            site_problem=lambda: self._exchange.problem if self._exchange is not None else None,
        )

    def _make_exchange(self) -> SiteExchange | None:
        bucket, most = self.site.bucket, self.settings.fleet.max_clients
        if bucket is None:
            return None
        return SiteExchange(bucket, self.store, self.pages.report, most, self.surroundings.clock)

    def _other_gateways(self) -> Sequence[PeerState]:
        return (*self.peers.states, *(self._exchange.gateways if self._exchange is not None else ()))

    def _rates(self) -> Mapping[str, Any]:
        """The limits in force, and what is used of them, as in status.json."""
        link, clients = self.surroundings.link, self.surroundings.client_rates
        return {
            "upstream": {"limit": link.limit, "rate": round(link.rate)},
            "clients": {"limit": clients.limit, "waiting": clients.waiting()},
        }

    async def _watch_hours(self) -> None:
        """Look at the limits once a minute: a change is logged even if nothing is sent then."""
        while True:
            await asyncio.sleep(60 - time.time() % 60)
            self._rates()

    def _client_lines(self, mode: str, place: Place) -> str:
        gateway = place.host or own_name()
        if gateway is None:
            raise ValueError("the gateway doesn't know its own name; ask it under the name that machines use")
        port = place.port or self.surroundings.port() or self.settings.listen.proxy[0].port
        return client_config(
            self.settings, Mode(mode), gateway, port, files=self.site_files.catalog.published
        )

    def _announced(self, database: str, client: str) -> int | None:
        if not self._ceilings.are_known:
            return None
        return self._current.announced(database, self._ceilings.of(database, client))

    async def _look(self, database: str, client: str) -> None:
        await self._ceilings.known()
        await self._current.look(database, self._ceilings.of(database, client))

    def _learn_version(self, database: str, version: int) -> None:
        self.fleet.note_advertised(database, version)
        head = self._origin.heads.get(database)
        self._ceilings.learn(database, version, head.header.version if head else 0)

    def _learn_build(self, database: str, header: CvdHeader) -> None:
        self.fleet.note_built(database, header.version, header.stime)

    def _notice(self, database: str, user_agent: str | None) -> None:
        """Note that a client asks for something."""
        self.follower.see(database)
        self._origin.agents.see(user_agent)
        self._quiet_hour.count()

    def _make_transfers(self, keys: TrustedKeys) -> Transfers:
        window = min(STALL_WINDOW, self.settings.upstream.read_timeout)
        slots = asyncio.Semaphore(MAX_CONNECTIONS)
        resources = Resources(
            self._origin.upstream, self.store, self.writer, keys, window, slots, self._shared
        )
        return Transfers(
            resources,
            self._origin.cooldowns,
            self._negative_ttl,
            self._after_publishing,
            self._after_failure,
            self._origin.clock,
            self._notes("missing"),
        )

    def _make_object_exchange(self, keys: TrustedKeys) -> ObjectExchange | None:
        if (shared := self._shared) is None:
            return None
        limits, ceilings = self.settings.cache, self._ceilings.in_force
        return ObjectExchange(shared, self._transfers, self.store, keys, self.databases, limits, ceilings)

    def _negative_ttl(self, object_id: ObjectId) -> float:
        advertised = self._origin.versions.last_known(object_id.database)
        return negative_ttl(object_id, advertised.version if advertised else None)

    def _tidy_soon(self) -> None:
        """Tidy up once for everything published until the writer gets to it: it looks at every object."""
        self.upkeep.tidy_soon()

    def _after_publishing(self, object_id: ObjectId) -> None:
        """Tidy up, and compare what was claimed about a CVD with the CVD."""
        self.upkeep.tidy_soon()
        published = self.store.open(object_id) if object_id.kind is Kind.CVD else None
        if published is not None:
            with published:
                header = CvdHeader.parse(os.pread(published.fileno(), HEADER_SIZE, 0))
            self._origin.heads.hold_against(object_id.database, header)

    def _after_failure(self, object_id: ObjectId, failure: FailureKind) -> None:
        """Forget a probed header if the file doesn't match it, and count bad patches."""
        if object_id.kind is Kind.CDIFF and failure is FailureKind.BAD_CONTENT:
            self._stuck.note(object_id)
        if object_id.kind is Kind.CVD and failure in (FailureKind.BAD_CONTENT, FailureKind.CHANGED):
            self._origin.heads.forget(object_id.database)
