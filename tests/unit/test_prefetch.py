"""Prefetching: what is missing is fetched once, and published before it is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from clamproxy.messages import Requester
from clamproxy.notes import UNKEPT
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import PER_FILE, Budget
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.header_probes import HeaderProbes
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfer import TransferError
from clamproxy.origin.transfers import CooldownError
from clamproxy.origin.upstream import KnownMissingError, NotFoundError, OriginError
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.releases.lineage import Lineages, ProvenLineage
from clamproxy.releases.prefetcher import AT_A_TIME, Prefetcher
from tests.support import faults
from tests.support.forge import forge_keys
from tests.support.releases import Releases
from tests.unit.conftest import AGENT, NEW, OLD, RELEASES, Rig, cdiff, cvd, hold, read, until

LIMIT = 30
"""Seconds; only a guard."""


class Bench:
    """A prefetcher between a fake CDN and a store."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.origin, self.store = rig, rig.origin, rig.store
        self.lineages = Lineages(rig.store, forge_keys().trusted)
        self.heads = HeaderProbes(rig.upstream, rig.cooldowns, UNKEPT)
        origin = Origin(
            rig.upstream,
            AdvertisedVersions("current.cvd.clamav.net", None, 300.0, UNKEPT, UNKEPT),
            self.heads,
            rig.cooldowns,
            Agents(None, UNKEPT),
            Budget(UNKEPT),
        )
        self.prefetcher = Prefetcher(rig.store, origin, self.lineages, rig.transfers)

    async def catch_up(self, target: int, requester: Requester = NEW) -> ProvenLineage | None:
        async with asyncio.timeout(LIMIT):
            return await self.prefetcher.catch_up("daily", target, requester)

    async def fetch_patches(self, versions: Iterable[int]) -> None:
        async with asyncio.timeout(LIMIT):
            await self.prefetcher.fetch_patches([cdiff(version) for version in versions], NEW)

    async def renew(self) -> int | None:
        """Gives the version that is cached then."""
        async with asyncio.timeout(LIMIT):
            await self.prefetcher.renew("daily", NEW)
        return self.store.newest_version("daily")

    def asked(self) -> set[str]:
        """The requests so far, each of which came once."""
        trace = self.origin.trace.split()
        assert len(set(trace)) == len(trace)
        return set(trace)


@pytest.fixture
async def bench(rig: Rig) -> AsyncIterator[Bench]:
    """Version 12 is at the origin, with all patches that lead there."""
    RELEASES.publish(rig.origin, 12)
    bench = Bench(rig)
    yield bench
    bench.prefetcher.stop()
    bench.heads.stop()


async def test_what_is_fetched_is_published(bench: Bench) -> None:
    for _ in range(2):
        await bench.prefetcher.fetch(cdiff(2), NEW)
        assert read(bench.store, cdiff(2)) == RELEASES.cdiff(2)
    (seen,) = bench.origin.requests()
    assert (seen.short_name, seen.headers["user-agent"]) == ("D2", AGENT)


async def test_what_cannot_be_had(bench: Bench) -> None:
    bench.origin.rule("D3", faults.status(429))
    expected: list[tuple[int, type[Exception]]] = [
        *((13, NotFoundError), (13, KnownMissingError)),
        *((3, TransferError), (3, CooldownError)),
    ]
    for version, error in expected:
        with pytest.raises(error):
            await bench.prefetcher.fetch(cdiff(version), NEW)
        await until(lambda: not bench.rig.transfers._running)
    assert bench.asked() == {"D13", "D3"}


async def test_only_what_is_missing_is_fetched(bench: Bench) -> None:
    hold(bench.store, None, [3, 5])
    await bench.fetch_patches(range(2, 13))
    assert all(bench.store.has(cdiff(version)) for version in range(2, 13))
    assert bench.asked() == {f"D{version}" for version in range(2, 13)} - {"D3", "D5"}
    await bench.fetch_patches(range(2, 13))
    assert len(bench.origin.requests()) == 9


async def test_what_was_lost_from_the_disk_is_fetched_again(bench: Bench) -> None:
    hold(bench.store, 1, [2, 3])
    for file in bench.store.directory.glob("objects/*/*"):
        if file.read_bytes() == RELEASES.cdiff(2):
            file.unlink()
    proven = await bench.catch_up(4)
    assert proven is not None
    assert proven.lineage.reached == 4
    assert bench.asked() == {"D2", "D4"}


