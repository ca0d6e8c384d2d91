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

from clamproxy import clamav_files
from clamproxy import statistics as stats_module
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.messages import Requester, Result
from clamproxy.objects import ObjectId
from clamproxy.origin import breaks
from clamproxy.origin.attempt import Attempt
from clamproxy.origin.breaks import MAX_BREAKS
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import OriginError, TransferError
from clamproxy.origin.header_probes import SILENCE
from clamproxy.origin.transfer import Transfer
from clamproxy.statistics import Stats
from tests.harness.header_probes import HeadsHarness
from tests.harness.service import ServiceHarness
from tests.harness.transfers import (
    LIMIT,
    SIZE,
    TransferHarness,
    ask,
    ended,
    failure_of,
    fetch,
    leave_partial,
    stored,
    validators_of,
)
from tests.support import faults
from tests.support.clock import ClockAhead
from tests.support.dns_server import FakeDns, Mode
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, NEW, OLD, OLD_AGENT, cdiff, cvd, read_all, stime_of, until

BREAK = 300_000
"""Bytes of a CVD after which its connection breaks."""
OLDER_AGENT = OLD_AGENT.replace("0.103.2", "0.102.4")
OLDER = Requester(OLDER_AGENT)


@pytest.fixture
def heads(origin: OriginServer) -> Iterator[HeadsHarness]:
    """Header probes at the fake CDN."""
    heads = HeadsHarness(origin)
    yield heads
    heads.upstream.close()


@pytest.fixture
async def gateway(tmp_path: Path, origin: OriginServer, make_cvd: MakeCvd) -> AsyncIterator[ServiceHarness]:
    """A gateway to which version 5 is advertised; the origin has that, and a patch far ahead."""
    with FakeDns() as dns:
        dns.versions["daily"] = 5
        origin.put("daily.cvd", make_cvd(5))
        origin.put("daily-100.cdiff", forge_cdiff("daily", 100))
        gateway = ServiceHarness(tmp_path / "site", origin, dns, ClockAhead())
        yield gateway
        gateway.service.stop()


