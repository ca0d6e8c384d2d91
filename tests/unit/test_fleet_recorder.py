"""The table of clients: what is written, kept, shared and survived."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.settings import Fleet as FleetSettings
from clamproxy.fleet import Fleet, Machine, Visit, read_fleet, recorder
from clamproxy.fleet.reading import UnreadableFleetError, has_table
from clamproxy.fleet.table import FILE_NAME, RELEASES_KEPT, Release, Table, reading
from clamproxy.objects import Kind, Latest, ObjectId
from clamproxy.threads import Writer
from tests.unit.conftest import DAY, MakeCvd, stime_of, until
from tests.unit.test_cooldown import Clock

ADVERTISED = {"daily": 10}
CVD = Latest("daily", Kind.CVD)


def uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def agent(number: int, version: str = "1.4.6") -> str:
    return f"ClamAV/{version} (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {uuid(number)})"


@dataclass
class Bench:
    """A table and who writes it."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    settings: FleetSettings = field(default_factory=FleetSettings)
    writer: Writer = field(default_factory=Writer)
    made: list[Fleet] = field(default_factory=list)

    def make(self) -> Fleet:
        self.made.append(Fleet(self.directory, self.settings, self.writer, self.clock))
        return self.made[-1]

    def visit(self, number: int = 1, version: int = 6, **fields: Any) -> Visit:
        """A machine fetches a patch."""
        usual = {
            "address": "10.0.0.1",
            "user_agent": agent(number),
            "target": ObjectId("daily", version, Kind.CDIFF),
            "range_probe": False,
            "if_modified_since": None,
            "status": 200,
            "version": version,
            "length": 1000,
            "complete": True,
            "at": self.clock.now,
        }
        return Visit(**{**usual, **fields})

    async def written(self, *fleets: Fleet) -> None:
        for fleet in fleets or self.made:
            fleet.flush()
        await self.writer.run(lambda: None)

    def machines(self) -> list[Machine]:
        return read_fleet(self.directory, ADVERTISED, self.clock.now)

    def versions(self) -> dict[str, int]:
        """The version of daily on each machine."""
        return {one.uuid: one.databases["daily"].version for one in self.machines() if one.databases}

    @property
    def path(self) -> Path:
        return self.directory / FILE_NAME

    def damage(self, position: int = 0, length: int = 4096) -> None:
        """Overwrite a part of the file, as a bad disk does."""
        with reading(self.directory):
            pass  # leaves what is in the -wal to who closes last
        with sqlite3.connect(self.path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        with self.path.open("r+b") as file:
            file.seek(position)
            file.write(random.Random(1).randbytes(length))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.writer.close()


async def test_a_visit_gets_into_the_table(bench: Bench) -> None:
    fleet = bench.make()
    fleet.see(bench.visit())
    await bench.written()
    (machine,) = bench.machines()
    assert (machine.uuid, machine.address, machine.freshclam) == (uuid(1), "10.0.0.1", "1.4.6")
    assert (machine.os, machine.arch) == ("Linux", "x86_64")
    assert (machine.first_seen, machine.last_seen) == (bench.clock.now, bench.clock.now)
    assert bench.versions() == {uuid(1): 6}


async def test_it_is_written_by_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "FLUSH_DELAY", 0.01)
    fleet = bench.make()
    for version in (6, 7):
        fleet.see(bench.visit(version=version))
        await until(lambda version=version: bench.versions() == {uuid(1): version})  # type: ignore[misc]


async def test_the_rest_is_written_at_the_end(bench: Bench) -> None:
    fleet = bench.make()
    fleet.see(bench.visit())
    fleet.close()
    bench.writer.close()
    assert bench.versions() == {uuid(1): 6}


