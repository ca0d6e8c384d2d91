"""The table of clients: what cannot be written, what is damaged, and who shares it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamproxy.fleet.reading import UnreadableFleetError
from clamproxy.fleet.table import FILE_NAME
from tests.unit.fleet_bench import Bench, uuid


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.writer.close()


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
    monkeypatch.setattr("clamproxy.storage.records_file._PATIENCE", 0.05)
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
from clamproxy.config.settings import FleetSection as Settings
from clamproxy.fleet import Fleet
from clamproxy.threads import Writer
from tests.unit.fleet_bench import Bench

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
