"""A follower between a fake CDN and a store; hours pass by a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.notes import UNKEPT
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import Budget
from clamproxy.origin.cooldown import Cooldowns, FailureKind
from clamproxy.origin.header_probes import HeaderProbes
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfer import Resources
from clamproxy.origin.transfers import ORIGIN_TROUBLE, Transfers
from clamproxy.origin.upstream import Upstream
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.releases.builder import CldBuilder
from clamproxy.releases.follower import Follower
from clamproxy.releases.lineage import Lineages
from clamproxy.releases.prefetcher import Prefetcher
from clamproxy.releases.quiet import QuietHour
from clamproxy.releases.signs import Signs
from clamproxy.releases.stuck import StuckPatches
from clamproxy.serving.resolution import CurrentVersions
from clamproxy.threads import Writer
from tests.support.clock import Clock
from tests.support.dns_server import PRIMARY
from tests.support.forge import forge_keys
from tests.support.origin import OriginServer
from tests.support.releases import Releases
from tests.support.stored import AGENT, hold, until

NEWER_AGENT = AGENT.replace("1.4.6", "1.5.3")
REFRESH = 300.0
HOUR = 3600
LIMIT = 30
"""Seconds; only a guard."""
RELEASES = Releases(filler=100_000)
"""CVDs of 75 KB, cdiffs of 1 KB."""


class FakeDns:
    """A resolver that knows some versions, or none while it is silent."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.versions = {"main": 62, "daily": 1, "bytecode": 339}
        self.is_silent = False
        self.queries: list[str] = []

    async def txt(self, name: str) -> str:
        self.queries.append(name)
        if self.is_silent:
            raise OSError("no answer")
        now, versions = int(self.clock.now), self.versions
        if name != PRIMARY:
            return f"{versions[name.partition('.')[0]]}:{now}"
        return f"1.4.3:{versions['main']}:{versions['daily']}:{now}:1:90:49192:{versions['bytecode']}"

    def close(self) -> None:
        pass


class FollowerHarness:
    """A follower with all that it uses, between a fake CDN and a store."""

    def __init__(
        self, origin: OriginServer, store: Store, clock: Clock, sections: dict[str, dict[str, Any]]
    ) -> None:
        self.origin, self.store, self.clock = origin, store, clock
        self.dns = FakeDns(clock)
        versions = {"refresh": f"{REFRESH:.0f}s", **sections.get("versions", {})}
        self.settings = Settings.model_validate({**sections, "versions": versions})
        self.writer = Writer()
        self.agents = Agents(None, UNKEPT, clock.time)
        self.budget = Budget(UNKEPT, clock.time)
        self.cooldowns = Cooldowns(UNKEPT, clock.time)
        self.quiet_hour = QuietHour(UNKEPT, clock.time)
        self.upstream = self.make_upstream()
        self.heads = HeaderProbes(self.upstream, self.cooldowns, UNKEPT, clock=clock)
        self.versions = AdvertisedVersions(PRIMARY, self.dns, REFRESH, UNKEPT, UNKEPT, clock=clock)
        keys = forge_keys().trusted
        resources = Resources(self.upstream, store, self.writer, keys, 0.5, asyncio.Semaphore(16))
        self.transfers = Transfers(
            resources, self.cooldowns, lambda _: 30.0, lambda _: None, self.after_failure, clock
        )
        self.lineages = Lineages(store, keys)
        self.builder = CldBuilder(store, self.writer, keys, UNKEPT, clock=clock)
        self.prefetcher = Prefetcher(store, self.side, self.lineages, self.transfers)
        self.stuck = StuckPatches(store, UNKEPT, clock.time)
        self.follower = self.make_follower()
        self.agents.see(AGENT)

    @property
    def side(self) -> Origin:
        """The parts as they are now: tests replace some."""
        return Origin(
            self.upstream, self.versions, self.heads, self.cooldowns, self.agents, self.budget, self.clock
        )

    def after_failure(self, object_id: ObjectId, failure: FailureKind) -> None:
        if object_id.kind is Kind.CDIFF and failure is FailureKind.BAD_CONTENT:
            self.stuck.note(object_id)

    def make_upstream(self) -> Upstream:
        return Upstream(
            self.origin.url,
            proxy=None,
            ca_bundle=None,
            connect_timeout=5.0,
            read_timeout=5.0,
            via="1.1 clamproxy-test",
            count=lambda requests, length: None,
            note=self.budget.note,
        )

    def make_follower(self) -> Follower:
        return Follower(
            self.settings,
            self.store,
            self.side,
            self.lineages,
            self.prefetcher,
            self.builder,
            self.quiet_hour,
            Signs(self.store, forge_keys().trusted),
            self.stuck,
            DirectoryLeases(self.store.directory),
        )

    def make_current(self) -> CurrentVersions:
        return CurrentVersions(self.settings, self.store, self.side, self.lineages, self.prefetcher)

    def stop(self) -> None:
        self.follower.stop()
        self.prefetcher.stop()
        self.builder.stop()
        self.transfers.stop()
        self.side.stop()
        self.writer.submit(self.store.disconnect)
        self.writer.close()

    def release(self, version: int, *, base: int | None = None, releases: Releases = RELEASES) -> None:
        """Publish a version, or all but its CVD, and advertise it."""
        releases.publish(self.origin, version, base=base)
        self.dns.versions[releases.database] = version
        self.origin.forget()

    async def look(self, database: str = "daily") -> None:
        """One complete look."""
        async with asyncio.timeout(LIMIT):
            with suppress(*ORIGIN_TROUBLE):
                await self.follower.follow(database)
            await until(lambda: not self.transfers.under_way() and not self.prefetcher._running)

    async def live(self, seconds: float, pause: float = REFRESH) -> None:
        """Look repeatedly for a while."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            await self.look()
            self.clock.now += pause

    def has(self, *names: str) -> list[bool]:
        return [self.store.has(ObjectId.parse(name)) for name in names]

    def asked(self, name: str) -> int:
        return self.origin.count(name)


type MakeHarness = Callable[..., FollowerHarness]


@asynccontextmanager
async def open_harnesses(origin: OriginServer, store: Store) -> AsyncIterator[MakeHarness]:
    """Makes benches with sections of settings; the CVD of version 1 (or `base`, if any) is cached."""
    clock = Clock(1_759_500_000.0)
    harnesses: list[FollowerHarness] = []

    def make(*, base: int | None = 1, **sections: dict[str, Any]) -> FollowerHarness:
        hold(store, base, releases=RELEASES)
        harnesses.append(FollowerHarness(origin, store, clock, sections))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.stop()


def names(versions: Iterable[int], *kinds: str) -> list[str]:
    return [f"daily-{version}.{kind}" for version in versions for kind in kinds]
