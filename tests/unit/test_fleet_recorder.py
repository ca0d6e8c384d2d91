"""The table of clients: what is written, and for how long it is kept."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.settings import FleetSection as FleetSettings
from clamproxy.fleet import recorder
from clamproxy.fleet.reading import has_table
from clamproxy.fleet.table import RELEASES_KEPT, Release, Table, reading
from clamproxy.objects import Kind, Latest, ObjectId
from tests.harness.fleet import FleetHarness, agent, uuid
from tests.support.fixtures import MakeCvd
from tests.support.stored import DAY, stime_of, until

CVD = Latest("daily", Kind.CVD)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[FleetHarness]:
    harness = FleetHarness(tmp_path)
    yield harness
    harness.writer.close()


async def test_a_visit_gets_into_the_table(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.see(harness.visit())
    await harness.written()
    (machine,) = harness.machines()
    assert (machine.uuid, machine.address, machine.freshclam) == (uuid(1), "10.0.0.1", "1.4.6")
    assert (machine.os, machine.arch) == ("Linux", "x86_64")
    assert (machine.first_seen, machine.last_seen) == (harness.clock.now, harness.clock.now)
    assert harness.versions() == {uuid(1): 6}


async def test_the_table_is_written_by_itself(harness: FleetHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "FLUSH_DELAY", 0.01)
    fleet = harness.make()
    for version in (6, 7):
        fleet.see(harness.visit(version=version))
        await until(lambda version=version: harness.versions() == {uuid(1): version})  # type: ignore[misc]


async def test_what_waits_is_written_at_the_end(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.see(harness.visit())
    fleet.flush()
    harness.writer.close()
    assert harness.versions() == {uuid(1): 6}


async def test_what_is_known_grows(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.see(harness.visit(version=6))
    await harness.written()
    harness.clock.now += 60
    fleet.see(harness.visit(version=7, user_agent=agent(1, "1.5.3")))
    fleet.see(harness.visit(target=Latest("main", Kind.CVD), version=62))
    fleet.see(harness.visit(version=8, status=503))
    await harness.written()
    (machine,) = harness.machines()
    assert {name: one.version for name, one in machine.databases.items()} == {"daily": 7, "main": 62}
    assert (machine.freshclam, machine.last_seen - machine.first_seen) == ("1.4.6", 60)
    assert machine.last_error is not None
    assert machine.last_error.what == "daily-8.cdiff: status 503"


async def test_machines_are_told_apart_by_uuid_and_address(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.see(harness.visit(1))
    fleet.see(harness.visit(2))
    fleet.see(harness.visit(1, address="10.0.0.2", version=3))
    fleet.see(harness.visit(1, address="::ffff:10.0.0.1", version=7))
    await harness.written()
    assert {(one.uuid, one.address) for one in harness.machines()} == {
        (uuid(1), "10.0.0.1"),
        (uuid(2), "10.0.0.1"),
        (uuid(1), "10.0.0.2"),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"user_agent": None},
        {"user_agent": ""},
        {"user_agent": "curl/8.5.0"},
        {"user_agent": f"CVDUPDATE/1.2.0 ({uuid(1)})"},
        {"user_agent": agent(1) + " " * 5000},
        {"is_relayed": True},
        {"status": 407},
    ],
)
async def test_who_is_no_machine(harness: FleetHarness, fields: dict[str, Any]) -> None:
    harness.make().see(harness.visit(**fields))
    await harness.written()
    assert harness.machines() == []
    assert has_table(harness.directory)


async def test_hostile_texts(harness: FleetHarness) -> None:
    harness.make().see(harness.visit(address="\ud800'; DROP TABLE machines; --"))
    await harness.written()
    (machine,) = harness.machines()
    assert machine.address == "\\ud800'; DROP TABLE machines; --"


async def test_switched_off(harness: FleetHarness) -> None:
    harness.settings = FleetSettings(enabled=False)
    fleet = harness.make()
    fleet.see(harness.visit())
    fleet.note_advertised("daily", 6)
    fleet.flush()
    await harness.writer.run(lambda: None)
    assert list(harness.directory.iterdir()) == []
    assert harness.machines() == []


async def test_only_the_owner_may_read_the_table(harness: FleetHarness) -> None:
    harness.make().see(harness.visit())
    await harness.written()
    with bench_reader(harness):
        for path in harness.directory.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def bench_reader(harness: FleetHarness) -> Any:
    return reading(harness.directory)


# Build times


async def test_build_times_come_from_the_headers_of_answers(harness: FleetHarness, make_cvd: MakeCvd) -> None:
    fleet = harness.make()
    header = make_cvd(6)[:512]
    probe: dict[str, Any] = {"target": CVD, "range_probe": True}
    fleet.see(harness.visit(1, **probe, status=304, length=0, if_modified_since="garbage"))
    fleet.see(harness.visit(1, **probe, status=206, head=header))
    since = formatdate(stime_of(6), usegmt=True)
    await harness.written()
    fleet.see(harness.visit(2, **probe, status=304, length=0, if_modified_since=since))
    await harness.written()
    assert harness.versions() == {uuid(2): 6}


async def test_build_times_that_were_noted(harness: FleetHarness) -> None:
    fleet = harness.make()
    with Table(harness.directory).writing() as rows:
        for version, built in ((5, 5), (6, 6), (7, 7), (8, 7)):
            rows.note(Release("daily", version, built_at=stime_of(built)))
    for number, built in ((5, 5), (6, 6), (7, 7)):
        since = formatdate(stime_of(built), usegmt=True)
        fleet.see(harness.visit(number, target=CVD, status=503, if_modified_since=since))
    await harness.written()
    # Two versions of the same second can't be told apart.
    assert harness.versions() == {uuid(5): 5, uuid(6): 6}


@pytest.mark.parametrize("head", [b"", b"x" * 512, b"ClamAV-VDB:" + b"x" * 501])
async def test_answers_without_a_header(harness: FleetHarness, head: bytes) -> None:
    harness.make().see(harness.visit(target=CVD, head=head))
    await harness.written()
    assert harness.versions() == {uuid(1): 6}


async def test_releases_are_limited(tmp_path: Path) -> None:
    with Table(tmp_path).writing() as rows:
        for version in range(1, RELEASES_KEPT + 51):
            rows.note(Release("daily", version, first_seen=float(version)))
        rows.note(Release("main", 1, first_seen=1.0))
        rows.note(Release("daily", 1, first_seen=1.0))
    with reading(tmp_path) as found:
        assert found is not None
        daily = [one.version for one in found.releases() if one.database == "daily"]
    assert daily == list(range(51, RELEASES_KEPT + 51))


async def test_when_a_version_was_first_advertised(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.note_advertised("daily", 6)
    harness.clock.now += 60
    fleet.note_advertised("daily", 6)
    await harness.written()
    again = harness.make()
    with Table(harness.directory).writing() as table:
        table.note(Release("daily", 6, built_at=stime_of(6)))
    again.note_advertised("daily", 6)
    again.note_advertised("daily", 7)
    await harness.written()
    with reading(harness.directory) as rows:
        assert rows is not None
        assert list(rows.releases()) == [
            Release("daily", 6, harness.clock.now - 60, stime_of(6)),
            Release("daily", 7, harness.clock.now, None),
        ]


# Limits


async def test_the_longest_silent_makes_room(harness: FleetHarness) -> None:
    harness.settings = FleetSettings(max_clients=3)
    fleet = harness.make()
    for number in range(1, 5):
        fleet.see(harness.visit(number))
        harness.clock.now += 1
    await harness.written()
    assert set(harness.versions()) == {uuid(2), uuid(3), uuid(4)}
    fleet.see(harness.visit(2))
    harness.clock.now += 1
    fleet.see(harness.visit(5))
    await harness.written()
    assert set(harness.versions()) == {uuid(2), uuid(4), uuid(5)}


async def test_containers_do_not_flood_the_table(harness: FleetHarness) -> None:
    harness.settings = FleetSettings(max_clients=50)
    fleet = harness.make()
    for number in range(500):
        fleet.see(harness.visit(number))
        if number % 100 == 0:
            await harness.written()
    await harness.written()
    assert len(harness.machines()) == 50


async def test_one_address_does_not_push_others_out(harness: FleetHarness) -> None:
    """With made-up UUIDs; it keeps its share of the table, and what is free."""
    harness.settings = FleetSettings(max_clients=20)
    fleet = harness.make()
    for number in range(10):
        fleet.see(harness.visit(number, address=f"10.0.0.{number}"))
        harness.clock.now += 1
    for number in range(100, 150):
        fleet.see(harness.visit(number, address="10.0.1.1"))
        harness.clock.now += 1
    await harness.written()
    assert set(harness.versions()) == {uuid(number) for number in (*range(10), *range(140, 150))}
    for number in range(10, 19):
        fleet.see(harness.visit(number, address=f"10.0.0.{number}"))
        harness.clock.now += 1
    await harness.written()
    assert set(harness.versions()) == {uuid(number) for number in (*range(1, 19), 148, 149)}


async def test_the_silent_are_forgotten_at_last(harness: FleetHarness) -> None:
    harness.settings = FleetSettings(keep=30 * DAY)
    fleet = harness.make()
    fleet.see(harness.visit(1))
    await harness.written()
    for _ in range(31 * 24):  # a machine that asks again and again
        harness.clock.now += 3600
        fleet.see(harness.visit(2))
    await harness.written()
    assert set(harness.versions()) == {uuid(2)}


async def test_the_silent_are_forgotten_although_nobody_asks(harness: FleetHarness) -> None:
    harness.settings = FleetSettings(keep=30 * DAY)
    fleet = harness.make()
    fleet.see(harness.visit(1))
    await harness.written()
    harness.clock.now += 31 * DAY
    fleet.note_advertised("daily", 11)
    await harness.written()
    assert harness.machines() == []


async def test_after_a_start_nobody_is_silent(harness: FleetHarness) -> None:
    """All gateways may have been off for months, or the clock may be wrong."""
    harness.settings = FleetSettings(keep=30 * DAY)
    harness.make().see(harness.visit(1))
    await harness.written()
    harness.clock.now += 31 * DAY
    later = harness.make()
    for wait in (0, 500, 200):
        assert len(harness.machines()) == (1 if wait == 0 else 2)
        harness.clock.now += wait
        later.see(harness.visit(2))
        await harness.written()
    assert set(harness.versions()) == {uuid(2)}


async def test_a_clock_that_is_fast_for_a_moment_hides_no_machine(harness: FleetHarness) -> None:
    """The machines that visit at that moment are no reason to take all others for silent."""
    fleet = harness.make()
    for number in (1, 2, 3, 4):
        fleet.see(harness.visit(number))
    await harness.written()
    harness.clock.now += 7200
    right, harness.clock_is_fast = harness.clock.now, 3650 * DAY
    harness.clock.now += harness.clock_is_fast
    for number in (2, 3):
        fleet.see(harness.visit(number))
        await harness.written()
        harness.clock.now += 60
    with Table(harness.directory).writing() as rows:
        rows.forget(uuid(3), harness.clock.now)
    harness.clock.now, harness.clock_is_fast = right + 3600, 0
    for number in (2, 3):
        fleet.see(harness.visit(number))
        await harness.written()
    assert set(harness.versions()) == {uuid(1), uuid(2), uuid(3), uuid(4)}
    assert {one.last_seen for one in harness.machines()} == {right - 7200, right + 3600}


async def test_a_clock_that_was_wrong(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.see(harness.visit(1, at=harness.clock.now + 999))
    await harness.written()
    (machine,) = harness.machines()
    assert (machine.first_seen, machine.last_seen) == (harness.clock.now, harness.clock.now)


async def test_memory_is_limited(harness: FleetHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written, the oldest visits are forgotten."""
    monkeypatch.setattr(recorder, "MOST_PENDING", 10)
    harness.path.mkdir()
    fleet = harness.make()
    for number in range(25):
        fleet.see(harness.visit(number))
        if number % 5 == 0:
            await harness.written()
    harness.path.rmdir()
    await harness.written()
    assert set(harness.versions()) == {uuid(number) for number in range(15, 25)}


