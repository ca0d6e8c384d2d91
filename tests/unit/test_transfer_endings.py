"""How transfers, probes and writes end where the answer is short, newer, slow, silent or a refusal."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from werkzeug.http import http_date

from clamproxy import service as service_module
from clamproxy import statistics as stats_module
from clamproxy.cache.store import Store
from clamproxy.config.settings import VersionsSection
from clamproxy.messages import Requester, Result
from clamproxy.origin import header_probes as heads_module
from clamproxy.origin import transfer as transfer_module
from clamproxy.origin.attempt import Attempt
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.transfer import MAX_BREAKS, Transfer, TransferError
from clamproxy.origin.upstream import OriginError
from clamproxy.statistics import Stats
from tests.support import faults
from tests.support.dns_server import FakeDns, Mode
from tests.support.forge import forge_cdiff
from tests.support.origin import OriginServer
from tests.unit.conftest import (
    AGENT,
    NEW,
    OLD,
    OLD_AGENT,
    MakeCvd,
    Rig,
    cdiff,
    cvd,
    read_all,
    stime_of,
    until,
)
from tests.unit.gateway_site import Site
from tests.unit.heads_bench import Bench
from tests.unit.transfer_bench import LIMIT, SIZE, ask, ended, fetch, leave_partial, stored, validators_of

BREAK = 300_000
"""Bytes of a CVD after which its connection breaks."""
OLDER_AGENT = OLD_AGENT.replace("0.103.2", "0.102.4")
OLDER = Requester(OLDER_AGENT)


@pytest.fixture
def bench(origin: OriginServer) -> Iterator[Bench]:
    """Header probes at the fake CDN."""
    bench = Bench(origin)
    yield bench
    bench.upstream.close()


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, make_cvd: MakeCvd) -> AsyncIterator[Site]:
    """A gateway to which version 5 is advertised; the origin has that, and a patch far ahead."""
    with FakeDns() as dns:
        dns.versions["daily"] = 5
        origin.put("daily.cvd", make_cvd(5))
        origin.put("daily-100.cdiff", forge_cdiff("daily", 100))
        site = Site(tmp_path / "site", origin, dns)
        yield site
        site.service.stop()


# Answers that end cleanly, and early


def ends_early(length: int) -> faults.Fault:
    """An answer whose Content-Length is less than what its Content-Range announces."""
    return faults.Fault(short_length=length, cut_after=length)


@pytest.mark.parametrize("length", [20, 0])
async def test_a_continuation_that_is_always_short_is_given_up(
    rig: Rig, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(transfer_module, "_FIRST_PAUSE", 0.001)
    body = make_cvd(5, SIZE)
    rig.origin.put("daily.cvd", body)
    leave_partial(rig, cvd(5), body[:BREAK], await validators_of(rig, "/daily.cvd"))
    rig.origin.rule("R", ends_early(length))
    async with asyncio.timeout(LIMIT):
        with pytest.raises(TransferError) as caught:
            await Transfer(cvd(5), NEW, rig.resources).run()
    assert caught.value.failure is FailureKind.INTERRUPTED
    starts = [seen.headers["range"] for seen in rig.origin.requests()]
    assert starts == [f"bytes={BREAK + number * length}-" for number in range(MAX_BREAKS)]
    assert stored(rig, cvd(5)) is None


@pytest.mark.parametrize("length", [20, 0])
async def test_without_readers_it_is_given_up_sooner(rig: Rig, length: int) -> None:
    body = forge_cdiff("daily", 5)
    rig.origin.put("daily-5.cdiff", body)
    leave_partial(rig, cdiff(5), body[:32], await validators_of(rig, "/daily-5.cdiff"))
    rig.origin.rule("*", ends_early(length))
    async with asyncio.timeout(LIMIT):
        with pytest.raises(TransferError):
            await Transfer(cdiff(5), NEW, rig.resources).run()
    assert rig.origin.trace == "D5 D5"


@pytest.mark.parametrize("length", [20, 0])
async def test_a_continuation_that_is_short_once_is_continued(
    rig: Rig, make_cvd: MakeCvd, length: int
) -> None:
    body = make_cvd(5, SIZE)
    rig.origin.put("daily.cvd", body)
    leave_partial(rig, cvd(5), body[:BREAK], await validators_of(rig, "/daily.cvd"))
    rig.origin.rule("R", ends_early(length), times=1)
    assert (await fetch(rig, cvd(5))).published
    assert stored(rig, cvd(5)) == body
    assert rig.origin.trace == "R R"


# A body that is newer than its header probe


async def test_a_newer_version_than_expected_is_joined_under_both_names(rig: Rig, make_cvd: MakeCvd) -> None:
    body = make_cvd(6, SIZE)
    rig.origin.put("daily.cvd", body)
    rig.origin.rate = 500_000
    transfer, _ = rig.transfers.join(cvd(5), NEW)
    async with asyncio.timeout(LIMIT):
        await transfer.ready()
        assert transfer.object_id == cvd(6)
        for version in (5, 6):
            assert rig.transfers.join(cvd(version), OLD) == (transfer, True)
        sources = [transfer.source() for _ in range(3)]
        assert set(await asyncio.gather(*map(read_all, sources))) == {body}
        for source in sources:
            source.close()
        await ended(rig)
    assert rig.origin.trace == "W"
    assert (stored(rig, cvd(5)), stored(rig, cvd(6))) == (None, body)


async def test_two_transfers_that_meet_at_one_version(rig: Rig, make_cvd: MakeCvd) -> None:
    """The one that was started for it goes on; the other says that the file has changed, at once."""
    rig.origin.put("daily.cvd", make_cvd(6, SIZE))
    expected, _ = rig.transfers.join(cvd(5), NEW)
    newer, _ = rig.transfers.join(cvd(6), NEW)
    outcomes = await asyncio.gather(expected.ready(), newer.ready(), return_exceptions=True)
    failures = [error.failure for error in outcomes if isinstance(error, TransferError)]
    assert failures in ([], [FailureKind.CHANGED])
    await until(lambda: stored(rig, cvd(6)) is not None)
    assert rig.origin.trace == "W W"


async def test_a_release_between_probe_and_body(site: Site, make_cvd: MakeCvd) -> None:
    """Both clients get the newer version: the one that was told of the older, and the one that demands it."""
    await site.ask("/daily.cvd", Range="bytes=0-511")
    body = make_cvd(6)
    site.origin.put("daily.cvd", body)
    answers = await asyncio.gather(site.ask("/daily.cvd"), site.ask("/daily.cvd?version=6"))
    assert [(response.status, content == body) for response, content in answers] == [(200, True)] * 2


# Slow answers


async def test_what_is_here_already_may_come_again_slowly(rig: Rig, make_cvd: MakeCvd) -> None:
    """A whole file instead of its rest: for seconds nothing new arrives, and that is no stall."""
    body, here = make_cvd(5, SIZE), 500_000
    rig.origin.put("daily.cvd", body)
    leave_partial(rig, cvd(5), body[:here], await validators_of(rig, "/daily.cvd"))
    rig.origin.rule("R", faults.Fault(ignore_range=True, rate=200_000))
    assert (await fetch(rig, cvd(5))).published
    assert stored(rig, cvd(5)) == body
    assert [seen.status for seen in rig.origin.requests()] == [200]


# Probes


async def test_further_clients_do_not_wait_for_a_probe_that_is_silent(
    bench: Bench, origin: OriginServer, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads_module, "SILENCE", 0.5)
    origin.put("daily.cvd", make_cvd(5))
    origin.rule("P", faults.silent(), times=1)
    async with asyncio.timeout(LIMIT):
        first = asyncio.create_task(bench.probe())
        await until(origin.requests)
        await asyncio.sleep(0.6)
        assert set(await asyncio.gather(*(bench.probe() for _ in range(5)))) == {5}
        assert origin.trace == "P P"
        assert not first.done()
        origin.heal()
        with pytest.raises(OriginError):
            await first
    head = bench.heads.get("daily")
    assert head is not None
    assert head.header.version == 5


@pytest.mark.parametrize(
    ("older", "trace"), [(OLDER, "P P P"), (OLD, "P P")], ids=["two old versions", "one old version"]
)
async def test_trap_20_two_refused_clients_do_not_stop_a_third(
    bench: Bench, origin: OriginServer, make_cvd: MakeCvd, older: Requester, trace: str
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    origin.rule("P", faults.status(403), times=len({OLD.version, older.version}))
    *refused, version = await asyncio.gather(
        *(bench.probe(requester=requester) for requester in (OLD, older, NEW)), return_exceptions=True
    )
    assert [error.failure for error in refused if isinstance(error, OriginError)] == [
        FailureKind.FORBIDDEN
    ] * 2
    assert version == 5
    assert origin.trace == trace


async def test_trap_20_nor_at_the_gateway(site: Site) -> None:
    site.origin.rule("*", faults.status(403), times=2)
    agents = (OLD_AGENT, OLDER_AGENT, AGENT)
    answers = await asyncio.gather(*(site.ask("/daily.cvd", agent=agent) for agent in agents))
    assert [response.status for response, _ in answers] == [503, 503, 200]
    assert answers[-1][0].version == 5


# Versions far ahead


async def test_a_patch_far_ahead_of_fresh_dns_is_not_asked_for(site: Site) -> None:
    response, _ = await site.ask("/daily-100.cdiff")
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert site.origin.requests() == []


async def test_without_dns_it_is(site: Site) -> None:
    site.settings = site.settings.model_copy(update={"versions": VersionsSection(dns=False)})
    site.restart()
    assert (await site.ask("/daily.cvd"))[0].version == 5
    await site.settle()
    response, body = await site.ask("/daily-100.cdiff")
    assert (response.status, body) == (200, forge_cdiff("daily", 100))
    assert site.dns.queries == []
    assert site.origin.count("D100") == 1


@pytest.mark.parametrize("known", [True, False])
async def test_nor_where_dns_is_of_yesterday(site: Site, known: bool) -> None:
    if known:
        assert (await site.ask("/daily.cvd"))[0].version == 5
        await site.settle()
        site.service._origin.versions._known["daily"] = (5, time.time() - 86400)
    site.dns.mode = Mode.SERVFAIL
    response, body = await site.ask("/daily-100.cdiff")
    assert (response.status, body) == (200, forge_cdiff("daily", 100))
    assert site.origin.count("D100") == 1


# An origin that names the time of the next try


async def test_retry_after_is_heeded_while_clients_read_along(rig: Rig, make_cvd: MakeCvd) -> None:
    rig.origin.put("daily.cvd", make_cvd(5, SIZE))
    rig.origin.rule("W", faults.short(BREAK), times=1)
    rig.origin.rule("R", faults.status(503, retry_after="3600"))
    transfer = await ask(rig, cvd(5))
    assert not transfer.published
    assert rig.origin.trace == "W R"
    cooldown = rig.cooldowns.in_force()["/daily.cvd"]
    assert cooldown.failure is FailureKind.SERVER_ERROR
    assert cooldown.until > time.time() + 1800
    assert rig.notes["/daily.cvd"]["until"] == cooldown.until


async def test_an_error_of_the_server_without_it_is_survived(rig: Rig, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    rig.origin.put("daily.cvd", body)
    rig.origin.rule("W", faults.short(BREAK), times=1)
    rig.origin.rule("R", faults.status(503), times=1)
    await ask(rig, cvd(5))
    assert stored(rig, cvd(5)) == body
    assert rig.origin.trace == "W R R"


# Counters that can't be written


class FullDisk:
    """Makes the counters of a store fail so many times; counts the tries."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.tries = 0
        self.failures = failures
        self._write = store.add_to_counters
        monkeypatch.setattr(store, "add_to_counters", self.add_to_counters)

    def add_to_counters(self, amounts: dict[str, int]) -> bool:
        self.tries += 1
        if self.tries <= self.failures:
            raise OSError("no space left on device")
        return self._write(amounts)


