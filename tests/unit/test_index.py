"""What somebody plants in the index does nothing, and what is damaged does not stop the start."""

from __future__ import annotations

import logging
import os
import pickle
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache import index as index_module
from clamproxy.cache.index import REFUSED_KEY, FinishedFile, get_text, open_index, open_value
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.objects import ObjectId
from tests.unit.conftest import cdiff, cvd, put

PICKLE, BINARY = 4, 2


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
    "a pickle as the newest version": ("newest/daily", {"mode": PICKLE, "value": "bomb"}),
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
    "a number as the newest version": ("newest/daily", {"value": 5}),
    "a newest version that is not there": ("newest/daily", {"value": "5", "mode": 1}),
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


def test_a_planted_counter_does_not_break_the_statistics(store: Store, bomb: bytes) -> None:
    store.add_to_counters({"requests": 1})
    plant(store, "counter/hits", mode=PICKLE, value=bomb)
    assert store.counters()["requests"] == 1


def test_a_planted_row_is_reported_and_dropped(
    store: Store, bomb: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    plant(store, "object/daily-5.cdiff", mode=PICKLE, value=bomb)
    plant(store, "note/x", mode=PICKLE, value=bomb)
    with caplog.at_level(logging.WARNING):
        assert open_value(store._index, "object/daily-5.cdiff") is None
        assert get_text(store._index, "note/x") is None
    assert caplog.text.count("a pickled value") == 2
    assert list(store._index) == []


def test_a_planted_key_is_iterated_over(store: Store, bomb: bytes) -> None:
    put(store, cdiff(7))
    plant(store, bomb, raw=0, value="x")
    assert set(store._index) == {"object/daily-7.cdiff", REFUSED_KEY}


@pytest.mark.parametrize("key", [5, b"bytes", ("a", 1), None, ObjectId.parse("daily-5.cdiff")])
def test_keys_are_text(store: Store, key: object) -> None:
    with pytest.raises(TypeError, match="keys are text"):
        store._index.set(key, "value")


@pytest.mark.parametrize("value", [b"bytes", None, True, ["list"], {"a": 1}, object()])
def test_values_are_text_numbers_or_files(store: Store, value: object) -> None:
    with pytest.raises(TypeError, match="values are"):
        store._index.set("key", value)


def test_nothing_is_evicted(store: Store) -> None:
    """diskcache's default gives up the oldest entry first, which here would be main.cvd."""
    assert store._index.eviction_policy == "none"
    assert store._index.cull_limit == 0


def test_a_directory_that_vanishes_while_a_file_is_linked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes directories that are empty."""
    failures = iter([FileNotFoundError("vanished"), FileNotFoundError("vanished")])
    link = os.link

    def unlucky(source: Path, target: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        link(source, target)

    monkeypatch.setattr(os, "link", unlucky)
    put(store, cdiff(5), b"patch")
    assert set(store.sizes()) == {cdiff(5)}


def test_a_missing_file_is_not_tried_for_ever(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store._index.set("key", FinishedFile(tmp_path / "nowhere", 5))


# Damage


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


@pytest.mark.parametrize(
    "damage",
    [
        write_garbage,
        overwrite_the_middle,
        pytest.param(
            overwrite_one_leaf,
        ),
    ],
)
def test_a_damaged_database_is_moved_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    directory = tmp_path / "cache"
    store = Store(directory)
    for version in range(1, 100):
        put(store, cdiff(version))
    store.close()
    for path in (directory / "index").glob("cache.db-*"):
        path.unlink()
    damage(directory / "index" / "cache.db")
    store = Store(directory)
    assert store.sizes() == {}
    assert len(list(directory.glob("index.damaged-*"))) == 1
    put(store, cdiff(5), b"patch")
    assert set(store.sizes()) == {cdiff(5)}
    store.close()


@pytest.mark.parametrize(
    ("code", "moved"),
    [
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_BUSY, False),
        (sqlite3.SQLITE_IOERR, False),
        (sqlite3.SQLITE_READONLY, False),
        (sqlite3.SQLITE_NOTADB, True),
        (sqlite3.SQLITE_CORRUPT, True),
        pytest.param(
            sqlite3.SQLITE_CORRUPT_INDEX,
            True,
        ),
    ],
)
def test_passing_trouble_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, moved: bool
) -> None:
    store = Store(tmp_path / "cache")
    put(store, cdiff(5), b"patch")
    store.close()
    trouble = sqlite3.OperationalError("trouble")
    trouble.sqlite_errorcode = code
    original, troubles = index_module._open, iter([trouble])

    def troubled(directory: Path) -> Any:
        if (error := next(troubles, None)) is not None:
            raise error
        return original(directory)

    monkeypatch.setattr(index_module, "_open", troubled)
    if moved:
        open_index(tmp_path / "cache" / "index", may_replace=True).close()
    else:
        with pytest.raises(OSError, match="trouble"):
            open_index(tmp_path / "cache" / "index", may_replace=True)
    assert bool(list((tmp_path / "cache").glob("index.damaged-*"))) is moved


def test_damage_is_left_alone_where_others_may_have_it_open(tmp_path: Path) -> None:
    Store(tmp_path / "cache").close()
    write_garbage(tmp_path / "cache" / "index" / "cache.db")
    with pytest.raises(OSError, match="index"):
        open_index(tmp_path / "cache" / "index", may_replace=False)
    assert not list((tmp_path / "cache").glob("index.damaged-*"))


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