async def test_a_file_that_is_deleted_while_it_is_published_is_fetched_again(
    harness: TransferHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An administrator may empty the directory at any moment."""
    publish = harness.store.publish

    def delete_first(object_id: ObjectId, path: Path, metadata: Metadata) -> None:
        path.unlink()
        publish(object_id, path, metadata)

    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    with monkeypatch.context() as patched:
        patched.setattr(harness.store, "publish", delete_first)
        failure = await failure_of(harness, cdiff(5))
    assert (failure.failure, "somebody has deleted" in str(failure)) == (FailureKind.LOCAL, True)
    assert "Traceback" not in caplog.text
    assert (await fetch(harness, cdiff(5))).published


# Answers that end cleanly, and early


def ends_early(length: int) -> faults.Fault:
    """An answer whose Content-Length is less than what its Content-Range announces."""
    return faults.Fault(short_length=length, cut_after=length)


@pytest.mark.parametrize("length", [20, 0])
async def test_a_continuation_that_is_always_short_is_given_up(
    harness: TransferHarness, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(breaks, "_FIRST_PAUSE", 0.001)
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:BREAK], await validators_of(harness, "/daily.cvd"))
    harness.origin.rule("R", ends_early(length))
    async with asyncio.timeout(LIMIT):
        with pytest.raises(TransferError) as caught:
            await Transfer(cvd(5), NEW, harness.resources).run()
    assert caught.value.failure is FailureKind.INTERRUPTED
    starts = [seen.headers["range"] for seen in harness.origin.requests()]
    assert starts == [f"bytes={BREAK + number * length}-" for number in range(MAX_BREAKS)]
    assert stored(harness, cvd(5)) is None


@pytest.mark.parametrize("length", [20, 0])
async def test_a_continuation_without_readers_is_given_up_sooner(
    harness: TransferHarness, length: int
) -> None:
    body = forge_cdiff("daily", 5)
    harness.origin.put("daily-5.cdiff", body)
    leave_partial(harness, cdiff(5), body[:32], await validators_of(harness, "/daily-5.cdiff"))
    harness.origin.rule("*", ends_early(length))
    async with asyncio.timeout(LIMIT):
        with pytest.raises(TransferError):
            await Transfer(cdiff(5), NEW, harness.resources).run()
    assert harness.origin.trace == "D5 D5"


@pytest.mark.parametrize("length", [20, 0])
async def test_a_continuation_that_is_short_once_is_continued(
    harness: TransferHarness, make_cvd: MakeCvd, length: int
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:BREAK], await validators_of(harness, "/daily.cvd"))
    harness.origin.rule("R", ends_early(length), times=1)
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    assert harness.origin.trace == "R R"


# A body that is newer than its header probe


async def test_a_newer_version_than_expected_is_joined_under_both_names(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(6, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rate = 500_000
    transfer, _ = harness.transfers.join(cvd(5), NEW)
    async with asyncio.timeout(LIMIT):
        await transfer.ready()
        assert transfer.object_id == cvd(6)
        for version in (5, 6):
            assert harness.transfers.join(cvd(version), OLD) == (transfer, True)
        sources = [transfer.source() for _ in range(3)]
        assert set(await asyncio.gather(*map(read_all, sources))) == {body}
        for source in sources:
            source.close()
        await ended(harness)
    assert harness.origin.trace == "W"
    assert (stored(harness, cvd(5)), stored(harness, cvd(6))) == (None, body)


async def test_two_transfers_that_meet_at_one_version(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    """The one that was started for it goes on; the other says that the file has changed, at once."""
    harness.origin.put("daily.cvd", make_cvd(6, SIZE))
    harness.origin.rule("W", faults.Fault(held=True))
    expected, _ = harness.transfers.join(cvd(5), NEW)
    newer, _ = harness.transfers.join(cvd(6), NEW)
    both = asyncio.gather(expected.ready(), newer.ready(), return_exceptions=True)
    await until(lambda: harness.origin.trace == "W W")
    harness.origin.heal()
    outcomes = await both
    failures = [error.failure for error in outcomes if isinstance(error, TransferError)]
    assert failures in ([], [FailureKind.CHANGED])
    await until(lambda: stored(harness, cvd(6)) is not None)
    assert harness.origin.trace == "W W"


async def test_a_release_between_probe_and_body(gateway: ServiceHarness, make_cvd: MakeCvd) -> None:
    """Both clients get the newer version: the one that was told of the older, and the one that demands it."""
    await gateway.ask("/daily.cvd", Range="bytes=0-511")
    body = make_cvd(6)
    gateway.origin.put("daily.cvd", body)
    answers = await asyncio.gather(gateway.ask("/daily.cvd"), gateway.ask("/daily.cvd?version=6"))
    assert [(response.status, content == body) for response, content in answers] == [(200, True)] * 2


# Slow answers


async def test_what_is_here_already_may_come_again_slowly(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    """A whole file instead of its rest: for seconds nothing new arrives, and that is no stall."""
    body, here = make_cvd(5, SIZE), 500_000
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:here], await validators_of(harness, "/daily.cvd"))
    harness.origin.rule("R", faults.Fault(ignore_range=True, rate=200_000))
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    assert [seen.status for seen in harness.origin.requests()] == [200]


# Probes


async def test_further_clients_do_not_wait_for_a_probe_that_is_silent(
    heads: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    origin.rule("P", faults.silent(), times=1)
    async with asyncio.timeout(LIMIT):
        first = asyncio.create_task(heads.probe())
        await until(origin.requests)
        heads.clock.now += SILENCE
        assert set(await asyncio.gather(*(heads.probe() for _ in range(5)))) == {5}
        assert origin.trace == "P P"
        assert not first.done()
        origin.heal()
        with pytest.raises(OriginError):
            await first
    head = heads.heads.get("daily")
    assert head is not None
    assert head.header.version == 5


@pytest.mark.parametrize(
    ("older", "trace"), [(OLDER, "P P P"), (OLD, "P P")], ids=["two old versions", "one old version"]
)
async def test_trap_20_two_refused_clients_do_not_stop_a_third(
    heads: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd, older: Requester, trace: str
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    origin.rule("P", faults.status(403), times=len({OLD.version, older.version}))
    *refused, version = await asyncio.gather(
        *(heads.probe(requester=requester) for requester in (OLD, older, NEW)), return_exceptions=True
    )
    assert [error.failure for error in refused if isinstance(error, OriginError)] == [
        FailureKind.FORBIDDEN
    ] * 2
    assert version == 5
    assert origin.trace == trace


async def test_trap_20_two_refused_clients_do_not_stop_a_third_at_the_gateway(
    gateway: ServiceHarness,
) -> None:
    gateway.origin.rule("*", faults.status(403), times=2)
    agents = (OLD_AGENT, OLDER_AGENT, AGENT)
    answers = await asyncio.gather(*(gateway.ask("/daily.cvd", agent=agent) for agent in agents))
    assert [response.status for response, _ in answers] == [503, 503, 200]
    assert answers[-1][0].version == 5


# Versions far ahead


async def test_a_patch_far_ahead_of_fresh_dns_is_not_asked_for(gateway: ServiceHarness) -> None:
    response, _ = await gateway.ask("/daily-100.cdiff")
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert gateway.origin.requests() == []


async def test_without_dns_a_patch_far_ahead_is_asked_for(gateway: ServiceHarness) -> None:
    gateway.restart(versions={"dns": False})
    assert (await gateway.ask("/daily.cvd"))[0].version == 5
    await gateway.settle()
    response, body = await gateway.ask("/daily-100.cdiff")
    assert (response.status, body) == (200, forge_cdiff("daily", 100))
    assert gateway.dns.queries == []
    assert gateway.origin.count("D100") == 1


@pytest.mark.parametrize("known", [True, False])
async def test_a_patch_far_ahead_of_yesterdays_dns_is_asked_for(gateway: ServiceHarness, known: bool) -> None:
    if known:
        assert (await gateway.ask("/daily.cvd"))[0].version == 5
        await gateway.settle()
        gateway.clock.ahead += 86400
    gateway.dns.mode = Mode.SERVFAIL
    response, body = await gateway.ask("/daily-100.cdiff")
    assert (response.status, body) == (200, forge_cdiff("daily", 100))
    assert gateway.origin.count("D100") == 1


# An origin that names the time of the next try


async def test_retry_after_is_heeded_while_clients_read_along(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", faults.short(BREAK), times=1)
    harness.origin.rule("R", faults.status(503, retry_after="3600"))
    transfer = await ask(harness, cvd(5))
    assert not transfer.published
    assert harness.origin.trace == "W R"
    cooldown = harness.cooldowns.in_force()["/daily.cvd"]
    assert cooldown.failure is FailureKind.SERVER_ERROR
    assert cooldown.until > time.time() + 1800
    assert harness.notes["/daily.cvd"]["until"] == cooldown.until


async def test_an_error_of_the_server_without_retry_after_is_survived(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.short(BREAK), times=1)
    harness.origin.rule("R", faults.status(503), times=1)
    await ask(harness, cvd(5))
    assert stored(harness, cvd(5)) == body
    assert harness.origin.trace == "W R R"


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
    harness: TransferHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_module, "FLUSH_DELAY", 0.01)
    monkeypatch.setattr(stats_module, "FLUSH_DELAY_AFTER_ERROR", 3600.0)
    disk, stats = FullDisk(harness.store, monkeypatch, failures=1), Stats(harness.store, harness.writer)
    stats.count_request(Result.HIT, 10)
    await until(lambda: disk.tries)
    for _ in range(10):
        stats.count_request(Result.HIT, 10)
        await asyncio.sleep(0.02)
    await harness.writer.run(lambda: None)
    assert disk.tries == 1
    stats.flush()  # as at the end of the process
    await harness.writer.run(lambda: None)
    assert harness.store.counters() == {"requests": 11, "hits": 11, "bytes_served": 110}
    stats.count_request(Result.HIT, 10)  # and from then on, as soon as ever
    await until(lambda: harness.store.counters()["requests"] == 12)
    assert disk.tries == 3


async def test_a_failing_write_of_counters_is_tried_again(
    harness: TransferHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_module, "FLUSH_DELAY_AFTER_ERROR", 0.05)
    disk, stats = FullDisk(harness.store, monkeypatch, failures=2), Stats(harness.store, harness.writer)
    stats.count_upstream(1, 100)
    await until(harness.store.counters)
    assert harness.store.counters() == {"upstream_requests": 1, "upstream_bytes": 100}
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


@pytest.mark.usefixtures("patience")
async def test_a_hundred_patches_at_once_are_served(
    gateway: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge, versions = Gauge(monkeypatch), range(1, 101)
    gateway.dns.versions["daily"] = 100
    for version in versions:
        gateway.origin.put(f"daily-{version}.cdiff", forge_cdiff("daily", version))
    answers = await asyncio.gather(*(gateway.ask(f"/daily-{version}.cdiff") for version in versions))
    assert {response.status for response, _ in answers} == {200}
    assert [body for _, body in answers] == [forge_cdiff("daily", version) for version in versions]
    assert len(gateway.origin.requests()) == 100
    assert 1 < gauge.highest <= clamav_files.MAX_CONNECTIONS


async def test_transfers_that_wait_get_their_turn_when_others_fail(harness: TransferHarness) -> None:
    harness.origin.put("daily-9.cdiff", forge_cdiff("daily", 9))
    harness.origin.rule("*", faults.short(0))
    harness.origin.rule("D9", faults.Fault())
    resources = replace(harness.resources, slots=asyncio.Semaphore(1))
    transfers = [Transfer(cdiff(version), NEW, resources) for version in (7, 8, 9)]
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(transfer.run() for transfer in transfers), return_exceptions=True)
    assert [transfer.published for transfer in transfers] == [False, False, True]


# Threads and tasks


async def test_giving_up_on_a_transfer_leaves_no_task(harness: TransferHarness) -> None:
    harness.origin.rule("*", faults.silent())
    before = asyncio.all_tasks()
    task = asyncio.create_task(Transfer(cdiff(5), NEW, harness.resources).run())
    await until(harness.origin.requests)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("fault", [faults.silent(), faults.stall(5)], ids=["no head", "half a body"])
async def test_giving_up_on_a_transfer_ends_its_thread(harness: TransferHarness, fault: faults.Fault) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.origin.rule("*", fault)
    name = f"clamproxy-fetch-{cdiff(5).file_name}"

    def is_running() -> bool:
        return name in {thread.name for thread in threading.enumerate()}

    task = asyncio.create_task(Transfer(cdiff(5), NEW, harness.resources).run())
    await until(lambda: harness.origin.requests() and is_running())
    task.cancel()
    await until(lambda: not is_running(), limit=4)  # less than the five seconds of silence that are borne
    await asyncio.gather(task, return_exceptions=True)


async def test_giving_up_on_a_probe_ends_its_thread(heads: HeadsHarness, origin: OriginServer) -> None:
    origin.rule("*", faults.silent())
    probe = asyncio.create_task(heads.probe())
    await until(origin.requests)
    heads.heads.stop()
    await until(lambda: "clamproxy-probe-daily" not in {t.name for t in threading.enumerate()}, limit=4)
    await asyncio.gather(probe, return_exceptions=True)


# What the header of an arriving file says


@pytest.mark.parametrize(
    ("is_right", "status"), [pytest.param(True, 304, id="right"), pytest.param(False, 503, id="wrong")]
)
async def test_nothing_new_is_said_only_when_it_is_proven(
    gateway: ServiceHarness, make_cvd: MakeCvd, is_right: bool, status: int
) -> None:
    body = bytearray(make_cvd(5, SIZE))
    body[-1000] ^= not is_right
    gateway.origin.put("daily.cvd", bytes(body))
    response, content = await gateway.ask("/daily.cvd", If_Modified_Since=http_date(stime_of(5)))
    assert (response.status, content if is_right else b"") == (status, b"")
