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
from clamproxy.origin.errors import KnownMissingError, NotFoundError, OriginError, TransferError
from clamproxy.origin.header_probes import HeaderProbes
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfers import CooldownError
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.releases.lineage import Lineages, ProvenLineage
from clamproxy.releases.prefetcher import AT_A_TIME, Prefetcher
from tests.harness.transfers import TransferHarness
from tests.support import faults
from tests.support.forge import forge_keys
from tests.support.releases import Releases
from tests.support.stored import AGENT, NEW, OLD, RELEASES, cdiff, cvd, hold, read, until

LIMIT = 30
"""Seconds; only a guard."""


class PrefetchHarness:
    """A prefetcher between a fake CDN and a store."""

    def __init__(self, around: TransferHarness) -> None:
        self.origin, self.store, self.transfers = around.origin, around.store, around.transfers
        self.budget = Budget(UNKEPT)
        self.lineages = Lineages(around.store, forge_keys().trusted)
        self.heads = HeaderProbes(around.upstream, around.cooldowns, UNKEPT)
        origin = Origin(
            around.upstream,
            AdvertisedVersions("current.cvd.clamav.net", None, 300.0, UNKEPT, UNKEPT),
            self.heads,
            around.cooldowns,
            Agents(None, UNKEPT),
            self.budget,
        )
        self.prefetcher = Prefetcher(around.store, origin, self.lineages, around.transfers)

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
async def harness(harness: TransferHarness) -> AsyncIterator[PrefetchHarness]:
    """Version 12 is at the origin, with all patches that lead there."""
    RELEASES.publish(harness.origin, 12)
    prefetching = PrefetchHarness(harness)
    yield prefetching
    prefetching.prefetcher.stop()
    prefetching.heads.stop()


async def test_what_is_fetched_is_published(harness: PrefetchHarness) -> None:
    for _ in range(2):
        await harness.prefetcher.fetch(cdiff(2), NEW)
        assert read(harness.store, cdiff(2)) == RELEASES.cdiff(2)
    (seen,) = harness.origin.requests()
    assert (seen.short_name, seen.headers["user-agent"]) == ("D2", AGENT)


async def test_what_cannot_be_had(harness: PrefetchHarness) -> None:
    harness.origin.rule("D3", faults.status(429))
    expected: list[tuple[int, type[Exception]]] = [
        *((13, NotFoundError), (13, KnownMissingError)),
        *((3, TransferError), (3, CooldownError)),
    ]
    for version, error in expected:
        with pytest.raises(error):
            await harness.prefetcher.fetch(cdiff(version), NEW)
        await until(lambda: not harness.transfers.under_way())
    assert harness.asked() == {"D13", "D3"}


async def test_only_what_is_missing_is_fetched(harness: PrefetchHarness) -> None:
    hold(harness.store, None, [3, 5])
    await harness.fetch_patches(range(2, 13))
    assert all(harness.store.has(cdiff(version)) for version in range(2, 13))
    assert harness.asked() == {f"D{version}" for version in range(2, 13)} - {"D3", "D5"}
    await harness.fetch_patches(range(2, 13))
    assert len(harness.origin.requests()) == 9


async def test_what_was_lost_from_the_disk_is_fetched_again(harness: PrefetchHarness) -> None:
    hold(harness.store, 1, [2, 3])
    for file in harness.store.directory.glob("objects/*/*"):
        if file.read_bytes() == RELEASES.cdiff(2):
            file.unlink()
    proven = await harness.catch_up(4)
    assert proven is not None
    assert proven.lineage.reached == 4
    assert harness.asked() == {"D2", "D4"}


async def test_behind_a_patch_that_cannot_be_had_no_more_are_asked_for(harness: PrefetchHarness) -> None:
    harness.origin.remove("daily-3.cdiff")
    with pytest.raises(NotFoundError):
        await harness.fetch_patches(range(2, 13))
    group = range(2, 2 + AT_A_TIME)
    assert harness.asked() == {f"D{version}" for version in group}
    assert [version for version in range(2, 13) if harness.store.has(cdiff(version))] == [2, 4, 5]


async def test_nothing_to_fetch(harness: PrefetchHarness) -> None:
    await harness.fetch_patches([])
    assert harness.asked() == set()