async def test_behind_one_that_cannot_be_had_no_more_are_asked_for(bench: Bench) -> None:
    bench.origin.remove("daily-3.cdiff")
    with pytest.raises(NotFoundError):
        await bench.fetch_patches(range(2, 13))
    group = range(2, 2 + AT_A_TIME)
    assert bench.asked() == {f"D{version}" for version in group}
    assert [version for version in range(2, 13) if bench.store.has(cdiff(version))] == [2, 4, 5]


async def test_nothing_to_fetch(bench: Bench) -> None:
    await bench.fetch_patches([])
    assert bench.asked() == set()


# Catching up


async def test_patches_lead_on_from_the_cached_cvd(bench: Bench) -> None:
    hold(bench.store, 1, [2, 4])
    proven = await bench.catch_up(6)
    assert proven is not None
    assert (proven.lineage.base, proven.lineage.reached) == (1, 6)
    assert bench.asked() == {"D3", "D5", "D6"}


async def test_without_a_cvd_nothing_is_asked(bench: Bench) -> None:
    assert await bench.catch_up(6) is None
    assert bench.asked() == set()


@pytest.mark.parametrize("target", [1, 2, 3])
async def test_what_is_reached_costs_nothing(bench: Bench, target: int) -> None:
    hold(bench.store, 1, [2, 3])
    proven = await bench.catch_up(target)
    assert proven is not None
    assert proven.lineage.reached == 3
    assert bench.asked() == set()


async def test_trap_15_behind_an_empty_patch_nothing_is_asked(bench: Bench) -> None:
    bench.origin.put("daily-2.cdiff", b"")
    hold(bench.store, 1)
    await bench.fetch_patches([2])
    proven = await bench.catch_up(6)
    assert proven is not None
    assert (proven.lineage.reached, proven.lineage.is_blocked) == (1, True)
    assert bench.asked() == {"D2"}


async def test_trap_16_a_patch_that_is_late(bench: Bench) -> None:
    hold(bench.store, 1)
    bench.origin.remove("daily-3.cdiff")
    with pytest.raises(NotFoundError):
        await bench.catch_up(3)
    proven = await bench.lineages.get("daily")
    assert proven is not None
    assert proven.lineage.reached == 2


async def test_trap_27_a_herd_costs_one_request_for_each(bench: Bench) -> None:
    hold(bench.store, 1)
    found = await asyncio.gather(*(bench.catch_up(6) for _ in range(30)))
    assert {proven.lineage.reached for proven in found if proven} == {6}
    assert bench.asked() == {"D2", "D3", "D4", "D5", "D6"}


async def test_one_who_knows_of_a_newer_version_gets_there_too(bench: Bench) -> None:
    """A release while others are still waiting for the one before."""
    hold(bench.store, 1)
    bench.origin.rule("D4", faults.slow(2000))
    first, second = await asyncio.gather(bench.catch_up(4), bench.catch_up(6))
    assert first is not None
    assert first.lineage.reached >= 4
    assert second is not None
    assert second.lineage.reached == 6


async def test_who_leaves_ends_nothing(bench: Bench) -> None:
    hold(bench.store, 1)
    first, second = (asyncio.create_task(bench.catch_up(6)) for _ in range(2))
    await until(bench.origin.requests)
    first.cancel()
    proven = await second
    assert proven is not None
    assert proven.lineage.reached == 6
    assert len(bench.asked()) == 5


async def test_it_goes_on_when_all_have_left(bench: Bench) -> None:
    hold(bench.store, 1)
    caller = asyncio.create_task(bench.catch_up(6))
    await until(bench.origin.requests)
    caller.cancel()
    await until(lambda: bench.store.has(cdiff(6)))


async def test_trap_20_a_refused_client_does_not_stop_another(bench: Bench) -> None:
    hold(bench.store, 1)
    bench.origin.rule("D2", faults.status(403), times=1)
    refused, served = await asyncio.gather(
        bench.catch_up(2, OLD), bench.catch_up(2, NEW), return_exceptions=True
    )
    assert isinstance(refused, TransferError)
    assert refused.failure is FailureKind.FORBIDDEN
    assert isinstance(served, ProvenLineage)
    assert served.lineage.reached == 2


# Renewal


async def test_a_newer_cvd_becomes_the_base(bench: Bench) -> None:
    hold(bench.store, 1, [2, 3])
    assert await bench.renew() == 12
    assert bench.origin.trace == "P W"
    proven = await bench.lineages.get("daily")
    assert proven is not None
    assert (proven.lineage.base, proven.lineage.reached) == (12, 12)


async def test_the_first_cvd_of_all(bench: Bench) -> None:
    assert await bench.renew() == 12


@pytest.mark.parametrize("version", [11, 12])
async def test_trap_4_nothing_newer_costs_a_probe(bench: Bench, version: int) -> None:
    hold(bench.store, 12)
    bench.origin.put("daily.cvd", RELEASES.cvd(version))
    assert await bench.renew() == 12
    assert bench.origin.trace == "P"


