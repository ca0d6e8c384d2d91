"""The index: what somebody plants in it does nothing, and no damage to it stops anything."""

from __future__ import annotations

import gc
import os
import pickle
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.index import Index
from clamproxy.cache.published import Metadata
from clamproxy.cache.rows import IndexRow
from clamproxy.cache.store import Store
from clamproxy.objects import ObjectId
from clamproxy.statistics import snapshot
from clamproxy.storage.condition import Condition, Trouble
from clamproxy.storage.sealing import seal, unseal
from tests.support.forge import forge_keys
from tests.support.stored import RELEASES, cdiff, cvd, hold, put, read

PICKLE, BINARY = 4, 2
KEYS = forge_keys().trusted


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle; that it never went off is checked at the end."""
    crater = tmp_path / "crater"
    yield pickle.dumps(Bomb(crater))
    assert not crater.exists()


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Store(tmp_path / "cache").close()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "cache/index").glob("cache.db*")}
    assert set(modes.values()) == {0o600}, modes


def plant(store: Store, key: str | bytes, **columns: Any) -> None:
    """Write a row as somebody with access to the database file can."""
    row: dict[str, Any] = {
        "key": key,
        "raw": 1,
        "store_time": 0.0,
        "expire_time": None,
        "access_time": 0.0,
        "access_count": 0,
        "tag": Metadata(6, 1.0).to_json(),
        "size": 0,
        "mode": 1,
        "filename": None,
        "value": None,
    }
    row |= columns
    marks = ", ".join(f":{name}" for name in row)
    with closing(sqlite3.connect(store.directory / "index" / "cache.db")) as database:
        database.execute(f"INSERT OR REPLACE INTO Cache ({', '.join(row)}) VALUES ({marks})", row)
        database.commit()


def exercise(store: Store) -> None:
    """All that a running gateway does with the index; cdiff 7 is published and must survive it."""
    for object_id in (cdiff(5), cvd(5), cdiff(7)):
        if (published := store.open(object_id)) is not None:
            published.close()
    assert store.newest_version("daily") is None
    assert set(store.sizes()) == {cdiff(7)}
    store.notes("cooldown/")
    assert store.note("cooldown/x") is None
    assert store.collect_garbage(120, 10**9) == []
    store.set_note("cooldown/x", 1)
    assert store.note("cooldown/x") == 1
    put(store, cdiff(5), b"patch")
    assert set(store.sizes()) == {cdiff(5), cdiff(7)}


PLANTED: dict[str, Any] = {
    "a pickle as an object": ("object/daily-5.cdiff", {"mode": PICKLE, "value": "bomb"}),
    "a pickle as a note": ("note/cooldown/x", {"mode": PICKLE, "value": "bomb"}),
    "a pickle in a file": ("object/daily-5.cdiff", {"mode": PICKLE, "filename": "bomb.val"}),
    "a pickle as a key": ("bomb", {"raw": 0, "value": "text"}),
    "an absolute path": ("object/daily-5.cdiff", {"mode": BINARY, "filename": "secret", "size": 6}),
    "a path upwards": ("object/daily-5.cdiff", {"mode": BINARY, "filename": "../../secret", "size": 6}),
    "a path upwards in the middle": (
        "object/daily-5.cdiff",
        {"mode": BINARY, "filename": "00/../../../secret"},
    ),
    "a path upwards as a note": ("note/cooldown/x", {"mode": BINARY, "filename": "../../secret"}),
    "text as an object": ("object/daily-5.cdiff", {"value": "text"}),
    "an object with no tag": ("object/daily-5.cdiff", {"mode": BINARY, "filename": "x.val", "tag": None}),
    "a key of no object": ("object/../../x", {"value": "text"}),
    "a note that is no JSON": ("note/cooldown/x", {"value": "{"}),
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_a_planted_row_does_nothing(tmp_path: Path, bomb: bytes, planted: str, when: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    key, columns = PLANTED[planted]
    columns = {name: bomb if value == "bomb" else value for name, value in columns.items()}
    if columns.get("filename") == "secret":
        columns["filename"] = str(secret)
    store = Store(tmp_path / "cache")
    (store.directory / "index" / "bomb.val").write_bytes(bomb)
    put(store, cdiff(7))
    plant(store, bomb if key == "bomb" else key, **columns)
    if when == "before the start":
        store.close()
        store = Store(tmp_path / "cache")
    exercise(store)
    store.close()
    assert secret.read_bytes() == b"secret"


def test_nothing_is_evicted(store: Store) -> None:
    """diskcache's default gives up the oldest entry first, which here would be main.cvd."""
    for version in range(1, 30):
        put(store, cdiff(version))
    with closing(sqlite3.connect(store.directory / "index" / "cache.db")) as database:
        settings = dict(database.execute("SELECT key, value FROM Settings").fetchall())
    assert (settings["eviction_policy"], settings["cull_limit"]) == ("none", 0)


