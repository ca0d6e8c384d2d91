"""The follower: what a release brings is here before clients ask for it. Hours pass by a fake clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clamproxy import follower as follower_module
from clamproxy.builder import CldBuilder
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.follower import Follower
from clamproxy.lineage import Lineages
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin import heads as heads_module
from clamproxy.origin import transfers as transfers_module
from clamproxy.origin import versions as versions_module
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import PER_FILE, WINDOW, Budget
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.heads import Heads
from clamproxy.origin.transfer import Resources
from clamproxy.origin.transfers import ORIGIN_TROUBLE, Transfers
from clamproxy.origin.upstream import Upstream
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.prefetch import Prefetcher
from clamproxy.quiet import QuietHour
from clamproxy.threads import Writer
from tests.support import faults
from tests.support.dns_server import PRIMARY
from tests.support.faults import Fault
from tests.support.forge import forge_keys
from tests.support.origin import Origin
from tests.support.releases import Releases
from tests.unit.conftest import AGENT, OLD_AGENT, cdiff, cvd, put, until
from tests.unit.test_lineage import hold

NEWER_AGENT = AGENT.replace("1.4.6", "1.5.3")
REFRESH = 300.0
HOUR = 3600
LIMIT = 30
"""Seconds; only a guard."""
RELEASES = Releases(filler=100_000)
"""CVDs of 75 KB, cdiffs of 1 KB."""


class Clock:
    """Stands in for the module `time`; both of its clocks are one here."""

    def __init__(self) -> None:
        self.now = 1_759_500_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


class FakeDns:
    """A resolver that knows some versions, or none while it is silent."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.versions = {"main": 62, "daily": 1, "bytecode": 339}
        self.is_silent = False

    async def txt(self, name: str) -> str:
        if self.is_silent:
            raise OSError("no answer")
        now, versions = int(self.clock.now), self.versions
        if name != PRIMARY:
            return f"{versions[name.partition('.')[0]]}:{now}"
        return f"1.4.3:{versions['main']}:{versions['daily']}:{now}:1:90:49192:{versions['bytecode']}"

    def close(self) -> None:
        pass


