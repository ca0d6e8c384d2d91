"""A cache of an earlier version is taken over as it is: nothing is fetched, copied, or lost."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from clamproxy.cache import layout
from clamproxy.cache.index import Index
from clamproxy.cache.store import Store
from clamproxy.objects import Kind, ObjectId
from tests.support.disk import open_disk
from tests.support.forge import forge_keys
from tests.support.former import LAYOUTS, make_former
from tests.support.killing import killed_at
from tests.support.stored import RELEASES, cdiff, cvd, hold, put, read, sign

KEYS = forge_keys().trusted
MANY = 10**9
CLD = ObjectId("daily", 6, Kind.CLD)
CONTENTS = {
    cvd(1): RELEASES.cvd(1),
    sign(cvd(1)): RELEASES.cvd_sign(1),
    **{cdiff(version): RELEASES.cdiff(version) for version in range(2, 5)},
    cdiff(5): b"",
    CLD: b"built here",
    cvd(62, "main"): b"a CVD of main",
}
NAMES = {
    "daily/daily-1.cvd",
    "daily/daily-1.cvd.sign",
    "daily/daily-2.cdiff",
    "daily/daily-3.cdiff",
    "daily/daily-4.cdiff",
    "daily/daily-5.cdiff",
    "daily/daily-6.cld",
    "main/main-62.cvd",
}


def filled(directory: Path) -> Path:
    with closing(Store(directory, keys=KEYS)) as store:
        hold(store, 1, range(2, 5))
        for object_id, body in CONTENTS.items():
            put(store, object_id, body)
        store.set_note("x", 5)
    return directory


@pytest.fixture(params=LAYOUTS)
def former(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A cache of an earlier version."""
    cache = filled(tmp_path / "cache")
    make_former(cache, request.param)
    return cache


def names(cache: Path) -> set[str]:
    objects = cache / "objects"
    return {str(path.relative_to(objects)) for path in objects.rglob("*") if path.is_file()}


def inodes(cache: Path) -> set[int]:
    paths = [*(cache / "objects").rglob("*"), *(cache / "index").rglob("*")]
    return {path.stat().st_ino for path in paths if path.is_file() and not path.name.startswith("cache.db")}


def check(store: Store) -> None:
    for object_id, body in CONTENTS.items():
        assert read(store, object_id) == body
        metadata = store.metadata(object_id)[0]
        assert metadata is not None
        assert metadata.fetched_at == 1.0  # what only the row tells
    assert set(store.sizes()) == CONTENTS.keys()
    assert store.newest_version("daily") == 1
    assert store.note("x") == 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("daily-27800.cdiff", "objects/daily/daily-27800.cdiff"),
        ("daily-27800.cdiff.sign", "objects/daily/daily-27800.cdiff.sign"),
        ("main-62.cvd", "objects/main/main-62.cvd"),
        ("main-62.cvd.sign", "objects/main/main-62.cvd.sign"),
        ("bytecode-339.cld", "objects/bytecode/bytecode-339.cld"),
    ],
)
def test_where_an_object_is(tmp_path: Path, name: str, expected: str) -> None:
    with closing(Store(tmp_path)) as store:
        put(store, ObjectId.parse(name))
    assert (tmp_path / expected).read_bytes() == b"body"


@pytest.mark.parametrize(
    "filename",
    [
        None,
        "/etc/passwd",
        "../../secret",
        "3f/a0/../../secret.val",
        "secret",
        "objects/daily/daily-5.cdiff",
        "objects/daily/daily-4.cdiff",  # a flipped bit
        "objects/daily-4.cdiff",
        "objects/daily-5.cdiff.sign",
    ],
)
def test_no_row_leads_elsewhere(tmp_path: Path, filename: str | None) -> None:
    assert layout.locate(tmp_path, cdiff(5), filename) == tmp_path / "objects/daily/daily-5.cdiff"


def test_the_next_start_moves_the_files(former: Path) -> None:
    before = inodes(former)
    with closing(Store(former, keys=KEYS)) as store:
        check(store)
        assert names(former) == NAMES
        assert inodes(former) == before  # none was copied
    assert not (former / "index" / "3f").exists()
    with closing(Store(former, tidy=False, keys=KEYS)) as command:
        check(command)


def test_also_without_its_index(former: Path) -> None:
    """What proves itself, that is: the bodies of this test don't all do that."""
    for path in (former / "index").glob("cache.db*"):
        path.unlink()
    with closing(Store(former, keys=KEYS)) as store:
        for object_id in (cvd(1), cdiff(2), cdiff(3), cdiff(4)):
            assert read(store, object_id) == CONTENTS[object_id]
    assert names(former) >= {"daily/daily-1.cvd", *(f"daily/daily-{version}.cdiff" for version in (2, 3, 4))}