@pytest.mark.parametrize("text", ["", "5", '{"size": 5}', "ä\0\n", "~x"])
def test_a_sealed_text_shows_each_flipped_bit(text: str) -> None:
    sealed = seal("key", text)
    assert unseal("key", sealed) == text
    assert unseal("kez", sealed) is None
    data = sealed.encode()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        found = unseal("key", flipped.decode(errors="replace"))
        # Only without its mark it looks like a text of an earlier version, which is no JSON then.
        assert found is None or bit < 8


def test_texts_of_earlier_versions_are_read() -> None:
    assert unseal("key", '{"size": 5}') == '{"size": 5}'


# Damage


def filled(directory: Path) -> None:
    """A cache with a CVD, patches and a note."""
    with closing(Store(directory, keys=KEYS)) as store:
        hold(store, 1, range(2, 5))
        store.set_note("cooldown//daily.cvd", {"until": 5})
        store.add_to_counters({"hits": 3})


def check(store: Store) -> None:
    """All that was cached is there."""
    assert read(store, cvd(1)) == RELEASES.cvd(1)
    for version in range(2, 5):
        assert read(store, cdiff(version)) == RELEASES.cdiff(version)
    assert store.newest_version("daily") == 1
    assert store.reached_version("daily") == 4


def write_garbage(database: Path) -> None:
    database.write_bytes(b"this is no database" * 1000)