class Bench:
    """A follower with all that it uses, between a fake CDN and a store."""

    def __init__(
        self, origin: Origin, store: Store, clock: Clock, sections: dict[str, dict[str, Any]]
    ) -> None:
        self.origin, self.store, self.clock = origin, store, clock
        self.dns = FakeDns(clock)
        versions = {"refresh": f"{REFRESH:.0f}s", **sections.get("versions", {})}
        self.settings = Settings.model_validate({**sections, "versions": versions})
        self.writer = Writer()
        self.agents = Agents(None, self.keep, clock.time)
        self.budget = Budget(self.keep, clock.time)
        self.cooldowns = Cooldowns(self.keep, clock.time)
        self.quiet_hour = QuietHour(lambda hours: None, clock.time)
        self.upstream = self.make_upstream()
        self.heads = Heads(self.upstream, self.cooldowns, self.keep)
        self.versions = AdvertisedVersions(PRIMARY, self.dns, REFRESH, self.keep, self.keep)
        keys = forge_keys().trusted
        resources = Resources(self.upstream, store, self.writer, keys, 0.5, asyncio.Semaphore(16))
        self.transfers = Transfers(resources, self.cooldowns, lambda _: 30.0, lambda: None, lambda *_: None)
        self.lineages = Lineages(store, keys)
        self.builder = CldBuilder(store, self.writer, keys, self.keep)
        self.prefetcher = Prefetcher(store, self.lineages, self.heads, self.transfers, self.budget)
        self.follower = self.make_follower()
        self.agents.see(AGENT)

    def keep(self, key: str, value: Any) -> None:
        """Nothing is kept over a restart here."""

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
            self.versions,
            self.heads,
            self.cooldowns,
            self.agents,
            self.lineages,
            self.prefetcher,
            self.builder,
            self.quiet_hour,
        )

    def stop(self) -> None:
        self.follower.stop()
        self.prefetcher.stop()
        self.builder.stop()
        self.transfers.stop()
        self.heads.stop()
        self.versions.stop()
        self.writer.submit(self.store.disconnect)
        self.writer.close()
        self.upstream.close()

    def release(self, version: int, *, base: int | None = None, releases: Releases = RELEASES) -> None:
        """Publish a version, or all but its CVD, and advertise it."""
        releases.publish(self.origin, version, base=base)
        self.dns.versions[releases.database] = version
        self.origin.forget()

    async def look(self, database: str = "daily") -> None:
        """One look, to its end."""
        async with asyncio.timeout(LIMIT):
            with suppress(*ORIGIN_TROUBLE):
                await self.follower.follow(database)
            await until(lambda: not self.transfers._running and not self.prefetcher._running)

    async def live(self, seconds: float, pause: float = REFRESH) -> None:
        """Look again and again for a while."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            await self.look()
            self.clock.now += pause

    def has(self, *names: str) -> list[bool]:
        return [self.store.has(ObjectId.parse(name)) for name in names]

    def asked(self, name: str) -> int:
        return self.origin.count(name)


type MakeBench = Callable[..., Bench]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (follower_module, heads_module, transfers_module, versions_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
async def make_bench(origin: Origin, store: Store, clock: Clock, tmp_path: Path) -> AsyncIterator[MakeBench]:
    """Makes a bench with sections of settings; the CVD of version 1 is cached."""
    benches: list[Bench] = []

    def make(**sections: dict[str, Any]) -> Bench:
        hold(store, 1, releases=RELEASES)
        benches.append(Bench(origin, store, clock, sections))
        return benches[-1]

    yield make
    for bench in benches:
        bench.stop()


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


def names(versions: Iterable[int], *kinds: str) -> list[str]:
    return [f"daily-{version}.{kind}" for version in versions for kind in kinds]


# What is fetched


async def test_patches_and_their_signatures(bench: Bench) -> None:
    bench.release(4, base=1)
    await bench.look()
    assert all(bench.has(*names(range(2, 5), "cdiff", "cdiff.sign"), "daily-1.cvd.sign"))
    assert bench.origin.trace.split().count("W") == 0
    assert len(bench.origin.requests()) == 7


async def test_in_the_name_of_the_newest_supported_freshclam(bench: Bench) -> None:
    for agent in (NEWER_AGENT, OLD_AGENT, "curl/8.5.0"):
        bench.agents.see(agent)
    bench.release(3)
    await bench.look()
    assert {seen.headers["user-agent"] for seen in bench.origin.requests()} == {NEWER_AGENT}
    assert len(bench.origin.requests()) == 5


async def test_without_a_freshclam_nothing_is_asked(bench: Bench) -> None:
    bench.agents = Agents(None, bench.keep, bench.clock.time)
    bench.follower = bench.make_follower()
    bench.release(3)
    await bench.look()
    assert bench.origin.requests() == []
    bench.agents.see(AGENT)
    await bench.look()
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))


async def test_nothing_new_costs_nothing(bench: Bench) -> None:
    bench.release(3)
    await bench.look()
    bench.origin.forget()
    await bench.live(6 * HOUR)
    assert bench.origin.requests() == []


async def test_release_after_release(bench: Bench) -> None:
    for version in range(2, 8):
        bench.release(version)
        await bench.live(HOUR)
        assert all(bench.has(f"daily-{version}.cdiff", f"daily-{version}.cdiff.sign"))
        assert bench.asked(f"D{version}") == 1
    assert bench.asked("W") == 0


async def test_patches_for_clients_alone(bench: Bench, store: Store) -> None:
    """All clients have a CVD of their own: only patches were ever asked for."""
    main = Releases(database="main", first=60)
    put(store, cdiff(61, "main"), main.cdiff(61))
    bench.release(63, releases=main)
    await bench.look("main")
    assert store.has(cdiff(62, "main"))
    assert store.has(cdiff(63, "main"))
    assert store.has(ObjectId("main", 63, Kind.CDIFF_SIGN))
    assert bench.asked("W") == 0


async def test_a_database_of_which_nothing_is_here(bench: Bench) -> None:
    main = Releases(database="main", first=60)
    bench.release(63, releases=main)
    await bench.look("main")
    assert bench.origin.requests() == []


@pytest.mark.parametrize("lag", [1, 2, 3])
async def test_it_catches_up_as_far_as_patches_may_lead(make_bench: MakeBench, lag: int) -> None:
    bench = make_bench(delta={"max_patches": 3})
    bench.release(1 + lag)
    await bench.live(HOUR)
    assert all(bench.has(*names(range(2, 2 + lag), "cdiff")))
    assert bench.asked("W") == 0


async def test_beyond_that_it_fetches_a_new_base(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"max_patches": 3})
    bench.release(5)
    await bench.live(HOUR)
    assert bench.has("daily-5.cvd", "daily-5.cvd.sign") == [True, True]
    assert bench.asked("W") == 1


# Budget and cool-downs


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.status(404), id="404"),
        pytest.param(faults.status(503), id="503"),
        pytest.param(faults.html(), id="trap 19"),
        pytest.param(faults.short(10), id="cut"),
        pytest.param(faults.reset(), id="reset"),
    ],
)
@pytest.mark.parametrize("pause", [60.0, REFRESH])
async def test_no_file_is_asked_for_more_than_five_times_an_hour(
    bench: Bench, fault: Fault, pause: float
) -> None:
    bench.release(3, base=1)
    bench.origin.rule("*", fault)
    start = bench.clock.now
    while bench.clock.now < start + WINDOW:
        await bench.look()
        bench.clock.now += pause
    asked = [seen.path for seen in bench.origin.requests()]
    assert {path: asked.count(path) for path in asked if asked.count(path) > PER_FILE} == {}
    assert asked.count("/daily-2.cdiff") >= 2, "it is tried again"


async def test_nor_is_the_cvd(make_bench: MakeBench) -> None:
    """A renewal takes two requests for one file: its header and the whole of it."""
    bench = make_bench(serving={"prefetch": "all"})
    bench.release(3)
    bench.origin.rule("W", faults.status(503))
    await bench.live(WINDOW, 60)
    assert bench.asked("P") + bench.asked("W") <= PER_FILE
    assert bench.asked("W") >= 1


async def test_a_refused_file_is_left_alone(bench: Bench) -> None:
    bench.release(3)
    bench.origin.rule("D2", faults.status(429, retry_after=str(3 * HOUR)))
    await bench.live(2 * HOUR)
    assert bench.asked("D2") == 1
    bench.origin.heal()
    await bench.live(2 * HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))


async def test_trap_20_a_refused_client_version_is_replaced(bench: Bench) -> None:
    """The newest one may be one that the CDN doesn't know."""
    put(bench.store, ObjectId("daily", 1, Kind.CVD_SIGN), RELEASES.cvd_sign(1))
    bench.agents.see(NEWER_AGENT)
    bench.release(2)
    bench.origin.rule("*", faults.status(403))
    await bench.live(HOUR)
    agents = [seen.headers["user-agent"] for seen in bench.origin.requests("D2")]
    assert agents[0] == NEWER_AGENT
    assert AGENT in agents


