"""Records: where they are, and how those of earlier versions get there."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.files import sweep_unfinished
from clamproxy.fleet.table import FILE_NAME as FLEET
from clamproxy.fleet.table import Table, reading
from clamproxy.releases import holds
from clamproxy.releases.holds import Hold, HoldsError
from clamproxy.state import (
    directory_for_changes,
    make_state_directory,
    move_choices,
    move_records,
    open_store,
    state_directory,
)
from clamproxy.storage.records import FILE_NAME, HISTORY, Records
from tests.support.disk import limited_files
from tests.support.disk_shim import DiskShim
from tests.support.fixtures import Child
from tests.support.gateway import ROOT
from tests.support.power import Loss, Replay, Tree, write_tree
from tests.support.stored import cdiff, put

COUNTERS = {"requests": 7, "hits": 5}
SHARED_MEMORY = 32 * 1024
"""Bytes of SQLite's third file, which is not to be what fails."""
PAST = {"steps": [[1, 2]]}
HOLD = Hold(27800, 7.0, "alice")


def settings_for(cache: Path, state: Path | None = None) -> Settings:
    return Settings.model_validate({"cache": {"directory": cache}, "state": {"directory": state}})


def fill_as_earlier_versions(cache: Path) -> None:
    """Counters and history in the index, as diskcache kept them, and the fleet beside it."""
    with closing(Store(cache)) as store:
        store.set_note(HISTORY, PAST)
        put(store, cdiff(5), b"patch")
    with closing(sqlite3.connect(cache / "index" / "cache.db")) as database:
        for name, count in COUNTERS.items():
            row = (f"counter/{name}", count)
            database.execute("INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, 1, ?)", row)
        database.commit()
    with Table(cache).writing():
        pass


