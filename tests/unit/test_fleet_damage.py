"""The table of clients: what cannot be written, what is damaged, and who shares it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamproxy.fleet.reading import UnreadableFleetError
from clamproxy.fleet.table import FILE_NAME
from tests.harness.fleet import FleetHarness, uuid


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[FleetHarness]:
    harness = FleetHarness(tmp_path)
    yield harness
    harness.writer.close()


async def test_a_table_that_cannot_be_written(
    harness: FleetHarness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.path.mkdir()
    fleet = harness.make()
    for number in range(5):
        fleet.see(harness.visit(number))
        await harness.written()
    assert caplog.text.count("can't be written") == 1
    harness.path.rmdir()
    await harness.written()  # nothing new came, what is pending is enough
    assert len(harness.machines()) == 5


async def test_another_writer_is_waited_for(harness: FleetHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamproxy.storage.records_file._PATIENCE", 0.05)
    fleet = harness.make()
    await harness.written()
    other = sqlite3.connect(harness.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    fleet.see(harness.visit())
    await harness.written()
    assert harness.machines() == []
    other.close()
    await harness.written()
    assert harness.versions() == {uuid(1): 6}


async def fill(harness: FleetHarness, count: int = 300) -> None:
    fleet = harness.make()
    for number in range(count):
        fleet.see(harness.visit(number))
    await harness.written()


@pytest.mark.parametrize("position", [0, 8192, 20000], ids=["its head", "a page", "another page"])
async def test_a_damaged_table_is_moved_aside(
    harness: FleetHarness, caplog: pytest.LogCaptureFixture, position: int
) -> None:
    await fill(harness)
    harness.damage(position)
    fleet = harness.make()
    fleet.see(harness.visit(7))
    await harness.written()
    assert harness.versions() == {uuid(7): 6}
    assert caplog.text.count("was damaged") == 1
    (aside,) = harness.directory.glob("*.damaged-*")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600


@pytest.mark.parametrize("position", [0, 20000])
async def test_a_damaged_table_that_is_read(harness: FleetHarness, position: int) -> None:
    await fill(harness)
    harness.damage(position, 50_000)
    with pytest.raises(UnreadableFleetError, match=FILE_NAME):
        harness.machines()


async def test_a_table_that_is_damaged_meanwhile(
    harness: FleetHarness, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(harness)
    harness.damage()
    harness.made[0].see(harness.visit(7))
    await harness.written()
    assert harness.versions() == {uuid(7): 6}
    assert caplog.text.count("was damaged") == 1


async def test_only_one_damaged_table_is_kept(harness: FleetHarness) -> None:
    for _ in range(3):
        await fill(harness, 1)
        harness.damage()
    harness.make()
    await harness.written()
    assert len(list(harness.directory.glob("*.damaged-*"))) == 1


async def test_a_table_of_a_later_version_is_moved_aside(harness: FleetHarness) -> None:
    with sqlite3.connect(harness.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UnreadableFleetError, match="another version"):
        harness.machines()
    await fill(harness, 1)
    assert len(harness.machines()) == 1


async def test_garbage_within_a_row(harness: FleetHarness) -> None:
    await fill(harness, 2)
    with sqlite3.connect(harness.path) as connection:
        connection.execute(
            "UPDATE machines SET databases = '{\"daily\":', os = CAST(x'ff' AS TEXT) WHERE uuid = ?",
            (uuid(1),),
        )
    connection.close()
    assert harness.versions() == {uuid(0): 6}
    harness.made[0].see(harness.visit(1))
    await harness.written()
    assert len(harness.versions()) == 2


async def test_a_table_that_was_deleted(harness: FleetHarness) -> None:
    await fill(harness, 3)
    for path in harness.directory.iterdir():
        path.unlink()
    assert harness.machines() == []
    harness.made[0].see(harness.visit(7))
    await harness.written()
    assert harness.versions() == {uuid(7): 6}


async def test_an_empty_file(harness: FleetHarness) -> None:
    harness.path.touch()
    assert harness.machines() == []
    await fill(harness, 1)
    assert len(harness.machines()) == 1


def test_a_power_failure_while_the_table_is_made(harness: FleetHarness) -> None:
    """The first page is there, but nothing is in it; SQLite's journal says that the file was empty before."""
    journal = bytes.fromhex("d9d505f920a163d7") + struct.pack(">5I", 0, 1, 0, 512, 4096)
    harness.path.write_bytes(bytes(4096))
    harness.path.with_name(f"{FILE_NAME}-journal").write_bytes(journal.ljust(512, b"\0"))
    assert harness.machines() == []


async def test_two_gateways_on_one_table(harness: FleetHarness, tmp_path: Path) -> None:
    """As while a configuration is reloaded, and with several processes."""
    other = FleetHarness(tmp_path, clock=harness.clock)
    try:
        first, second = harness.make(), other.make()
        for version in range(2, 40):
            for number, fleet in ((1, first), (2, second)):
                fleet.see(harness.visit(number, version=version))
                fleet.see(harness.visit(3, version=version, complete=number == 1))
            first.flush()
            second.flush()
        await asyncio.gather(harness.written(), other.written())
        versions = harness.versions()
        assert (versions[uuid(1)], versions[uuid(2)]) == (39, 39)
        assert versions[uuid(3)] in (38, 39)
    finally:
        other.writer.close()


async def test_a_table_can_be_read_while_it_is_written(harness: FleetHarness) -> None:
    fleet = harness.make()
    await harness.written()
    for number in range(30):
        fleet.see(harness.visit(number))
        fleet.flush()
        assert len(harness.machines()) <= number + 1
    await harness.written()
    assert len(harness.machines()) == 30


WRITES = """
import asyncio, sys, time
from pathlib import Path
from clamproxy.config.settings import FleetSection as Settings
from clamproxy.fleet import Fleet
from clamproxy.threads import Writer
from tests.harness.fleet import FleetHarness

async def main():
    harness = FleetHarness(Path(sys.argv[1]))
    fleet = harness.make()
    for number in range(10**9):
        fleet.see(harness.visit(number % 1000, at=time.time()))
        await harness.written()
        if number == 20:
            print("writes", flush=True)

asyncio.run(main())
"""


async def test_a_kill(harness: FleetHarness) -> None:
    """What was written stays, and the table is whole."""
    code = textwrap.dedent(WRITES)
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", code, str(harness.directory)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line == b"writes\n"
        assert len(harness.machines()) >= 20
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    found = len(harness.machines())
    assert found >= 20
    with sqlite3.connect(harness.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    harness.clock.now = time.time()
    harness.make().see(harness.visit(10**6))
    await harness.written()
    assert len(harness.machines()) == found + 1
    assert not list(harness.directory.glob("*.damaged-*"))


async def test_nothing_is_logged_where_all_is_well(
    harness: FleetHarness, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await fill(harness)
    assert caplog.text == ""