async def test_an_origin_that_is_gone(bench: Bench) -> None:
    bench.release(3)
    bench.origin.refuse()
    await bench.live(HOUR)
    bench.origin.accept()
    await bench.live(2 * HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))


@pytest.mark.parametrize("broken", ["/daily-1.cvd.sign", "/daily-2.cdiff.sign"])
async def test_a_refused_signature_concerns_no_other_file(bench: Bench, broken: str) -> None:
    bench.release(3, base=1)
    bench.builder.note_demand("daily")
    bench.origin.rule(broken, faults.status(429, retry_after="7200"))
    await bench.live(HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff", "daily-3.cdiff.sign"))
    await until(lambda: bench.store.has(ObjectId("daily", 3, Kind.CLD)), LIMIT)
    assert bench.asked(broken) == 1


async def test_a_signature_that_comes_late_and_one_that_never_comes(bench: Bench) -> None:
    bench.release(4, base=1)
    bench.origin.remove("daily-2.cdiff.sign")
    bench.origin.remove("daily-4.cdiff.sign")
    await bench.live(2 * HOUR)
    assert bench.asked("/daily-2.cdiff.sign") == 1
    assert bench.asked("/daily-4.cdiff.sign") > 1
    bench.origin.put("daily-4.cdiff.sign", RELEASES.cdiff_sign(4))
    await bench.live(2 * HOUR)
    assert bench.has("daily-4.cdiff.sign") == [True]


# A new base


async def test_trap_16_a_patch_that_is_late(bench: Bench) -> None:
    bench.release(3, base=2)
    bench.origin.remove("daily-3.cdiff")
    await bench.live(HOUR / 2)
    assert bench.has("daily-2.cdiff", "daily-3.cdiff") == [True, False]
    bench.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    await bench.live(HOUR)
    assert bench.has("daily-3.cdiff") == [True]
    assert bench.asked("W") == 0


async def test_a_patch_that_never_comes(bench: Bench) -> None:
    """After some hours at most, only the whole CVD leads on."""
    bench.release(2)
    bench.origin.remove("daily-2.cdiff")
    await bench.live(4 * HOUR)
    assert bench.has("daily-2.cvd") == [True]
    assert bench.asked("W") == 1


async def test_a_patch_that_is_gone_while_later_ones_are_there(bench: Bench) -> None:
    bench.release(4)
    bench.origin.remove("daily-2.cdiff")
    await bench.look()
    assert bench.has("daily-4.cvd") == [False]  # an edge of the CDN may just lag behind
    await bench.live(HOUR)
    assert bench.has("daily-4.cvd") == [True]
    assert bench.origin.trace.split().count("W") == 1


async def test_trap_15_an_empty_patch(bench: Bench) -> None:
    bench.origin.put("daily-2.cdiff", b"")
    bench.release(3)
    bench.origin.put("daily-2.cdiff", b"")
    await bench.live(HOUR)
    assert bench.has("daily-3.cvd", "daily-3.cdiff") == [True, True]
    assert bench.asked("W") == 1


async def test_trap_18_a_patch_that_does_not_fit(bench: Bench) -> None:
    bench.release(3)
    bench.origin.put("daily-2.cdiff", Releases(filler=500).cdiff(2))
    await bench.live(HOUR)
    assert bench.has("daily-3.cvd") == [True]
    assert bench.asked("W") == 1


async def test_trap_5_a_new_base_that_lags(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"max_patches": 2})
    bench.release(5, base=1)
    await bench.live(HOUR)
    assert bench.asked("P") <= PER_FILE
    assert bench.asked("W") == 0
    bench.release(5)
    await bench.live(2 * HOUR)
    assert bench.has("daily-5.cvd") == [True]