def failing_with(code: int) -> Callable[..., NoReturn]:
    """What stands for an operation that the disk refuses."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


def moved(cache: Path, state: Path) -> Records:
    """As a start of the gateway does it."""
    records = Records(state)
    with closing(Store(cache, records=records)) as store:
        move_records(store, cache)
    return records


# Where


def test_records_are_beside_the_cache(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "cache")
    assert state_directory(settings) == tmp_path / "cache"  # no gateway has made another yet
    assert make_state_directory(settings) == state_directory(settings) == tmp_path / "cache-state"
    assert (tmp_path / "cache-state").stat().st_mode & 0o777 == 0o700


def test_records_are_where_the_configuration_says(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "cache", tmp_path / "a" / "b")
    assert make_state_directory(settings) == state_directory(settings) == tmp_path / "a" / "b"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_records_are_in_the_cache_if_there_is_no_place_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    settings = settings_for(tmp_path / "cache")
    monkeypatch.setattr(Path, "mkdir", failing_with(code))
    assert make_state_directory(settings) == state_directory(settings) == tmp_path / "cache"


def test_a_configured_place_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_state_directory(settings_for(tmp_path / "cache", tmp_path / "file" / "state"))


def test_commands_find_the_records(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "cache")
    Records(make_state_directory(settings)).add(COUNTERS)
    with closing(open_store(settings)) as store:
        assert store.counters() == COUNTERS


@pytest.mark.parametrize("record", ["holds.json", "ignored.jsonl", FLEET, FILE_NAME])
def test_commands_write_where_the_gateway_reads(tmp_path: Path, record: str) -> None:
    """It may be in a sandbox with the cache alone, and so keep its records there."""
    settings = settings_for(tmp_path / "cache")
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / record).touch()
    assert directory_for_changes(settings) == tmp_path / "cache"
    assert not (tmp_path / "cache-state").exists()


def test_commands_make_the_directory_before_the_first_start(tmp_path: Path) -> None:
    assert directory_for_changes(settings_for(tmp_path / "cache")) == tmp_path / "cache-state"


# Moving


def test_records_of_an_earlier_version_move(tmp_path: Path) -> None:
    cache, state = tmp_path / "cache", tmp_path / "state"
    fill_as_earlier_versions(cache)
    for _ in range(3):
        records = moved(cache, state)
        assert records.counters() == COUNTERS
        assert records.notes("history/") == {"day": PAST}
    assert not (cache / FLEET).exists()
    with reading(state) as rows:
        assert rows is not None
        assert list(rows.all()) == []
    with closing(sqlite3.connect(cache / "index" / "cache.db")) as database:
        left = database.execute("SELECT key FROM Cache WHERE key LIKE 'counter/%'").fetchall()
    assert left == []


def test_commands_know_the_counters_before_they_move(tmp_path: Path) -> None:
    """After an upgrade, `clamproxy stats` may come before the first start."""
    cache = tmp_path / "cache"
    fill_as_earlier_versions(cache)
    with closing(open_store(settings_for(cache))) as store:
        assert store.counters() == COUNTERS
        assert store.counters() == COUNTERS
    moved(cache, tmp_path / "cache-state")
    with closing(open_store(settings_for(cache))) as store:
        assert store.counters() == COUNTERS


def test_what_was_counted_meanwhile_stays(tmp_path: Path) -> None:
    """The gateway may have counted before the disk let it move anything."""
    cache, state = tmp_path / "cache", tmp_path / "state"
    fill_as_earlier_versions(cache)
    Records(state).add({"hits": 10, "misses": 1})
    assert moved(cache, state).counters() == {"requests": 7, "hits": 15, "misses": 1}


def test_records_that_had_to_stay_in_the_cache_move_later(tmp_path: Path) -> None:
    cache, state = tmp_path / "cache", tmp_path / "state"
    cache.mkdir(mode=0o700)
    state.mkdir()
    Records(cache).add(COUNTERS)
    assert moved(cache, state).counters() == COUNTERS
    assert not (cache / FILE_NAME).exists()


@pytest.mark.parametrize("later", [{}, {"main": Hold(63, 9.0, "bob")}], ids=["moved", "merged"])
def test_what_is_held_moves_as_well(tmp_path: Path, later: dict[str, Hold]) -> None:
    """A hold that stayed behind would be forgotten. A command may have come before the start."""
    cache, state = make_places(tmp_path)
    holds.hold(cache, "daily", HOLD)
    for database, one in later.items():
        holds.hold(state, database, one)
    for _ in range(2):
        assert move_choices(state, cache) is None
        assert holds.read_holds(state).in_force == {"daily": HOLD, **later}
    assert not (cache / "holds.json").exists()


def test_what_is_held_is_known_although_it_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, state = make_places(tmp_path)
    holds.hold(cache, "daily", HOLD)

    with monkeypatch.context() as full:
        full.setattr(holds, "replacing", failing_with(errno.ENOSPC))
        known = move_choices(state, cache)
        assert known is not None
        assert known.in_force == {"daily": HOLD}
        (state / "holds.json").write_bytes(holds.encode(holds.Holds({}, ())))
        with pytest.raises(HoldsError, match="can't be moved"):
            move_choices(state, cache)
    assert move_choices(state, cache) is None
    assert holds.read_holds(state).in_force == {"daily": HOLD}


def test_several_move_it_at_the_same_time(tmp_path: Path) -> None:
    cache, state = make_places(tmp_path)
    for number in range(20):
        holds.hold(cache, "daily", replace(HOLD, since=HOLD.since + number))
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: move_choices(state, cache), range(4))) == [None] * 4
        assert holds.read_holds(state).in_force["daily"].since == HOLD.since + number
    assert not (cache / "holds.json").exists()


def test_a_cache_that_cannot_be_written_to_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start merges it again, which changes nothing."""
    cache, state = make_places(tmp_path)
    holds.hold(cache, "daily", HOLD)

    monkeypatch.setattr(Path, "unlink", failing_with(errno.EROFS))
    for _ in range(2):
        assert move_choices(state, cache) is None
        assert holds.read_holds(state).in_force == {"daily": HOLD}


def test_commands_know_of_holds_before_they_move(tmp_path: Path) -> None:
    """For example, export must not give out what is held."""
    cache, state = make_places(tmp_path)
    holds.hold(cache, "daily", HOLD)
    holds.hold(state, "main", Hold(63, 9.0, "bob"))
    assert set(holds.read_all_holds(state, cache).in_force) == {"daily", "main"}
    assert set(holds.read_all_holds(cache, cache).in_force) == {"daily"}