async def test_trap_5_a_renewal_makes_no_news_of_what_was_looked_into(bench: Bench) -> None:
    """A client's look found that the CDN lags behind DNS; the next client must not look again."""
    hold(bench.store, 12)
    await bench.heads.probe("daily", NEW, 13, 13)
    assert await bench.renew() == 12
    assert bench.origin.trace == "P P"
    sighting = bench.heads.sighting("daily")
    assert (sighting.advertised, sighting.wanted) == (13, 13)


async def test_a_renewal_is_shared(bench: Bench) -> None:
    hold(bench.store, 1)
    bench.prefetcher.renew_soon("daily", OLD)
    bench.prefetcher.renew_soon("daily", NEW)
    assert set(await asyncio.gather(*(bench.renew() for _ in range(10)))) == {12}
    assert bench.origin.trace == "P W"


@pytest.mark.parametrize(
    ("path", "fault", "trace"),
    [
        ("P", faults.status(500), "P"),
        ("P", faults.html(), "P"),
        ("W", faults.status(429), "P W"),
        ("W", faults.html(), "P W"),
    ],
)
async def test_trouble_with_a_renewal(
    bench: Bench, path: str, fault: faults.Fault, trace: str, caplog: pytest.LogCaptureFixture
) -> None:
    hold(bench.store, 1)
    bench.origin.rule(path, fault)
    with pytest.raises((OriginError, TransferError)):
        await bench.renew()
    await until(lambda: not bench.rig.transfers._running)
    bench.prefetcher.renew_soon("daily", NEW)
    with pytest.raises(CooldownError):
        await bench.renew()
    assert bench.store.newest_version("daily") == 1
    assert bench.origin.trace == trace
    assert "Traceback" not in caplog.text


async def test_a_corrupt_cvd_is_not_published(bench: Bench) -> None:
    hold(bench.store, 1)
    corrupt = RELEASES.cvd(12)[:-1] + b"x"
    bench.origin.put("daily.cvd", corrupt)
    with pytest.raises(TransferError):
        await bench.renew()
    assert bench.store.newest_version("daily") == 1
    assert not bench.store.has(cvd(12))


async def test_stop(bench: Bench) -> None:
    hold(bench.store, 1)
    bench.origin.rule("*", faults.silent())
    callers = [asyncio.create_task(bench.catch_up(6)), asyncio.create_task(bench.renew())]
    await until(lambda: len(bench.origin.requests()) > 1)
    bench.prefetcher.stop()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_many_patches_are_fetched_a_few_at_a_time(bench: Bench) -> None:
    line = Releases(database="test")
    line.publish(bench.origin, 30)
    bench.origin.rule("*", faults.slow(100_000))
    most, done = 0, asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(bench.rig.transfers._running))
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    await bench.prefetcher.fetch_patches([cdiff(n, "test") for n in range(2, 31)], NEW)
    done.set()
    await watcher
    assert 1 < most <= AT_A_TIME


# Budget


async def test_what_somebody_fetches_already_may_be_waited_for(bench: Bench) -> None:
    """Whether the gateway has asked for it a moment ago or not: waiting costs nothing."""
    path, fetcher = cdiff(2).upstream_path, bench.prefetcher
    assert fetcher.may_fetch(cdiff(2))
    fetcher._budget.note(path)
    assert not fetcher.may_fetch(cdiff(2))
    bench.origin.rule("D2", faults.silent(), times=1)
    transfer, _ = bench.rig.transfers.join(cdiff(2), NEW, for_client=False)
    await until(lambda: bench.origin.count("D2") == 1)
    assert fetcher.may_fetch(cdiff(2))
    assert fetcher.may_fetch(cdiff(3))
    bench.origin.heal()
    with pytest.raises(TransferError):
        await transfer.finish()
    await until(lambda: not bench.rig.transfers._running)
    assert not fetcher.may_fetch(cdiff(2))


@pytest.mark.parametrize(("noted", "allowed"), [(0, True), (1, False), (PER_FILE, False)])
async def test_a_renewal_has_the_budget_of_its_file(bench: Bench, noted: int, allowed: bool) -> None:
    for _ in range(noted):
        bench.prefetcher._budget.note("/daily.cvd")
    assert bench.prefetcher.may_renew("daily") is allowed
    hold(bench.store, 1)
    bench.prefetcher.renew_soon("daily", NEW)
    await until(lambda: not bench.prefetcher._running and not bench.rig.transfers._running)
    assert bench.origin.trace == ("P W" if allowed else "")