def pretend_quiet(monkeypatch: pytest.MonkeyPatch, *, on: bool) -> None:
    monkeypatch.setattr(QuietHour, "is_now", lambda self: on)


async def test_many_patches_wait_for_a_quiet_hour(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(delta={"renew_after": 3})
    pretend_quiet(monkeypatch, on=False)
    bench.release(5)
    await bench.live(2 * HOUR)
    assert all(bench.has(*names(range(2, 6), "cdiff")))
    assert bench.asked("W") == 0
    pretend_quiet(monkeypatch, on=True)
    await bench.live(HOUR)
    assert bench.has("daily-5.cvd", "daily-5.cvd.sign") == [True, True]
    assert bench.asked("W") == 1


async def test_few_patches_do_not(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(delta={"renew_after": 5})
    pretend_quiet(monkeypatch, on=True)
    bench.release(5)
    await bench.live(2 * HOUR)
    assert bench.asked("W") == bench.asked("P") == 0


async def test_once_a_day_there_is_a_quiet_hour(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"renew_after": 3})
    bench.release(5)
    await bench.live(25 * HOUR)
    assert bench.asked("W") == 1


async def test_patches_that_are_too_large(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"max_share": "1%"})
    bench.release(2)
    await bench.live(HOUR)
    assert bench.has("daily-2.cdiff", "daily-2.cvd") == [True, True]