def test_a_damaged_file_of_holds_stops_the_start(tmp_path: Path) -> None:
    cache, state = make_places(tmp_path)
    (cache / "holds.json").write_bytes(b"{")
    with pytest.raises(HoldsError, match="damaged"):
        move_choices(state, cache)


@pytest.mark.parametrize("later", [b"", b"later\n", b"former\nlater\n", b"later\nlast\n"])
def test_the_history_of_ignored_signatures_moves_as_well(tmp_path: Path, later: bytes) -> None:
    """The last case: a kill came between the two steps."""
    cache, state = make_places(tmp_path)
    (cache / "ignored.jsonl").write_bytes(b"former\n")
    if later:
        (state / "ignored.jsonl").write_bytes(later)
    move_choices(state, cache)
    assert (state / "ignored.jsonl").read_bytes() == b"former\n" + later.removeprefix(b"former\n")
    assert not (cache / "ignored.jsonl").exists()


def make_places(directory: Path) -> tuple[Path, Path]:
    """A cache and a state directory."""
    (cache := directory / "cache").mkdir()
    (state := directory / "state").mkdir()
    return cache, state


def test_a_deleted_cache_leaves_the_records_alone(tmp_path: Path) -> None:
    cache, state = tmp_path / "cache", tmp_path / "state"
    fill_as_earlier_versions(cache)
    moved(cache, state)
    for path in sorted(cache.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert moved(cache, state).counters() == COUNTERS


KILLED = """
import os, signal, sys
from pathlib import Path
from clamproxy import state as module
from clamproxy.cache.index import Index
from clamproxy.cache.store import Store
from clamproxy.storage import records_file as file
from clamproxy.storage.records import Records

cache, state, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
state.mkdir(exist_ok=True)

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

records = Records(state)
store = Store(cache, records=records)
if moment == "before the counters":
    Records.take_over = die
elif moment == "after the counters":
    Index.change = die
elif moment == "after they are gone in the cache":
    Records.forget_takeover = die
elif moment == "before the fleet":
    module.copy_file = die
elif moment == "while the fleet is copied":
    Path.replace = die
elif moment == "after the fleet":
    Path.unlink = die
module.move_records(store, cache)
"""


@pytest.mark.parametrize(
    "moment",
    [
        "before the counters",
        "after the counters",
        "after they are gone in the cache",
        "before the fleet",
        "while the fleet is copied",
        "after the fleet",
    ],
)
def test_a_kill_loses_nothing_and_counts_nothing_twice(tmp_path: Path, child: Child, moment: str) -> None:
    cache, state = tmp_path / "cache", tmp_path / "state"
    fill_as_earlier_versions(cache)
    assert child(KILLED, cache, state, moment).returncode == -signal.SIGKILL
    sweep_unfinished(state)  # as every start does
    assert list(state.glob(".*")) == []
    for _ in range(2):
        records = moved(cache, state)
        assert records.counters() == COUNTERS
        assert records.notes("history/") == {"day": PAST}
        with reading(state) as rows:
            assert rows is not None


FILLED = """
import os, sys
from pathlib import Path
from clamproxy.storage.records import Records

cache, state = map(Path, sys.argv[1:])
for directory in (cache, state):
    directory.mkdir(mode=0o700)
Records(cache).add({"requests": 7, "hits": 5})
for path in (cache.parent, cache, state, *cache.iterdir()):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""
MOVED = """
import sys
from pathlib import Path
from clamproxy.cache.store import Store
from clamproxy.state import move_records
from clamproxy.storage.records import Records

cache, state = map(Path, sys.argv[1:])
move_records(Store(cache, records=Records(state)), cache)
"""


def test_a_power_failure_loses_nothing(tmp_path: Path) -> None:
    """The state directory may be on another disk, which doesn't know that the old file is gone."""
    root, choose = tmp_path / "gateway", random.Random(0)
    root.mkdir()
    shim = DiskShim(root, tmp_path / "shim")
    for program in (FILLED, MOVED):
        command = [sys.executable, "-c", program, str(root / "cache"), str(root / "state")]
        subprocess.run(command, env=shim.environment | {"PYTHONPATH": str(ROOT)}, check=True)
        shim.mark("done")
    replay, trees = Replay(root, shim.changes()), list[Tree]()
    while replay.advance():
        if replay.marks:
            states = [replay.after_power_failure(Loss.ANY, choose) for _ in range(20)]
            kept = [{path: one[path] for path in one if FILE_NAME in path} for one in states]
            trees += [tree for tree in kept if tree not in trees]
    for number, tree in enumerate(trees):
        disk = tmp_path / str(number)
        for name in ("cache", "state"):
            (disk / name).mkdir(parents=True, mode=0o700)
        write_tree(tree, disk)
        assert moved(disk / "cache", disk / "state").counters() == COUNTERS, sorted(tree)


def test_who_reads_what_was_moved_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamproxy.storage.records_file._PATIENCE", 0.05)
    cache, state = tmp_path / "cache", tmp_path / "state"
    for directory in (cache, state):
        directory.mkdir(mode=0o700)
    Records(cache).add(COUNTERS)
    records = moved(cache, state)
    with closing(sqlite3.connect(state / FILE_NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM records").fetchone()
        assert records.add({"hits": 1})
    assert records.counters() == {"requests": 7, "hits": 6}


# Damage


def test_a_damaged_file_goes_on_from_what_was_counted(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.add(COUNTERS)
    for path in tmp_path.glob(f"{FILE_NAME}-*"):
        path.unlink()
    (tmp_path / FILE_NAME).write_bytes(b"no database at all" * 1000)
    assert records.counters() == COUNTERS
    assert records.add({"hits": 1})
    assert Records(tmp_path).counters() == {"requests": 7, "hits": 6}


def test_what_could_not_be_written_is_counted_once(tmp_path: Path) -> None:
    """The disk may fill up within a commit; whoever counts adds the same amount later."""
    records = Records(tmp_path)
    records.add(COUNTERS)
    log = tmp_path / f"{FILE_NAME}-wal"
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as reader:
        reader.execute("SELECT count(*) FROM records").fetchone()  # who has it open keeps the log
        while log.stat().st_size < SHARED_MEMORY:
            records.add(COUNTERS)
        with limited_files(log.stat().st_size):
            assert not records.add({"stale": 1})
        assert "stale" not in records.counters()
        records.add({"stale": 1})
        assert records.counters()["stale"] == 1


def test_a_note_that_could_not_be_written_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may ever note it again, but requests are counted all the time."""
    monkeypatch.setattr("clamproxy.storage.records_file._PATIENCE", 0.05)
    records = Records(tmp_path)
    records.set_note("topic/other", 1)
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        for value in (2, 3):
            assert not records.set_note("topic/key", value)
        assert records.notes("topic/") == {"other": 1, "key": 3}
    assert records.add(COUNTERS)
    assert Records(tmp_path).notes("topic/") == {"other": 1, "key": 3}
    Records(tmp_path).set_note("topic/key", 4)
    assert records.add(COUNTERS)
    assert records.notes("topic/") == {"other": 1, "key": 4}, "it is written once"


def test_a_note_that_could_not_be_written_gives_way_to_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has written it meanwhile, or the service after a reload."""
    monkeypatch.setattr("clamproxy.storage.records_file._PATIENCE", 0.05)
    records, other = Records(tmp_path), Records(tmp_path)
    records.set_note("topic/key", 1)
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        assert not records.set_note("topic/key", 2)
    assert other.set_note("topic/key", 3)
    assert records.notes("topic/") == {"key": 3}
    assert records.add(COUNTERS)
    assert other.notes("topic/") == {"key": 3}


def test_a_flipped_bit_is_no_count(tmp_path: Path) -> None:
    Records(tmp_path).add(COUNTERS)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.execute("UPDATE records SET text = replace(text, ' 7', ' 6') WHERE key = 'counter/requests'")
        database.commit()
    assert Records(tmp_path).counters() == {"hits": 5}


def test_two_processes_add_up(tmp_path: Path) -> None:
    one, two = Records(tmp_path), Records(tmp_path)
    for _ in range(3):
        assert one.add({"hits": 1})
        assert two.add({"hits": 2})
    assert one.counters() == two.counters() == {"hits": 9}