def test_not_while_another_process_has_it_open(former: Path) -> None:
    with closing(Store(former, tidy=False, keys=KEYS)) as other:
        with closing(Store(former, keys=KEYS)) as store:
            assert names(former) == set()
            check(store)
            put(store, cdiff(7), b"new")
        check_all = [read(other, object_id) for object_id in CONTENTS]
        assert check_all == list(CONTENTS.values())
        assert read(other, cdiff(7)) == b"new"
    with closing(Store(former, keys=KEYS)) as store:
        assert names(former) == NAMES | {"daily/daily-7.cdiff"}
        assert read(store, cdiff(7)) == b"new"


def test_a_reader_goes_on(former: Path) -> None:
    with closing(Store(former, tidy=False, keys=KEYS)) as command:
        published = command.open(cdiff(3))
    assert published is not None
    with published, closing(Store(former, keys=KEYS)):
        assert os.pread(published.fileno(), published.size, 0) == CONTENTS[cdiff(3)]


def test_dropping_and_replacing_before_it_is_taken_over(former: Path) -> None:
    with closing(Store(former, tidy=False, keys=KEYS)) as command:
        before = len(inodes(former))
        command.drop(cdiff(3))
        assert len(inodes(former)) == before - 1
        put(command, cdiff(3), b"another")
        assert read(command, cdiff(3)) == b"another"
        assert names(former) == {"daily/daily-3.cdiff"}
    with closing(Store(former, keys=KEYS)) as store:
        assert read(store, cdiff(3)) == b"another"
        assert names(former) == NAMES


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_a_kill_at_any_step_loses_nothing(tmp_path: Path, layout_name: str) -> None:
    """It is killed before each change to a file; the next start goes on."""
    step, killed = 0, True
    while killed:
        cache = filled(tmp_path / str(step))
        make_former(cache, layout_name)
        killed = killed_at(step, lambda cache=cache: Store(cache, keys=KEYS).close())  # type: ignore[misc]
        check_after_a_kill(cache)
        step += 1
    assert step > len(NAMES)


def test_a_kill_between_the_files_and_their_rows_loses_nothing(
    former: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "change", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert killed_at(MANY, lambda: Store(former, keys=KEYS).close())
    assert names(former) == NAMES
    monkeypatch.undo()
    check_after_a_kill(former)


def check_after_a_kill(cache: Path) -> None:
    with closing(Store(cache, tidy=False, keys=KEYS)) as command:
        check(command)
    with closing(Store(cache, keys=KEYS)) as store:
        check(store)
    assert names(cache) == NAMES
    assert (cache / "index" / "objects").is_symlink()


def test_on_a_read_only_disk(tmp_path: Path) -> None:
    """Commands and the gateway serve it from where it is; it is taken over when the disk lets them."""
    with open_disk(tmp_path / "disk") as disk:
        cache = filled(disk.path / "cache")
        make_former(cache, "index/objects")
        disk.make_read_only()
        for tidy in (False, True):
            with closing(Store(cache, tidy=tidy, keys=KEYS)) as store:
                check(store)
        disk.make_writable()
        with closing(Store(cache, keys=KEYS)) as store:
            check(store)
        assert names(cache) == NAMES


def _rename_flat(cache: Path) -> None:
    """As the version before this one does at its start, by way of the link in the index."""
    with closing(sqlite3.connect(cache / "index" / "cache.db")) as database:
        query = "SELECT key, filename FROM Cache WHERE filename IS NOT NULL"
        for key, filename in database.execute(query).fetchall():
            flat = f"objects/{key.removeprefix('object/')}"
            (cache / "index" / filename).rename(cache / "index" / flat)
            database.execute("UPDATE Cache SET filename = ? WHERE key = ?", (flat, key))
        database.commit()


@pytest.mark.parametrize("change", [lambda _: None, _rename_flat], ids=["as it is", "after it was started"])
def test_the_version_before_finds_what_this_one_leaves(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """It follows the names in the rows from the directory of the index."""
    cache = filled(tmp_path / "cache")
    with closing(sqlite3.connect(cache / "index" / "cache.db")) as database:
        query = "SELECT filename FROM Cache WHERE filename IS NOT NULL"
        found = {(cache / "index" / filename).read_bytes() for (filename,) in database.execute(query)}
    assert found == set(CONTENTS.values())
    change(cache)
    with closing(Store(cache, keys=KEYS)) as store:
        check(store)
    assert names(cache) == NAMES


def test_deleting_the_index_deletes_no_object(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with closing(Store(cache, keys=KEYS)) as store:
        hold(store, 1, range(2, 5))
    for path in sorted((cache / "index").iterdir()):
        path.unlink()
    (cache / "index").rmdir()
    with closing(Store(cache, keys=KEYS)) as store:
        assert store.reached_version("daily") == 4
        assert read(store, cvd(1)) == RELEASES.cvd(1)