# Catching up


async def test_patches_lead_on_from_the_cached_cvd(harness: PrefetchHarness) -> None:
    hold(harness.store, 1, [2, 4])
    proven = await harness.catch_up(6)
    assert proven is not None
    assert (proven.lineage.base, proven.lineage.reached) == (1, 6)
    assert harness.asked() == {"D3", "D5", "D6"}


async def test_without_a_cvd_nothing_is_asked(harness: PrefetchHarness) -> None:
    assert await harness.catch_up(6) is None
    assert harness.asked() == set()


@pytest.mark.parametrize("target", [1, 2, 3])
async def test_what_is_reached_costs_nothing(harness: PrefetchHarness, target: int) -> None:
    hold(harness.store, 1, [2, 3])
    proven = await harness.catch_up(target)
    assert proven is not None
    assert proven.lineage.reached == 3
    assert harness.asked() == set()


async def test_trap_15_behind_an_empty_patch_nothing_is_asked(harness: PrefetchHarness) -> None:
    harness.origin.put("daily-2.cdiff", b"")
    hold(harness.store, 1)
    await harness.fetch_patches([2])
    proven = await harness.catch_up(6)
    assert proven is not None
    assert (proven.lineage.reached, proven.lineage.is_blocked) == (1, True)
    assert harness.asked() == {"D2"}


