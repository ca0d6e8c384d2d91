"""The condition of a disk: what errors mean, and what is held in memory meanwhile."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamproxy.cache.partial import NoRoomError, PartialFile, Validators
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.objects import Kind, ObjectId
from clamproxy.storage.condition import Condition, LockedError, Trouble, trouble_of
from tests.support.stored import cdiff, cvd, put, read

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def of_sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("trouble")
    error.sqlite_errorcode = code
    return error


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (FULL, Trouble.FULL),
        (OSError(errno.EDQUOT, ""), Trouble.FULL),
        (OSError(errno.EROFS, ""), Trouble.READ_ONLY),
        (PermissionError(errno.EACCES, ""), Trouble.READ_ONLY),
        (OSError(errno.EIO, ""), Trouble.BROKEN),
        (FileNotFoundError(errno.ENOENT, ""), None),
        (OSError(errno.EMFILE, ""), None),
        (TimeoutError(), None),
        (KeyError(), None),
        (of_sqlite(sqlite3.SQLITE_FULL), Trouble.FULL),
        (of_sqlite(sqlite3.SQLITE_READONLY_DBMOVED), Trouble.READ_ONLY),
        (of_sqlite(sqlite3.SQLITE_CANTOPEN), Trouble.BROKEN),
        (of_sqlite(sqlite3.SQLITE_IOERR_SHMSIZE), Trouble.BROKEN),
        (of_sqlite(sqlite3.SQLITE_BUSY), Trouble.LOCKED),
        (of_sqlite(sqlite3.SQLITE_NOTADB), Trouble.DAMAGED),
        (of_sqlite(sqlite3.SQLITE_CORRUPT_INDEX), Trouble.DAMAGED),
        (of_sqlite(sqlite3.SQLITE_ERROR), Trouble.DAMAGED),  # no such table, no such column
        (LockedError(), Trouble.LOCKED),
        # diskcache gives up whatever the reason.
        (caused(LockedError(), of_sqlite(sqlite3.SQLITE_READONLY)), Trouble.READ_ONLY),
    ],
)
def test_what_an_error_means(error: BaseException, trouble: Trouble | None) -> None:
    assert trouble_of(error) is trouble


def test_one_line_for_each_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    condition = Condition(tmp_path, "The directory")
    with caplog.at_level(logging.INFO):
        for _ in range(100):
            assert condition.failed(FULL)
        for _ in range(100):
            assert condition.failed(OSError(errno.EROFS, "Read-only file system"))
        assert not condition.failed(KeyError("a mistake"))
        for _ in range(100):
            condition.recovered()
    assert len(caplog.records) == 3
    assert condition.state is None


# Held in memory


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store on a full disk, which holds 1,000 bytes in memory."""
    store = Store(tmp_path / "cache", hold=1000)

    def no_space(*_: object) -> None:
        raise FULL

    monkeypatch.setattr("clamproxy.cache.layout.place", no_space)
    yield store
    store.close()


def test_what_is_small_is_held_and_published_later(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(full, cdiff(5), b"patch")
    assert read(full, cdiff(5)) == b"patch"
    assert full.holds(cdiff(5))
    assert full.sizes() == {cdiff(5): 5}
    monkeypatch.undo()
    full.mend()
    assert full.condition.state is None
    assert (full.directory / "objects" / "daily" / "daily-5.cdiff").read_bytes() == b"patch"
    assert read(full, cdiff(5)) == b"patch"


def test_the_oldest_make_room(full: Store) -> None:
    for version in range(1, 6):
        put(full, cdiff(version), b"x" * 300)
    assert set(full.sizes()) == {cdiff(3), cdiff(4), cdiff(5)}
    full.drop(cdiff(4))
    assert set(full.sizes()) == {cdiff(3), cdiff(5)}


def test_what_is_larger_is_an_error(full: Store) -> None:
    path = full.partials / "x.part"
    path.write_bytes(bytes(2000))
    with pytest.raises(OSError, match="No space"):
        full.publish(cvd(5), path, Metadata(2000, 1.0))
    assert path.exists()
    assert full.sizes() == {}


def test_a_reader_goes_on_when_its_object_is_dropped(full: Store) -> None:
    put(full, cdiff(5), b"patch")
    published = full.open(cdiff(5))
    assert published is not None
    full.drop(cdiff(5))
    with published:
        assert os.pread(published.fileno(), 99, 0) == b"patch"


@pytest.mark.parametrize("name", ["daily-5.cdiff", "daily-5.cvd.sign"])
def test_a_small_object_arrives_in_memory(full: Store, name: str) -> None:
    object_id = ObjectId.parse(name)
    full.condition.failed(FULL)
    partial = full.open_partial(object_id)
    partial.begin(Validators(5, None, None))
    partial.append(b"patch")
    assert list(full.partials.iterdir()) == []
    full.publish(object_id, partial.path, Metadata(5, 1.0))
    partial.release()
    partial.release()
    assert read(full, object_id) == b"patch"


@pytest.mark.parametrize(("free", "fits"), [(0, False), (2**20 + 99, False), (2**20 + 100, True)])
def test_room_is_looked_for_before_a_file_is_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    partial = PartialFile.claim(store.partials, ObjectId("daily", 5, Kind.CVD))
    monkeypatch.setattr("clamproxy.cache.partial.free_bytes", lambda _: free)
    if fits:
        partial.begin(Validators(100, None, None))
    else:
        with pytest.raises(NoRoomError):
            partial.begin(Validators(100, None, None))
    partial.begin(Validators(None, None, None))  # without a length nobody knows
    partial.release()
