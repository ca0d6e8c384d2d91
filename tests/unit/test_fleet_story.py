"""One machine's story: what is remembered, and for how long."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clamproxy.config.labels import parse_labels
from clamproxy.config.settings import FleetSection
from clamproxy.fleet.biography import Biography, find_machines, read_biography
from clamproxy.fleet.reading import read_fleet
from clamproxy.fleet.stories import LONGEST_CHANGES, LONGEST_REQUESTS
from clamproxy.fleet.table import Release, Table, reading
from clamproxy.objects import Kind, ObjectId
from tests.harness.fleet import ADVERTISED, FleetHarness, agent, uuid
from tests.support.stored import DAY


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[FleetHarness]:
    harness = FleetHarness(tmp_path)
    yield harness
    harness.writer.close()


def story_of(harness: FleetHarness, number: int = 1) -> Biography:
    found = read_biography(harness.directory, uuid(number), ADVERTISED, harness.clock.now)
    assert found is not None
    return found


def versions_of(story: Biography) -> list[tuple[int | None, bool]]:
    return [(step.version, step.fetched) for step in reversed(story.steps)]


async def test_versions_over_time_and_how_long_each_took(harness: FleetHarness) -> None:
    fleet = harness.make()
    begun = harness.clock.now
    for version in (6, 7, 8):
        with Table(harness.directory).writing() as rows:
            rows.note(Release("daily", version, built_at=int(harness.clock.now) - 600))
        fleet.see(harness.visit(version=version))
        await harness.written()
        harness.clock.now += DAY
    story = story_of(harness)
    assert versions_of(story) == [(5, False), (6, True), (7, True), (8, True)]
    newest = story.steps[0]
    assert (newest.at, newest.came_out, newest.took) == (begun + 2 * DAY, begun + 2 * DAY - 600, 600)
    assert (story.request_count, story.since) == (3, begun)
    assert [one.what for _, one in story.requests] == [f"daily-{n}.cdiff" for n in (8, 7, 6)]


async def test_what_was_never_installed_is_left_out(harness: FleetHarness) -> None:
    fleet = harness.make()
    for version in (6, 7, 7, 7, 8):  # it asks for 7 again: its disk was full
        fleet.see(harness.visit(version=version))
        harness.clock.now += 60
        await harness.written()
    story = story_of(harness)
    assert versions_of(story) == [(5, False), (6, True), (7, True), (8, True)]
    (error,) = story.errors
    assert (error.what, error.times) == ("asked for daily-7.cdiff again", 2)


async def test_a_disk_that_was_restored_is_told(harness: FleetHarness) -> None:
    fleet = harness.make()
    for version in (6, 7, 8, 7):
        fleet.see(harness.visit(version=version))
        harness.clock.now += DAY
        await harness.written()
    assert versions_of(story_of(harness))[-2:] == [(6, False), (7, True)]


async def test_the_last_error_of_each_kind(harness: FleetHarness) -> None:
    fleet = harness.make()
    for fields in (
        {"status": 503, "version": 6},
        {"status": 502, "version": 6},
        {"status": 503, "version": 7},
        {"complete": False, "version": 8},
    ):
        fleet.see(harness.visit(**fields))
        harness.clock.now += 10
    await harness.written()
    assert [(one.what, one.times) for one in story_of(harness).errors] == [
        ("daily-8.cdiff: interrupted after 1,000 bytes", 1),
        ("daily-7.cdiff: status 503", 2),
        ("daily-6.cdiff: status 502", 1),
    ]


async def test_another_freshclam_and_another_address(harness: FleetHarness) -> None:
    fleet = harness.make()
    for version, address, program in (
        (6, "10.0.0.1", "1.4.5"),
        (7, "10.0.0.2", "1.4.5"),
        (8, "10.0.0.2", "1.4.6"),
    ):
        fleet.see(harness.visit(version=version, address=address, user_agent=agent(1, program)))
        harness.clock.now += 10
        await harness.written()
    story = story_of(harness)
    assert [program for program, _ in story.programs] == ["1.4.6", "1.4.5"]
    assert [machine.address for machine in story.machines] == ["10.0.0.2", "10.0.0.1"]
    assert [step.address for step in story.steps if step.fetched] == ["10.0.0.2", "10.0.0.2", "10.0.0.1"]


async def test_it_stays_small(harness: FleetHarness) -> None:
    fleet = harness.make()
    for version in range(1000, 1200):
        fleet.see(harness.visit(version=version))
        await harness.written()
    with closing(sqlite3.connect(harness.path)) as connection:
        (lengths,) = connection.execute("SELECT length(requests), length(changes) FROM stories").fetchall()
    assert lengths == (LONGEST_REQUESTS, LONGEST_CHANGES)
    story = story_of(harness)
    assert len(story.steps) > 30
    assert len(story.requests) >= 9
    assert (story.steps[0].version, story.request_count) == (1199, 200)


async def test_it_ends_with_the_machine(harness: FleetHarness) -> None:
    harness.settings = FleetSection(keep=3600.0, max_clients=2)
    fleet = harness.make()

    async def seen(*numbers: int) -> None:
        for number in numbers:
            fleet.see(harness.visit(number, status=503))
            harness.clock.now += 1
        await harness.written()

    def remembered() -> set[str]:
        with closing(sqlite3.connect(harness.path)) as connection:
            query = "SELECT uuid FROM stories UNION SELECT uuid FROM errors"
            return {one for (one,) in connection.execute(query)}

    await seen(1, 2, 3)
    assert remembered() == {uuid(2), uuid(3)}
    with Table(harness.directory).writing() as rows:
        rows.forget(uuid(2), harness.clock.now)
    assert remembered() == {uuid(3)}
    harness.clock.now += 7200
    await seen(4)
    assert remembered() == {uuid(4)}
    with closing(sqlite3.connect(harness.path)) as connection, connection:
        connection.execute("DELETE FROM machines")  # an older version of clamproxy does just this
    harness.make()
    await harness.written()
    assert remembered() == set()


async def test_clones_are_found_as_they_fetch(harness: FleetHarness) -> None:
    fleet = harness.make()
    for version in (6, 7, 8):
        for address in ("10.0.0.1", "10.0.0.2"):
            fleet.see(harness.visit(1, version, address=address))
            fleet.see(harness.visit(2, version, address="10.0.0.3"))
            harness.clock.now += 3600
            await harness.written()
        harness.clock.now += DAY
    assert {(one.uuid, one.cloned) for one in harness.machines()} == {(uuid(1), True), (uuid(2), False)}
    harness.clock.now += 11 * DAY
    assert not any(one.cloned for one in harness.machines())


async def test_a_file_of_an_earlier_version(harness: FleetHarness) -> None:
    """It can be read before anything is added to it, and by the earlier version after that."""
    fleet = harness.make()
    fleet.see(harness.visit(1))
    await harness.written()
    with closing(sqlite3.connect(harness.path)) as connection:
        for table in ("stories", "errors", "clones", "names", "shares"):
            connection.execute(f"DROP TABLE {table}")
    assert len(harness.machines()) == 1
    assert story_of(harness).steps == []
    with reading(harness.directory) as rows:
        assert rows is not None
        assert rows.shares.until(1) == []
    fleet.see(harness.visit(1, 7))
    await harness.written()
    assert versions_of(story_of(harness))[-1] == (7, True)
    with closing(sqlite3.connect(harness.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


async def test_a_machine_is_found_by_uuid_address_and_name(harness: FleetHarness) -> None:
    fleet = harness.make()
    for number, address in ((1, "10.0.0.1"), (2, "10.0.0.2"), (3, "10.0.0.2")):
        fleet.see(harness.visit(number, address=address))
    await harness.written()
    labels = parse_labels(f"10.0.0.1 = web.example.net\n{uuid(2)} = web.example.org\n{uuid(3)} = db\n", "x")
    machines = read_fleet(harness.directory, ADVERTISED, harness.clock.now, labels)
    for text, numbers in {
        uuid(1).upper(): {1},
        "10.0.0.1": {1},
        "::ffff:10.0.0.1": {1},
        "10.0.0.2": {2, 3},
        "WEB.example.net": {1},
        "web": {1, 2},
        "db": {3},
        "nothing": set(),
        "": set(),
    }.items():
        assert set(find_machines(machines, text)) == {uuid(number) for number in numbers}, text


async def test_a_head_request_changes_no_version(harness: FleetHarness) -> None:
    fleet = harness.make()
    fleet.see(harness.visit(1, method="HEAD", target=ObjectId("daily", 9, Kind.CDIFF)))
    await harness.written()
    story = story_of(harness)
    assert (story.steps, story.request_count) == ([], 1)