async def test_what_is_known_grows(bench: Bench) -> None:
    fleet = bench.make()
    fleet.see(bench.visit(version=6))
    await bench.written()
    bench.clock.now += 60
    fleet.see(bench.visit(version=7, user_agent=agent(1, "1.5.3")))
    fleet.see(bench.visit(target=Latest("main", Kind.CVD), version=62))
    fleet.see(bench.visit(version=8, status=503))
    await bench.written()
    (machine,) = bench.machines()
    assert {name: one.version for name, one in machine.databases.items()} == {"daily": 7, "main": 62}
    assert (machine.freshclam, machine.last_seen - machine.first_seen) == ("1.4.6", 60)
    assert machine.last_error is not None
    assert machine.last_error.what == "daily-8.cdiff: status 503"


async def test_machines_are_told_apart_by_uuid_and_address(bench: Bench) -> None:
    fleet = bench.make()
    fleet.see(bench.visit(1))
    fleet.see(bench.visit(2))
    fleet.see(bench.visit(1, address="10.0.0.2", version=3))
    fleet.see(bench.visit(1, address="::ffff:10.0.0.1", version=7))
    await bench.written()
    assert {(one.uuid, one.address) for one in bench.machines()} == {
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
async def test_who_is_no_machine(bench: Bench, fields: dict[str, Any]) -> None:
    bench.make().see(bench.visit(**fields))
    await bench.written()
    assert bench.machines() == []
    assert has_table(bench.directory)


async def test_hostile_texts(bench: Bench) -> None:
    bench.make().see(bench.visit(address="\ud800'; DROP TABLE machines; --"))
    await bench.written()
    (machine,) = bench.machines()
    assert machine.address == "\\ud800'; DROP TABLE machines; --"


async def test_switched_off(bench: Bench) -> None:
    bench.settings = FleetSettings(enabled=False)
    fleet = bench.make()
    fleet.see(bench.visit())
    fleet.note_advertised("daily", 6)
    fleet.note_built("daily", 6, 1)
    fleet.close()
    await bench.writer.run(lambda: None)
    assert list(bench.directory.iterdir()) == []
    assert bench.machines() == []


async def test_only_the_owner_may_read_it(bench: Bench) -> None:
    bench.make().see(bench.visit())
    await bench.written()
    with bench_reader(bench):
        for path in bench.directory.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def bench_reader(bench: Bench) -> Any:
    return reading(bench.directory)


# Build times


async def test_build_times_come_from_the_headers_of_answers(bench: Bench, make_cvd: MakeCvd) -> None:
    fleet = bench.make()
    header = make_cvd(6)[:512]
    probe: dict[str, Any] = {"target": CVD, "range_probe": True}
    fleet.see(bench.visit(1, **probe, status=304, length=0, if_modified_since="garbage"))
    fleet.see(bench.visit(1, **probe, status=206, head=header))
    since = formatdate(stime_of(6), usegmt=True)
    await bench.written()
    fleet.see(bench.visit(2, **probe, status=304, length=0, if_modified_since=since))
    await bench.written()
    assert bench.versions() == {uuid(2): 6}


async def test_build_times_that_were_noted(bench: Bench) -> None:
    fleet = bench.make()
    fleet.note_built("daily", 5, stime_of(5))
    fleet.note_built("daily", 6, stime_of(6))
    fleet.note_built("daily", 7, stime_of(7))
    fleet.note_built("daily", 8, stime_of(7))
    for number, built in ((5, 5), (6, 6), (7, 7)):
        since = formatdate(stime_of(built), usegmt=True)
        fleet.see(bench.visit(number, target=CVD, status=503, if_modified_since=since))
    await bench.written()
    # Two versions of the same second can't be told apart.
    assert bench.versions() == {uuid(5): 5, uuid(6): 6}


@pytest.mark.parametrize("head", [b"", b"x" * 512, b"ClamAV-VDB:" + b"x" * 501])
async def test_answers_without_a_header(bench: Bench, head: bytes) -> None:
    bench.make().see(bench.visit(target=CVD, head=head))
    await bench.written()
    assert bench.versions() == {uuid(1): 6}


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


async def test_when_a_version_was_first_advertised(bench: Bench) -> None:
    fleet = bench.make()
    fleet.note_advertised("daily", 6)
    bench.clock.now += 60
    fleet.note_advertised("daily", 6)
    await bench.written()
    again = bench.make()
    again.note_built("daily", 6, stime_of(6))
    again.note_advertised("daily", 6)
    again.note_advertised("daily", 7)
    await bench.written()
    with reading(bench.directory) as rows:
        assert rows is not None
        assert list(rows.releases()) == [
            Release("daily", 6, bench.clock.now - 60, stime_of(6)),
            Release("daily", 7, bench.clock.now, None),
        ]


# Limits


async def test_the_longest_silent_makes_room(bench: Bench) -> None:
    bench.settings = FleetSettings(max_clients=3)
    fleet = bench.make()
    for number in range(1, 5):
        fleet.see(bench.visit(number))
        bench.clock.now += 1
    await bench.written()
    assert set(bench.versions()) == {uuid(2), uuid(3), uuid(4)}
    fleet.see(bench.visit(2))
    bench.clock.now += 1
    fleet.see(bench.visit(5))
    await bench.written()
    assert set(bench.versions()) == {uuid(2), uuid(4), uuid(5)}


async def test_containers_do_not_flood_it(bench: Bench) -> None:
    bench.settings = FleetSettings(max_clients=50)
    fleet = bench.make()
    for number in range(500):
        fleet.see(bench.visit(number))
        if number % 100 == 0:
            await bench.written()
    await bench.written()
    assert len(bench.machines()) == 50


async def test_the_silent_are_forgotten_at_last(bench: Bench) -> None:
    bench.settings = FleetSettings(keep=30 * DAY)
    fleet = bench.make()
    fleet.see(bench.visit(1))
    await bench.written()
    bench.clock.now += 31 * DAY
    fleet.see(bench.visit(2))
    await bench.written()
    assert set(bench.versions()) == {uuid(2)}


async def test_a_clock_that_was_wrong(bench: Bench) -> None:
    fleet = bench.make()
    fleet.see(bench.visit(1, at=bench.clock.now + 999))
    await bench.written()
    (machine,) = bench.machines()
    assert (machine.first_seen, machine.last_seen) == (bench.clock.now, bench.clock.now)


async def test_memory_is_limited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written, the oldest visits are forgotten."""
    monkeypatch.setattr(recorder, "MOST_PENDING", 10)
    bench.path.mkdir()
    fleet = bench.make()
    for number in range(25):
        fleet.see(bench.visit(number))
        if number % 5 == 0:
            await bench.written()
    bench.path.rmdir()
    await bench.written()
    assert set(bench.versions()) == {uuid(number) for number in range(15, 25)}


# Trouble


async def test_a_table_that_cannot_be_written(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.path.mkdir()
    fleet = bench.make()
    for number in range(5):
        fleet.see(bench.visit(number))
        await bench.written()
    assert caplog.text.count("can't be written") == 1
    bench.path.rmdir()
    await bench.written()  # nothing new came, what is pending is enough
    assert len(bench.machines()) == 5


async def test_another_writer_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamproxy.fleet.table._PATIENCE", 0.05)
    fleet = bench.make()
    await bench.written()
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    fleet.see(bench.visit())
    await bench.written()
    assert bench.machines() == []
    other.close()
    await bench.written()
    assert bench.versions() == {uuid(1): 6}


async def fill(bench: Bench, count: int = 300) -> None:
    fleet = bench.make()
    for number in range(count):
        fleet.see(bench.visit(number))
    await bench.written()


@pytest.mark.parametrize("position", [0, 8192, 20000], ids=["its head", "a page", "another page"])
async def test_a_damaged_table_is_moved_aside(
    bench: Bench, caplog: pytest.LogCaptureFixture, position: int
) -> None:
    await fill(bench)
    bench.damage(position)
    fleet = bench.make()
    fleet.see(bench.visit(7))
    await bench.written()
    assert bench.versions() == {uuid(7): 6}
    assert caplog.text.count("is damaged") == 1
    (aside,) = bench.directory.glob("*.damaged-*")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600


@pytest.mark.parametrize("position", [0, 20000])
async def test_a_damaged_table_that_is_read(bench: Bench, position: int) -> None:
    await fill(bench)
    bench.damage(position)
    with pytest.raises(UnreadableFleetError, match=FILE_NAME):
        bench.machines()


async def test_a_table_that_is_damaged_meanwhile(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await fill(bench)
    bench.damage()
    bench.made[0].see(bench.visit(7))
    await bench.written()
    assert bench.versions() == {uuid(7): 6}
    assert caplog.text.count("is damaged") == 1


async def test_only_one_damaged_table_is_kept(bench: Bench) -> None:
    for _ in range(3):
        await fill(bench, 1)
        bench.damage()
    bench.make()
    await bench.written()
    assert len(list(bench.directory.glob("*.damaged-*"))) == 1


async def test_a_table_of_a_later_version_is_moved_aside(bench: Bench) -> None:
    with sqlite3.connect(bench.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UnreadableFleetError, match="another version"):
        bench.machines()
    await fill(bench, 1)
    assert len(bench.machines()) == 1


async def test_garbage_within_a_row(bench: Bench) -> None:
    await fill(bench, 2)
    with sqlite3.connect(bench.path) as connection:
        connection.execute(
            "UPDATE machines SET databases = '{\"daily\":', os = CAST(x'ff' AS TEXT) WHERE uuid = ?",
            (uuid(1),),
        )
    connection.close()
    assert bench.versions() == {uuid(0): 6}
    bench.made[0].see(bench.visit(1))
    await bench.written()
    assert len(bench.versions()) == 2


async def test_a_table_that_was_deleted(bench: Bench) -> None:
    await fill(bench, 3)
    for path in bench.directory.iterdir():
        path.unlink()
    assert bench.machines() == []
    bench.made[0].see(bench.visit(7))
    await bench.written()
    assert bench.versions() == {uuid(7): 6}


async def test_an_empty_file(bench: Bench) -> None:
    bench.path.touch()
    assert bench.machines() == []
    await fill(bench, 1)
    assert len(bench.machines()) == 1


async def test_two_on_one_table(bench: Bench, tmp_path: Path) -> None:
    """As while a configuration is reloaded, and with several processes."""
    other = Bench(tmp_path, clock=bench.clock)
    try:
        first, second = bench.make(), other.make()
        for version in range(2, 40):
            for number, fleet in ((1, first), (2, second)):
                fleet.see(bench.visit(number, version=version))
                fleet.see(bench.visit(3, version=version, complete=number == 1))
            first.flush()
            second.flush()
        await asyncio.gather(bench.written(), other.written())
        versions = bench.versions()
        assert (versions[uuid(1)], versions[uuid(2)]) == (39, 39)
        assert versions[uuid(3)] in (38, 39)
    finally:
        other.writer.close()


async def test_it_can_be_read_meanwhile(bench: Bench) -> None:
    fleet = bench.make()
    await bench.written()
    for number in range(30):
        fleet.see(bench.visit(number))
        fleet.flush()
        assert len(bench.machines()) <= number + 1
    await bench.written()
    assert len(bench.machines()) == 30


WRITES = """
import asyncio, sys, time
from pathlib import Path
from clamproxy.config.settings import Fleet as Settings
from clamproxy.fleet import Fleet
from clamproxy.threads import Writer
from tests.unit.test_fleet_recorder import Bench

async def main():
    bench = Bench(Path(sys.argv[1]))
    fleet = bench.make()
    for number in range(10**9):
        fleet.see(bench.visit(number % 1000, at=time.time()))
        await bench.written()
        if number == 20:
            print("writes", flush=True)

asyncio.run(main())
"""


async def test_a_kill(bench: Bench) -> None:
    """What was written stays, and the table is whole."""
    code = textwrap.dedent(WRITES)
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code, str(bench.directory)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line == b"writes\n"
        assert len(bench.machines()) >= 20
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    found = len(bench.machines())
    assert found >= 20
    with sqlite3.connect(bench.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    bench.clock.now = time.time()
    bench.make().see(bench.visit(10**6))
    await bench.written()
    assert len(bench.machines()) == found + 1
    assert not list(bench.directory.glob("*.damaged-*"))


async def test_nothing_is_logged_where_all_is_well(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await fill(bench)
    assert caplog.text == ""