async def test_what_could_not_be_written_is_tried_again(
    harness: FleetHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself: on a small network, nobody may visit for hours after the disk has room again."""
    monkeypatch.setattr(recorder, "FLUSH_DELAY", 0.01)
    monkeypatch.setattr(recorder, "FLUSH_DELAY_AFTER_ERROR", 0.01)
    harness.path.mkdir()
    fleet = harness.make()
    fleet.see(harness.visit(1))
    fleet.note_built("daily", 7, stime_of(7))
    await harness.written()
    harness.path.rmdir()
    await until(lambda: harness.versions() == {uuid(1): 6})
    with reading(harness.directory) as rows:
        assert rows is not None
        assert [release.version for release in rows.releases()] == [7]


async def test_a_fleet_that_wakes_at_once_is_written_at_once(
    harness: FleetHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More come by before the usual delay is over than may wait."""
    monkeypatch.setattr(recorder, "FLUSH_DELAY", 3600)
    monkeypatch.setattr(recorder, "ENOUGH", 10)
    monkeypatch.setattr(recorder, "MOST_PENDING", 15)
    fleet = harness.make()
    for number in range(50):
        fleet.see(harness.visit(number))
        if number % 10 == 9:
            await harness.writer.run(lambda: None)
    assert set(harness.versions()) == {uuid(number) for number in range(50)}


async def test_a_busy_writer_takes_all_that_waits(
    harness: FleetHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes a large file, say: what waits meanwhile stays in the order it came, and within the limit."""
    monkeypatch.setattr(recorder, "ENOUGH", 2)
    monkeypatch.setattr(recorder, "MOST_PENDING", 20)
    fleet = harness.make()
    free = threading.Event()
    harness.writer.submit(free.wait)
    for number in range(15):
        fleet.see(harness.visit(number, version=6))
        fleet.see(harness.visit(number, version=7))
    free.set()
    await harness.written()
    assert harness.versions() == {uuid(number): 7 for number in range(5, 15)}


async def test_several_visits_of_a_machine_are_one_row(harness: FleetHarness) -> None:
    fleet = harness.make()
    for version, signed in ((6, Kind.CDIFF), (6, Kind.CDIFF_SIGN), (7, Kind.CDIFF), (7, Kind.CDIFF_SIGN)):
        fleet.see(harness.visit(1, target=ObjectId("daily", version, signed)))
        harness.clock.now += 1
    fleet.see(
        harness.visit(1, target=ObjectId("daily", 8, Kind.CDIFF), status=503, user_agent=agent(1, "1.5.3"))
    )
    await harness.written()
    (machine,) = harness.machines()
    assert (machine.last_seen - machine.first_seen, machine.freshclam) == (4, "1.5.3")
    assert machine.databases["daily"].version == 7
    assert machine.last_error is not None


# Who is gone


async def test_a_machine_is_forgotten_at_all_its_addresses(harness: FleetHarness) -> None:
    fleet = harness.make()
    for number, address in ((1, "10.0.0.1"), (1, "10.0.0.2"), (2, "10.0.0.1")):
        fleet.see(harness.visit(number, address=address))
    await harness.written()
    with Table(harness.directory).writing() as rows:
        assert rows.forget(uuid(1), harness.clock.now) == 2
        assert rows.forget(uuid(9), harness.clock.now) == 0
    assert {one.uuid for one in harness.machines()} == {uuid(2)}


async def test_what_waits_in_memory_does_not_bring_a_forgotten_machine_back(harness: FleetHarness) -> None:
    """Another process forgets it; only a visit after that counts."""
    fleet = harness.make()
    fleet.see(harness.visit(1, version=6))
    await harness.written()
    harness.clock.now += 1
    fleet.see(harness.visit(1, version=7))
    fleet.see(harness.visit(1, address="10.0.0.9"))
    fleet.see(harness.visit(2))
    with Table(harness.directory).writing() as rows:
        rows.forget(uuid(1), harness.clock.now)
    await harness.written()
    assert set(harness.versions()) == {uuid(2)}
    harness.clock.now += 1
    fleet.see(harness.visit(1, target=CVD, if_modified_since="garbage", status=304, version=8))
    await harness.written()
    (machine,) = (one for one in harness.machines() if one.uuid == uuid(1))
    # It is a new one: nothing of what was known has come back with it.
    assert (machine.first_seen, dict(machine.databases)) == (harness.clock.now, {})


async def test_who_was_forgotten_is_not_remembered_for_ever(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.see(harness.visit(1))
    await harness.written()
    with Table(harness.directory).writing() as rows:
        rows.forget(uuid(1), harness.clock.now)
    harness.clock.now += 2 * DAY
    fleet.see(harness.visit(2))
    await harness.written()
    with Table(harness.directory).writing() as rows:
        assert rows.forgotten(harness.clock.now) == {}


async def test_a_table_of_an_earlier_version(harness: FleetHarness) -> None:
    """It had no memory of who was forgotten; that is added, and nothing is lost."""
    fleet = harness.make()
    fleet.see(harness.visit(1))
    fleet.see(harness.visit(2))
    await harness.written()
    with closing(sqlite3.connect(harness.path)) as connection:
        connection.execute("DROP TABLE forgotten")
    assert len(harness.machines()) == 2
    with Table(harness.directory).writing() as rows:
        rows.forget(uuid(1), harness.clock.now)
    await harness.written()
    assert set(harness.versions()) == {uuid(2)}


# Proven build times


async def test_what_is_proven_replaces_what_a_header_claimed(harness: FleetHarness) -> None:
    fleet = harness.make()
    with Table(harness.directory).writing() as rows:
        rows.note(Release("daily", 7, first_seen=5.0, built_at=1))
    fleet.note_built("daily", 7, stime_of(7))
    fleet.note_built("daily", 8, stime_of(8))
    fleet.note_built("daily", 9, 0)  # an ancient file
    await harness.written()
    with Table(harness.directory).writing() as rows:
        rows.note(Release("daily", 7, built_at=2))
        assert list(rows.releases()) == [
            Release("daily", 7, 5.0, stime_of(7)),
            Release("daily", 8, None, stime_of(8)),
        ]


async def test_build_times_are_noted_once_the_disk_takes_them(harness: FleetHarness) -> None:
    harness.path.mkdir()
    fleet = harness.make()
    fleet.note_built("daily", 7, stime_of(7))
    await harness.written()
    harness.path.rmdir()
    await harness.written()
    with reading(harness.directory) as rows:
        assert rows is not None
        assert list(rows.releases()) == [Release("daily", 7, None, stime_of(7))]


async def test_what_several_processes_write_is_one_machine(harness: FleetHarness) -> None:
    """Its visits may be written in another order than they happened."""
    harness.make().see(harness.visit(version=5))
    await harness.written()
    visits = []
    for version, status in ((6, 503), (6, 200), (7, 200), (8, 404)):
        harness.clock.now += 0.1
        visits.append(harness.visit(version=version, status=status))
    for place in (2, 0, 3, 1):
        fleet = harness.make()
        fleet.see(visits[place])
        fleet.flush()
    await harness.written()
    (machine,) = harness.machines()
    assert {name: one.version for name, one in machine.databases.items()} == {"daily": 7}
    assert machine.last_seen == visits[3].at
    assert machine.last_error is not None
    assert machine.last_error.what == "daily-8.cdiff: status 404"