async def test_switched_off_delta_serving_renews_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"enabled": False, "max_patches": 3, "max_share": "0%"})
    bench.release(6)
    await bench.live(3 * HOUR)
    assert bench.asked("W") == bench.asked("P") == 0
    assert bench.has("daily-6.cdiff") == [True]


# Settings


async def test_all_means_whole_cvds_too(make_bench: MakeBench) -> None:
    bench = make_bench(serving={"prefetch": "all"})
    bench.release(2)
    await bench.live(HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-2.cdiff.sign", "daily-2.cvd", "daily-2.cvd.sign"))
    assert (bench.asked("P"), bench.asked("W")) == (1, 1)


async def run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the background task, which looks at once."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    bench.follower.start()


async def test_all_means_the_standard_databases(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(serving={"prefetch": "all", "databases": ["daily", "bytecode"]})
    bench.release(2)
    bench.release(340, releases=Releases(database="bytecode", first=340))
    await run(bench, monkeypatch)
    await until(lambda: bench.store.has(cvd(340, "bytecode")) and bench.store.has(cvd(2)))
    assert not [seen for seen in bench.origin.requests() if "main" in seen.path]


async def test_what_is_cached_is_in_use_from_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.release(2)
    bench.release(340, releases=Releases(database="bytecode", first=340))
    await run(bench, monkeypatch)
    await until(lambda: bench.store.has(cdiff(2)))
    assert not [seen for seen in bench.origin.requests() if "bytecode" in seen.path]


@pytest.mark.parametrize("sections", [{"serving": {"prefetch": "none"}}, {"upstream": {"offline": True}}])
async def test_it_can_be_switched_off(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    bench = make_bench(**sections)
    bench.release(2)
    tasks = asyncio.all_tasks()
    await run(bench, monkeypatch)
    assert asyncio.all_tasks() == tasks
    bench.follower.stop()


async def test_a_bug_ends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(database: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.versions, "get", broken)
    bench.release(2)
    await run(bench, monkeypatch)
    await until(lambda: "a bug" in caplog.text)
    bench.follower.stop()


# Without DNS


async def test_without_dns_the_header_tells(make_bench: MakeBench) -> None:
    bench = make_bench(versions={"dns": False})
    bench.release(1)
    await bench.live(HOUR, 60)
    assert 1 <= bench.asked("P") <= PER_FILE
    bench.release(3)
    await bench.live(HOUR, 60)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))
    assert bench.asked("P") <= PER_FILE
    assert bench.asked("W") == 0


async def test_dns_that_falls_silent(bench: Bench) -> None:
    bench.release(2)
    await bench.look()
    bench.dns.is_silent = True
    bench.release(3)
    await bench.live(HOUR)
    assert bench.has("daily-3.cdiff") == [True]


# CLDs


async def test_clds_are_built_ahead_where_clients_ask_for_them(bench: Bench) -> None:
    bench.release(3)
    await bench.look()
    assert bench.has("daily-3.cld") == [False]
    bench.builder.note_demand("daily")
    await bench.look()
    await until(lambda: bench.store.has(ObjectId("daily", 3, Kind.CLD)))