async def test_a_failing_write_of_counters_waits_and_loses_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_module, "FLUSH_DELAY", 0.01)
    monkeypatch.setattr(stats_module, "FLUSH_DELAY_AFTER_ERROR", 3600.0)
    disk, stats = FullDisk(rig.store, monkeypatch, failures=1), Stats(rig.store, rig.writer)
    stats.count_request(Result.HIT, 10)
    await until(lambda: disk.tries)
    for _ in range(10):
        stats.count_request(Result.HIT, 10)
        await asyncio.sleep(0.02)
    await rig.writer.run(lambda: None)
    assert disk.tries == 1
    stats.flush()  # as at the end of the process
    await rig.writer.run(lambda: None)
    assert rig.store.counters() == {"requests": 11, "hits": 11, "bytes_served": 110}
    stats.count_request(Result.HIT, 10)  # and from then on, as soon as ever
    await until(lambda: rig.store.counters()["requests"] == 12)
    assert disk.tries == 3


async def test_a_failing_write_of_counters_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "FLUSH_DELAY_AFTER_ERROR", 0.05)
    disk, stats = FullDisk(rig.store, monkeypatch, failures=2), Stats(rig.store, rig.writer)
    stats.count_upstream(1, 100)
    await until(rig.store.counters)
    assert rig.store.counters() == {"upstream_requests": 1, "upstream_bytes": 100}
    assert disk.tries == 3


