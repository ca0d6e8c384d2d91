"""The service: puts the parts of the gateway together, starts and stops them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from clamproxy.clamav_files import ClamavFiles
from clamproxy.config.settings import Settings
from clamproxy.config.units import Endpoint
from clamproxy.feeds import Feeds
from clamproxy.fleet import Fleet, advertised_to_clients
from clamproxy.fleet.fleet_upkeep import FleetUpkeep
from clamproxy.fleet.live_labels import LiveLabels
from clamproxy.fleet.views import FleetViews
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.foundation import Foundation
from clamproxy.history import History
from clamproxy.messages import GATEWAY_IN_VIA
from clamproxy.notices.notifier import Notifier
from clamproxy.notices.report import read_report
from clamproxy.objects import ObjectId
from clamproxy.peers.peers import Peers, PeerState
from clamproxy.releases.holds import Holds
from clamproxy.setup.freshclam_lines import Mode, client_config, own_name
from clamproxy.setup.place import note_proxies
from clamproxy.site_exchange import SiteExchange
from clamproxy.site_files import SiteFiles
from clamproxy.surroundings import Surroundings
from clamproxy.waiting import wait_while
from clamproxy.web.gathering import feeds_of_all, processes_of_all, transfers_of_all
from clamproxy.web.listener import Listener
from clamproxy.web.pages import Pages
from clamproxy.web.sources import Place, Sources

LOOK_EVERY = 0.25
"""Seconds between checks whether anything is still under way."""


@asynccontextmanager
async def open_service(settings: Settings, keys: TrustedKeys) -> AsyncIterator[Service]:
    """A service for commands, whether or not a proxy is running. It does nothing in the background.

    Raises:
        OSError: the cache directory can't be used.
        HoldsError: nobody knows what is held.
    """
    service = Service(settings, keys)
    service.follow_rates()
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
            surroundings: what the pages show about the process and the proxy; None for a command's.
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
        self._foundation = foundation = Foundation(settings, keys, is_gateway=surroundings is not None)
        self.store, self.writer, self.stats = foundation.store, foundation.writer, foundation.stats
        directory, leases = foundation.records.directory, foundation.leases
        self.fleet = Fleet(directory, settings.fleet, self.writer)
        labels = LiveLabels(settings.fleet.labels)
        self._machines = FleetViews(
            directory, settings.fleet, labels, lambda: advertised_to_clients(self.store, settings)
        )
        self._fleet_upkeep = FleetUpkeep(
            directory, settings, self.writer, labels, self._machines.sample, leases
        )
        held = foundation.held if holds is None else holds
        self.clamav = ClamavFiles(settings, foundation, self.fleet, self.surroundings, self.via, held)
        self.gateway, self.announcer = self.clamav.gateway, self.clamav.announcer
        self.databases = self.clamav.databases
        self.feeds = self._make_feeds()
        self.site_files = SiteFiles(settings.files.directory, directory, writer=self.writer)
        self._history = History(self.store.counters, foundation.kept_notes("history"), leases=leases)
        self._peers = Peers(settings)
        self.pages = Pages(self._make_sources())
        self._exchange = self._make_exchange()
        if self._exchange is not None and holds is None:
            self.clamav.ceilings.wait_for_others()
        self._notifier = Notifier(
            settings, self.pages.figures, foundation.records, self.writer, leases=leases
        )
        self._listener = self._make_listener()
        self._hours: asyncio.Task[None] | None = None

    def succeed(self, former: Service) -> None:
        """Take over from another service what may fail, before anything has changed.

        Raises:
            OSError: the pages can't be where the configuration says. The former service goes on with its own.
        """
        if self._listener is None:
            return
        try:
            self._listener.succeed(former._listener)
        except OSError:
            if self.settings.status.listen != former.settings.status.listen:
                raise
            # It hasn't worked before either, and `start` says so again.

    async def catch_up(self) -> None:
        """Learn what the rest of the site knows. Nothing is served until then; takes some seconds at most."""
        try:
            if self._exchange is not None:
                await self._exchange.catch_up()
        finally:
            await self.clamav.ceilings.look()

    def start(self) -> None:
        """Tidy up the cache, check its content and follow releases, in the background."""
        self.follow_rates()
        self._foundation.site.start()
        self.clamav.start()
        self.feeds.start()
        self.site_files.start()
        self._history.start()
        self._peers.start()
        if self._exchange is not None:
            self._exchange.start(self.catch_up)
        self._notifier.start()
        self._hours = asyncio.create_task(self._watch_hours(), name="hours of rate limits")
        self._fleet_upkeep.start()
        if self._listener is not None:
            self._listener.start()

    def follow_rates(self) -> None:
        """Keep to this service's limits from now on, including what began under an earlier one."""
        self.surroundings.link.follow(self.settings.upstream.rate_limit)
        self.surroundings.client_rates.follow(self.settings.serving.rate_limit_per_client)

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
        self.clamav.retire()
        if self._listener is not None:
            self._listener.stop()
        self._history.stop()
        self._peers.stop()
        if self._exchange is not None:
            self._exchange.stop()
        self._notifier.stop()
        if self._hours is not None:
            self._hours.cancel()
        self._fleet_upkeep.stop()
        self.site_files.stop()

    async def idle(self, limit: float) -> None:
        """Wait until nothing is under way any more, but no longer than `limit` seconds."""

        def is_busy() -> object:
            return self.requests or self.under_way() or self.clamav.is_building or self.feeds.under_way()

        await wait_while(is_busy, limit, LOOK_EVERY)

    async def settle(self) -> None:
        """Wait until everything is in the object store that was to be put there."""
        await self._foundation.site.settle()

    async def flush(self) -> None:
        """Write everything that was noted to disk."""
        self.stats.flush()
        self.fleet.flush()
        await self.writer.run(lambda: None)

    def note_proxies(self, endpoints: Sequence[Endpoint] | None) -> None:
        self.writer.submit(lambda: note_proxies(self.store, endpoints))

    def stop(self) -> None:
        """Stop everything, within milliseconds. Interrupted transfers stay on disk and are resumed."""
        self.retire()
        self.clamav.stop()
        self.feeds.stop()
        self.fleet.flush()
        self._foundation.stop()

    @property
    def holds(self) -> Holds:
        return self.clamav.ceilings.holds

    def under_way(self) -> list[tuple[ObjectId, int, int]]:
        return self.clamav.transfers.under_way()

    def own_figures(self) -> dict[str, Any]:
        """What only this process knows and the pages of all workers show; see `clamproxy.web.gathering`."""
        transfers = [(object_id.file_name, have, size) for object_id, have, size in self.under_way()]
        return {"transfers": transfers, "feeds": self.feeds.figures()["hosts"]}

    def _make_feeds(self) -> Feeds:
        return Feeds(
            self.store.directory / "feeds",
            self.settings,
            self._foundation.shared_notes,
            self.stats.count_feed_upstream,
            self.via,
            self.surroundings.clock,
            self.surroundings.link,
            self._foundation.site.machine,
        )

    def _make_sources(self) -> Sources:
        return Sources(
            settings=lambda: self.settings,
            store=self.store,
            started_at=self.surroundings.started_at,
            under_way=lambda: transfers_of_all(self.under_way(), self.surroundings.others()),
            processes=lambda: processes_of_all(self.surroundings.others()),
            cooldowns=self.clamav.origin.cooldowns.in_force,
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
            fleet_store=self._foundation.site.figures,
            site_problem=lambda: self._exchange.problem if self._exchange is not None else None,
        )

    def _make_exchange(self) -> SiteExchange | None:
        site, most = self._foundation.site, self.settings.fleet.max_clients
        if site.bucket is None:
            return None
        return SiteExchange(
            site.bucket, self.store, site.machine, self.pages.report, most, self.surroundings.clock
        )

    def _make_listener(self) -> Listener | None:
        listen = self.settings.status.listen
        return None if listen is None else Listener(listen, self.pages, self.surroundings.open_port)

    def _other_gateways(self) -> Sequence[PeerState]:
        return (*self._peers.states, *(self._exchange.gateways if self._exchange is not None else ()))

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