def overwrite_the_middle(database: Path) -> None:
    """Keep the first page, which is all that opening the database looks at closely."""
    with database.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def overwrite_one_leaf(database: Path) -> None:
    """A page that opening does not touch: found by the integrity check only, or by a look-up."""
    with database.open("r+b") as file:
        file.seek(file.seek(0, 2) // 4096 // 2 * 4096)
        file.write(b"\xff" * 4096)


def change_settings(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE Settings SET key = 'disk_min_file_sixe' WHERE key = 'disk_min_file_size'")
        connection.commit()


def change_a_trigger(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TRIGGER Settings_count_insert")
        body = "UPDATE Settingt SET value = value + 1; END"
        connection.execute(f"CREATE TRIGGER Settings_count_insert AFTER INSERT ON Cache BEGIN {body}")
        connection.commit()


def change_a_key(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE Cache SET key = 'object/daily-9.cvd' WHERE key = 'object/daily-1.cvd'")
        connection.commit()


def change_a_tag(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE Cache SET tag = replace(tag, 'size', 'rize')")
        connection.commit()


def make_it_a_directory(database: Path) -> None:
    database.unlink()
    database.mkdir()


def cut_to_nothing(database: Path) -> None:
    database.write_bytes(b"")


def something_is_in_the_way(database: Path) -> None:
    """Where the damaged file would be moved to, and its log."""
    write_garbage(database)
    for suffix in (".damaged", "-wal"):
        (database.with_name(database.name + suffix) / "inside").mkdir(parents=True)


DAMAGES = [
    cut_to_nothing,
    something_is_in_the_way,
    write_garbage,
    overwrite_the_middle,
    overwrite_one_leaf,
    change_settings,
    change_a_trigger,
    change_a_key,
    change_a_tag,
    make_it_a_directory,
    Path.unlink,
]


def spoil(directory: Path, damage: Callable[[Path], object]) -> None:
    for path in (directory / "index").glob("cache.db-*"):
        path.unlink()
    damage(directory / "index" / "cache.db")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_anew_from_the_objects(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    directory = tmp_path / "cache"
    filled(directory)
    spoil(directory, damage)
    with closing(Store(directory, keys=KEYS)) as store:
        check(store)
        assert store.index_damage is None
        put(store, cdiff(6), RELEASES.cdiff(6))
    # A command finds it whole then.
    with closing(Store(directory, tidy=False, keys=KEYS)) as store:
        check(store)
        assert store.index_damage is None
        assert read(store, cdiff(6)) == RELEASES.cdiff(6)
        assert store.counters() == {"hits": 3}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_command_works_on_a_damaged_index(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    directory = tmp_path / "cache"
    filled(directory)
    spoil(directory, damage)
    with closing(Store(directory, tidy=False, keys=KEYS)) as store:
        check(store)
        assert snapshot(store)["hits"] == 3


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_under_a_running_gateway_is_mended(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    directory = tmp_path / "cache"
    filled(directory)
    with closing(Store(directory, keys=KEYS)) as store:
        check(store)
        spoil(directory, damage)
        check(store)
        put(store, cdiff(6), RELEASES.cdiff(6))
        store.mend()
        check(store)
        with closing(Store(directory, tidy=False, keys=KEYS)) as other:
            check(other)
            assert read(other, cdiff(6)) == RELEASES.cdiff(6)
            assert other.note("cooldown//daily.cvd") == {"until": 5}


def test_what_is_not_what_its_name_says_is_not_taken_in(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    filled(directory)
    objects = directory / "objects" / "daily"
    (objects / "daily-3.cdiff").write_bytes(RELEASES.cdiff(2))
    shutil.copy(objects / "daily-4.cdiff", objects / "main-4.cdiff")
    body = (objects / "daily-2.cdiff").read_bytes()
    (objects / "daily-2.cdiff").write_bytes(body[:-1] + b"?")
    spoil(directory, Path.unlink)
    with closing(Store(directory, keys=KEYS)) as store:
        assert set(store.sizes()) == {cvd(1), cdiff(4)}


@pytest.mark.parametrize("name", ["a", "daily.bak", "old", "zz"])
def test_a_copy_among_the_objects_costs_no_object(tmp_path: Path, name: str) -> None:
    """Whichever of the two is found first."""
    directory = tmp_path / "cache"
    filled(directory)
    with closing(Store(directory, keys=KEYS)) as store:
        sizes = dict(store.sizes())
    shutil.copytree(directory / "objects" / "daily", directory / "objects" / name)
    spoil(directory, Path.unlink)
    for _ in range(2):
        with closing(Store(directory, keys=KEYS)) as store:
            assert dict(store.sizes()) == sizes
            for object_id, size in sizes.items():
                assert len(read(store, object_id) or b"") == size


FLIPS = 60


def test_single_bits(tmp_path: Path) -> None:
    """Whichever bit of the index flips, everything is served after the start."""
    filled(tmp_path / "sound")
    with closing(sqlite3.connect(tmp_path / "sound" / "index" / "cache.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    body = (tmp_path / "sound" / "index" / "cache.db").read_bytes()
    rng = random.Random(8)
    for _ in range(FLIPS):
        bit = rng.randrange(8 * len(body))
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        directory = tmp_path / "spoilt"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "sound", directory)
        (directory / "index" / "cache.db").write_bytes(flipped)
        with closing(Store(directory, tidy=False, keys=KEYS)) as command:
            check(command)
            snapshot(command)
        with closing(Store(directory, keys=KEYS)) as store:
            check(store)
            store.set_note("x", bit)
            put(store, cdiff(9), b"")
        with closing(Store(directory, keys=KEYS)) as store:
            check(store)
            assert (store.note("x"), store.holds(cdiff(9))) == (bit, True), bit


@pytest.mark.parametrize("has_written", [False, True])
def test_a_locked_index_is_served_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_written: bool
) -> None:
    monkeypatch.setattr("clamproxy.cache.index._PATIENCE", 0.05)
    directory = tmp_path / "cache"
    filled(directory)
    with closing(Store(directory, keys=KEYS)) as store:
        if has_written:
            store.set_note("x", 5)
        with closing(sqlite3.connect(directory / "index" / "cache.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            put(store, cdiff(6), RELEASES.cdiff(6))
            assert store.condition.state is not None
            assert store.condition.state.trouble is Trouble.LOCKED
            check(store)
            assert read(store, cdiff(6)) == RELEASES.cdiff(6)
            store.mend()
            assert store.condition.state is not None
        store.mend()
        assert store.condition.state is None
        with closing(Store(directory, tidy=False, keys=KEYS)) as command:
            assert read(command, cdiff(6)) == RELEASES.cdiff(6)


def test_nothing_of_a_former_file_stays_open(tmp_path: Path) -> None:
    """Its connections would hold locks, so that no new file could take its place."""
    directory, elsewhere = tmp_path / "index", tmp_path / "elsewhere"
    index = Index(directory, Condition(tmp_path, "The cache directory"))
    gc.disable()  # it would close them at some time
    try:
        with ThreadPoolExecutor(1) as writer:
            writer.submit(index.change, {"name": IndexRow("text")}).result()
            os.truncate(index.path, 0)  # SQLite doesn't notice: all is in its log
            directory.rename(elsewhere)
            assert index.get("name") is not None
            elsewhere.rename(directory)
            assert index.get("name") is not None
            assert writer.submit(index.mend).result()
            opened = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
            writer.submit(index.disconnect).result()
    finally:
        gc.enable()
    index.close()
    mine = {path for path in opened if path.startswith(str(tmp_path))}
    assert mine == {str(directory / f"cache.db{ending}") for ending in ("", "-shm", "-wal")}


def test_processes_see_each_others_changes(tmp_path: Path) -> None:
    condition = Condition(tmp_path, "The test")
    one, two = Index(tmp_path, condition), Index(tmp_path, condition)
    one.change({"a": IndexRow("1"), "b": IndexRow("2")})
    assert (two.get("a"), two.keys("")[-2:]) == (IndexRow("1"), ["a", "b"])
    two.change({"a": None, "object/x": IndexRow("3", "file")})
    assert (one.get("a"), one.get("object/x")) == (None, IndexRow("3", "file"))
    one.close()
    two.close()


def test_readers_and_writers_in_many_threads(store: Store) -> None:
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for version in range(1, 6):
                put(store, cdiff(number * 100 + version), b"x" * version)
                store.add_to_counters({"hits": 1})
                store.sizes()
        except Exception as error:
            errors.append(error)
        finally:
            store.disconnect()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(store.sizes()) == 20
    assert store.counters() == {"hits": 20}


def test_a_missing_file_is_not_published(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.publish(ObjectId.parse("daily-5.cdiff"), tmp_path / "nowhere", Metadata(5, 1.0))
    assert store.condition.state is None
    assert not store.has(cdiff(5))