# Many at once


class Gauge:
    """How many attempts run at the same time at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.highest = 0
        self._now = 0
        self._lock = threading.Lock()
        run = Attempt.run

        def counted(attempt: Attempt) -> None:
            self._change(1)
            try:
                run(attempt)
            finally:
                self._change(-1)

        monkeypatch.setattr(Attempt, "run", counted)

    def _change(self, by: int) -> None:
        with self._lock:
            self._now += by
            self.highest = max(self.highest, self._now)


async def test_a_hundred_patches_at_once_are_served(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge, versions = Gauge(monkeypatch), range(1, 101)
    site.dns.versions["daily"] = 100
    for version in versions:
        site.origin.put(f"daily-{version}.cdiff", forge_cdiff("daily", version))
    answers = await asyncio.gather(*(site.ask(f"/daily-{version}.cdiff") for version in versions))
    assert {response.status for response, _ in answers} == {200}
    assert [body for _, body in answers] == [forge_cdiff("daily", version) for version in versions]
    assert len(site.origin.requests()) == 100
    assert 1 < gauge.highest <= service_module.MAX_CONNECTIONS


async def test_those_that_wait_get_their_turn_when_others_fail(rig: Rig) -> None:
    rig.origin.put("daily-9.cdiff", forge_cdiff("daily", 9))
    rig.origin.rule("*", faults.short(0))
    rig.origin.rule("D9", faults.Fault())
    resources = replace(rig.resources, slots=asyncio.Semaphore(1))
    transfers = [Transfer(cdiff(version), NEW, resources) for version in (7, 8, 9)]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(transfer.run() for transfer in transfers), return_exceptions=True)
    assert [transfer.published for transfer in transfers] == [False, False, True]


# Threads


@pytest.mark.parametrize("fault", [faults.silent(), faults.stall(5)], ids=["no head", "half a body"])
async def test_giving_up_on_a_transfer_ends_its_thread(rig: Rig, fault: faults.Fault) -> None:
    rig.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    rig.origin.rule("*", fault)
    name = f"clamproxy-fetch-{cdiff(5).file_name}"

    def is_running() -> bool:
        return name in {thread.name for thread in threading.enumerate()}

    task = asyncio.create_task(Transfer(cdiff(5), NEW, rig.resources).run())
    await until(lambda: rig.origin.requests() and is_running())
    task.cancel()
    await until(lambda: not is_running(), limit=4)  # less than the five seconds of silence that are borne
    await asyncio.gather(task, return_exceptions=True)


async def test_giving_up_on_a_probe_ends_its_thread(bench: Bench, origin: OriginServer) -> None:
    origin.rule("*", faults.silent())
    probe = asyncio.create_task(bench.probe())
    await until(origin.requests)
    bench.heads.stop()
    await until(lambda: "clamproxy-probe-daily" not in {t.name for t in threading.enumerate()}, limit=4)
    await asyncio.gather(probe, return_exceptions=True)


# What the header of an arriving file says


@pytest.mark.parametrize(
    ("is_right", "status"), [pytest.param(True, 304, id="right"), pytest.param(False, 503, id="wrong")]
)
async def test_nothing_new_is_said_only_when_it_is_proven(
    site: Site, make_cvd: MakeCvd, is_right: bool, status: int
) -> None:
    body = bytearray(make_cvd(5, SIZE))
    body[-1000] ^= not is_right
    site.origin.put("daily.cvd", bytes(body))
    response, content = await site.ask("/daily.cvd", If_Modified_Since=http_date(stime_of(5)))
    assert (response.status, content if is_right else b"") == (status, b"")