async def test_trap_16_a_patch_that_is_late(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    harness.origin.remove("daily-3.cdiff")
    with pytest.raises(NotFoundError):
        await harness.catch_up(3)
    proven = await harness.lineages.get("daily")
    assert proven is not None
    assert proven.lineage.reached == 2


async def test_trap_27_a_herd_costs_one_request_for_each(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    found = await asyncio.gather(*(harness.catch_up(6) for _ in range(30)))
    assert {proven.lineage.reached for proven in found if proven} == {6}
    assert harness.asked() == {"D2", "D3", "D4", "D5", "D6"}


async def test_who_knows_of_a_newer_version_gets_there(harness: PrefetchHarness) -> None:
    """A release while others are still waiting for the one before."""
    hold(harness.store, 1)
    harness.origin.rule("D4", faults.slow(2000))
    first, second = await asyncio.gather(harness.catch_up(4), harness.catch_up(6))
    assert first is not None
    assert first.lineage.reached >= 4
    assert second is not None
    assert second.lineage.reached == 6


async def test_who_leaves_ends_nothing(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    first, second = (asyncio.create_task(harness.catch_up(6)) for _ in range(2))
    await until(harness.origin.requests)
    first.cancel()
    proven = await second
    assert proven is not None
    assert proven.lineage.reached == 6
    assert len(harness.asked()) == 5


async def test_prefetching_goes_on_when_all_have_left(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    caller = asyncio.create_task(harness.catch_up(6))
    await until(harness.origin.requests)
    caller.cancel()
    await until(lambda: harness.store.has(cdiff(6)))


async def test_trap_20_a_refused_client_does_not_stop_another(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    harness.origin.rule("D2", faults.status(403), times=1)
    refused, served = await asyncio.gather(
        harness.catch_up(2, OLD), harness.catch_up(2, NEW), return_exceptions=True
    )
    assert isinstance(refused, TransferError)
    assert refused.failure is FailureKind.FORBIDDEN
    assert isinstance(served, ProvenLineage)
    assert served.lineage.reached == 2


# Renewal


async def test_a_newer_cvd_becomes_the_base(harness: PrefetchHarness) -> None:
    hold(harness.store, 1, [2, 3])
    assert await harness.renew() == 12
    assert harness.origin.trace == "P W"
    proven = await harness.lineages.get("daily")
    assert proven is not None
    assert (proven.lineage.base, proven.lineage.reached) == (12, 12)


async def test_the_first_cvd_of_all(harness: PrefetchHarness) -> None:
    assert await harness.renew() == 12


@pytest.mark.parametrize("version", [11, 12])
async def test_trap_4_nothing_newer_costs_a_probe(harness: PrefetchHarness, version: int) -> None:
    hold(harness.store, 12)
    harness.origin.put("daily.cvd", RELEASES.cvd(version))
    assert await harness.renew() == 12
    assert harness.origin.trace == "P"


async def test_trap_5_a_renewal_makes_no_news_of_what_was_looked_into(harness: PrefetchHarness) -> None:
    """A client's look found that the CDN lags behind DNS; the next client must not look again."""
    hold(harness.store, 12)
    await harness.heads.probe("daily", NEW, 13, 13)
    assert await harness.renew() == 12
    assert harness.origin.trace == "P P"
    sighting = harness.heads.sighting("daily")
    assert (sighting.advertised, sighting.wanted) == (13, 13)


async def test_a_renewal_is_shared(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    harness.prefetcher.renew_soon("daily", OLD)
    harness.prefetcher.renew_soon("daily", NEW)
    assert set(await asyncio.gather(*(harness.renew() for _ in range(10)))) == {12}
    assert harness.origin.trace == "P W"


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
    harness: PrefetchHarness, path: str, fault: faults.Fault, trace: str, caplog: pytest.LogCaptureFixture
) -> None:
    hold(harness.store, 1)
    harness.origin.rule(path, fault)
    with pytest.raises((OriginError, TransferError)):
        await harness.renew()
    await until(lambda: not harness.transfers.under_way())
    harness.prefetcher.renew_soon("daily", NEW)
    with pytest.raises(CooldownError):
        await harness.renew()
    assert harness.store.newest_version("daily") == 1
    assert harness.origin.trace == trace
    assert "Traceback" not in caplog.text


async def test_a_corrupt_cvd_is_not_published(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    corrupt = RELEASES.cvd(12)[:-1] + b"x"
    harness.origin.put("daily.cvd", corrupt)
    with pytest.raises(TransferError):
        await harness.renew()
    assert harness.store.newest_version("daily") == 1
    assert not harness.store.has(cvd(12))


async def test_stop(harness: PrefetchHarness) -> None:
    hold(harness.store, 1)
    harness.origin.rule("*", faults.silent())
    callers = [asyncio.create_task(harness.catch_up(6)), asyncio.create_task(harness.renew())]
    await until(lambda: len(harness.origin.requests()) > 1)
    harness.prefetcher.stop()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_many_patches_are_fetched_a_few_at_a_time(harness: PrefetchHarness) -> None:
    line = Releases(database="test")
    line.publish(harness.origin, 30)
    harness.origin.rule("*", faults.slow(100_000))
    most, done = 0, asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(harness.transfers.under_way()))
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    await harness.prefetcher.fetch_patches([cdiff(n, "test") for n in range(2, 31)], NEW)
    done.set()
    await watcher
    assert 1 < most <= AT_A_TIME


# Budget


async def test_what_somebody_fetches_already_may_be_waited_for(harness: PrefetchHarness) -> None:
    """Whether the gateway has asked for it a moment ago or not: waiting costs nothing."""
    path, fetcher = cdiff(2).upstream_path, harness.prefetcher
    assert fetcher.may_fetch(cdiff(2))
    harness.budget.note(path)
    assert not fetcher.may_fetch(cdiff(2))
    harness.origin.rule("D2", faults.silent(), times=1)
    transfer, _ = harness.transfers.join(cdiff(2), NEW, for_client=False)
    await until(lambda: harness.origin.count("D2") == 1)
    assert fetcher.may_fetch(cdiff(2))
    assert fetcher.may_fetch(cdiff(3))
    harness.origin.heal()
    with pytest.raises(TransferError):
        await transfer.finish()
    await until(lambda: not harness.transfers.under_way())
    assert not fetcher.may_fetch(cdiff(2))


@pytest.mark.parametrize(("noted", "allowed"), [(0, True), (1, False), (PER_FILE, False)])
async def test_a_renewal_has_the_budget_of_its_file(
    harness: PrefetchHarness, noted: int, allowed: bool
) -> None:
    for _ in range(noted):
        harness.budget.note("/daily.cvd")
    assert harness.prefetcher.may_renew("daily") is allowed
    hold(harness.store, 1)
    harness.prefetcher.renew_soon("daily", NEW)
    await until(lambda: not harness.prefetcher._running and not harness.transfers.under_way())
    assert harness.origin.trace == ("P W" if allowed else "")
