"""Advertised versions: TXT records (docs/protocol.md 3), and when DNS is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from clamproxy.notes import UNKEPT
from clamproxy.objects import MAX_VERSION
from clamproxy.origin import resolver as resolver_module
from clamproxy.origin.resolver import DnsResolver
from clamproxy.origin.versions import Advertised, AdvertisedVersions
from tests.support.clock import ClockAhead
from tests.support.dns_server import PRIMARY, FakeDns, Mode
from tests.support.notes import notes_in

REFRESH = 300.0
RECORD = "1.4.3:62:27780:1759500000:1:90:49192:339"


# Look-ups


class VersionsHarness:
    """Look-ups at a fake DNS server, and what they save."""

    def __init__(self, dns: FakeDns, clock: ClockAhead) -> None:
        self.dns = dns
        self.clock = clock
        self.notes: dict[str, Any] = {}
        self.records: dict[str, Any] = {}

    def make(self) -> AdvertisedVersions:
        resolver = DnsResolver([(self.dns.address, self.dns.port)])
        return AdvertisedVersions(
            PRIMARY, resolver, REFRESH, notes_in(self.notes), notes_in(self.records), clock=self.clock
        )


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[VersionsHarness]:
    monkeypatch.setattr(resolver_module, "TIMEOUT", 0.2)
    monkeypatch.setattr(resolver_module, "LIFETIME", 0.4)
    with FakeDns() as dns:
        yield VersionsHarness(dns, ClockAhead())


async def test_one_query_for_many_callers_and_databases(harness: VersionsHarness) -> None:
    versions = harness.make()
    answers = await asyncio.gather(*(versions.get(name) for name in ["daily", "main", "bytecode"] * 10))
    assert answers == [Advertised(27800, True), Advertised(62, True), Advertised(339, True)] * 10
    assert harness.dns.queries == [PRIMARY]


async def test_an_answer_counts_for_a_while(harness: VersionsHarness) -> None:
    versions = harness.make()
    await versions.get("daily")
    harness.dns.versions["daily"] = 27801
    known = versions.last_known("daily")
    assert known is not None
    assert known.version == 27800
    harness.clock.ahead = REFRESH
    assert versions.last_known("daily") == Advertised(27800, False)
    assert await versions.get("daily") == Advertised(27801, True)
    assert harness.dns.queries == [PRIMARY] * 2


async def test_a_database_with_a_record_of_its_own(harness: VersionsHarness) -> None:
    harness.dns.versions["test"] = 6
    assert await harness.make().get("test") == Advertised(6, True)
    assert harness.dns.queries == ["test.cvd.clamav.net"]


@pytest.mark.parametrize(
    "mode", [Mode.NXDOMAIN, Mode.SERVFAIL, Mode.SILENT, Mode.GARBAGE, Mode.SHORT, Mode.STALE]
)
async def test_without_a_good_answer_there_is_no_version(
    harness: VersionsHarness, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    harness.dns.mode = mode
    versions = harness.make()
    assert await versions.get("daily") is None
    asked = len(harness.dns.queries)
    assert await versions.get("daily") is None  # DNS is left alone for a while
    assert len(harness.dns.queries) == asked
    assert "No advertised versions" in caplog.text
    assert harness.notes == {}


async def test_the_last_good_answer_stays(harness: VersionsHarness) -> None:
    versions = harness.make()
    await versions.get("daily")
    harness.clock.ahead = REFRESH
    harness.dns.mode = Mode.SERVFAIL
    assert await versions.get("daily") == Advertised(27800, False)
    harness.clock.ahead += 60  # DNS is left alone for a while after a failure
    harness.dns.mode = Mode.RIGHT
    assert await versions.get("daily") == Advertised(27800, True)


async def test_a_name_server_that_is_gone(harness: VersionsHarness) -> None:
    versions = harness.make()
    harness.dns.close()
    assert await versions.get("daily") is None


async def test_a_restart_forgets_nothing(harness: VersionsHarness) -> None:
    await harness.make().get("daily")
    again = harness.make()
    assert again.last_known("daily") == Advertised(27800, True)
    assert await again.get("bytecode") == Advertised(339, True)
    assert harness.dns.queries == [PRIMARY]
    harness.notes |= {
        name: [version, learnt_at - 3600] for name, (version, learnt_at) in harness.notes.items()
    }
    aged = harness.make()
    assert aged.last_known("daily") == Advertised(27800, False)


async def test_what_dns_once_said_is_not_believed_for_ever(harness: VersionsHarness) -> None:
    harness.dns.versions["daily"] = MAX_VERSION
    versions = harness.make()
    assert await versions.get("daily") == Advertised(MAX_VERSION, True)
    harness.dns.mode = Mode.SERVFAIL
    harness.clock.ahead += 11 * 3600
    assert await versions.get("daily") == Advertised(MAX_VERSION, False)
    harness.clock.ahead += 2 * 3600
    assert await versions.get("daily") is None
    again = harness.make()
    assert again.last_known("daily") is None


async def test_dns_that_goes_back_counts_at_once(harness: VersionsHarness) -> None:
    versions = harness.make()
    for version in (27801, MAX_VERSION, 27802, 1, 27803):
        harness.dns.versions["daily"] = version
        harness.clock.ahead += REFRESH
        assert await versions.get("daily") == Advertised(version, True)


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], [5], {}, ["5", 1.0], [5, 1.0, 2], [0, 1.0], [2**31, 1.0]]
)
async def test_a_note_that_makes_no_sense_is_ignored(harness: VersionsHarness, value: Any) -> None:
    harness.notes["daily"] = value
    versions = harness.make()
    assert versions.last_known("daily") is None


@pytest.mark.parametrize("learnt_at", ["x", None, [1]])
async def test_a_note_with_a_time_that_makes_no_sense_is_ignored(
    harness: VersionsHarness, learnt_at: Any
) -> None:
    harness.notes["daily"] = [5, learnt_at]
    versions = harness.make()
    assert versions.last_known("daily") is None


async def test_an_answer_noted_by_a_clock_that_was_ahead_is_not_fresh(harness: VersionsHarness) -> None:
    harness.notes["daily"] = [27000, time.time() + 30 * 86400]
    versions = harness.make()
    assert await versions.get("daily") == Advertised(27800, True)


async def test_a_caller_that_leaves_ends_nobody_elses_look_up(harness: VersionsHarness) -> None:
    versions = harness.make()
    first, second = (asyncio.create_task(versions.get("daily")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == Advertised(27800, True)
    assert harness.dns.queries == [PRIMARY]


async def test_stopping_ends_a_look_up(harness: VersionsHarness) -> None:
    harness.dns.mode = Mode.SILENT
    versions = harness.make()
    caller = asyncio.create_task(versions.get("daily"))
    await asyncio.sleep(0.05)
    versions.stop()
    assert await caller is None


# The primary record itself


async def test_the_last_good_record_is_kept(harness: VersionsHarness) -> None:
    harness.dns.versions["test"] = 6
    versions = harness.make()
    assert versions.last_record is None
    await versions.get("test")
    assert (versions.last_record, harness.records) == (None, {})
    await versions.get("daily")
    record = versions.last_record
    assert record is not None
    assert record.startswith("1.4.6:62:27800:")
    assert harness.records == {PRIMARY: record}
    harness.clock.ahead = REFRESH
    harness.dns.mode = Mode.GARBAGE
    await versions.get("daily")
    assert versions.last_record == record
    again = harness.make()
    assert again.last_record == record


@pytest.mark.parametrize("records", [{}, {"other.example.org": RECORD}, {PRIMARY: 5}, {PRIMARY: None}])
async def test_a_record_of_another_domain_or_none(harness: VersionsHarness, records: dict[str, Any]) -> None:
    harness.records |= records
    versions = harness.make()
    assert versions.last_record is None


async def test_without_a_resolver_nothing_is_asked(harness: VersionsHarness) -> None:
    versions = AdvertisedVersions(PRIMARY, None, REFRESH, UNKEPT, UNKEPT)
    assert await versions.get("daily") is None
    versions = AdvertisedVersions(
        PRIMARY, None, REFRESH, notes_in({"daily": [5, time.time() - REFRESH]}), UNKEPT
    )
    assert await versions.get("daily") == Advertised(5, False)
    versions.stop()
    assert harness.dns.queries == []
