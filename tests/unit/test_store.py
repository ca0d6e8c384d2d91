"""The store: what is published stays, what is not published does not get in the way."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from clamproxy.cache.index import Index
from clamproxy.cache.published import Metadata
from clamproxy.cache.quarantine import QUARANTINE_LIMIT
from clamproxy.cache.rows import IndexRow
from clamproxy.cache.store import Store
from clamproxy.objects import Kind, ObjectId
from tests.support.fixtures import Child, MakeCvd
from tests.support.stored import cdiff, cvd, put, put_cvd, read

MANY = 10**9


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock"]


def objects_below(directory: Path) -> list[Path]:
    return files_below(directory / "objects")


# Objects


def test_publishing_moves_the_file(store: Store) -> None:
    path = store.partials / "daily-5.cdiff.part"
    path.write_bytes(b"patch")
    inode = path.stat().st_ino
    store.publish(cdiff(5), path, Metadata(5, 1.0, last_modified=2.0))
    assert not path.exists()
    assert read(store, cdiff(5)) == b"patch"
    published = store.open(cdiff(5))
    assert published is not None
    with published:
        assert os.fstat(published.fileno()).st_ino == inode
        assert published.metadata == Metadata(5, 1.0, last_modified=2.0, sha256=sha256(b"patch").hexdigest())


async def test_a_published_object_is_a_source(store: Store) -> None:
    put(store, cdiff(5), b"patch")
    published = store.open(cdiff(5))
    assert published is not None
    assert await published.wait(0) == published.size == 5
    published.close()
    published.close()


def test_what_is_not_there(store: Store) -> None:
    assert store.open(cdiff(5)) is None
    assert store.open_newest("daily") is None
    assert store.newest_version("daily") is None
    assert store.sizes() == {}


def test_an_object_that_is_there_stays_as_it_is(store: Store) -> None:
    put(store, cdiff(5), b"first")
    put(store, cdiff(5), b"second")
    assert read(store, cdiff(5)) == b"first"
    assert not list(store.partials.iterdir())


def test_an_empty_cdiff_is_an_object(store: Store) -> None:
    put(store, cdiff(5), b"")
    assert read(store, cdiff(5)) == b""
    assert store.sizes() == {cdiff(5): 0}


def test_whether_an_object_is_there(store: Store) -> None:
    assert not store.has(cdiff(5))
    put(store, cdiff(5), b"")
    put(store, ObjectId("daily", 6, Kind.CLD), b"built")
    assert store.has(cdiff(5))
    assert store.has(ObjectId("daily", 6, Kind.CLD))
    for other in (cdiff(6), cvd(5), cdiff(5, "main"), ObjectId("daily", 5, Kind.CDIFF_SIGN)):
        assert not store.has(other)
    store.collect_garbage(0, MANY)
    assert not store.has(cdiff(5))


def test_a_cld_is_not_the_newest_cvd(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 5, make_cvd(5))
    put(store, ObjectId("daily", 6, Kind.CLD), b"built")
    assert store.newest_version("daily") == 5


def test_the_newest_cvd_never_goes_backwards(store: Store, make_cvd: MakeCvd) -> None:
    for version in (5, 4, 7, 6):
        put_cvd(store, version, make_cvd(version))
    put(store, ObjectId("daily", 9, Kind.CDIFF))
    put_cvd(store, 3, make_cvd(3, database="main"), "main")
    assert store.newest_version("daily") == 7
    assert store.newest_version("main") == 3
    newest = store.open_newest("daily")
    assert newest is not None
    with newest:
        assert newest.object_id == cvd(7)


def test_an_object_survives_reopening(store: Store, tmp_path: Path, make_cvd: MakeCvd) -> None:
    put_cvd(store, 5, make_cvd(5))
    put(store, cdiff(5), b"patch")
    store.set_note("cooldown//daily.cvd", {"until": 5})
    store.add_to_counters({"hits": 3})
    store.close()
    again = Store(tmp_path / "cache")
    assert again.newest_version("daily") == 5
    assert read(again, cdiff(5)) == b"patch"
    assert again.note("cooldown//daily.cvd") == {"until": 5}
    assert again.counters() == {"hits": 3}
    again.close()


@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
def test_a_lost_file_is_a_miss_and_can_be_published_again(store: Store, tmp_path: Path, damage: str) -> None:
    put(store, cvd(5), b"whole file")
    (file,) = objects_below(tmp_path / "cache")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"x" if damage == "cut" else b"x" * 100)
    assert store.open(cvd(5)) is None
    assert store.newest_version("daily") is None
    assert store.sizes() == {}
    put(store, cvd(5), b"whole file")
    assert read(store, cvd(5)) == b"whole file"


def test_after_a_loss_the_next_start_points_at_what_is_there(store: Store, tmp_path: Path) -> None:
    put(store, cvd(4), b"older")
    put(store, cvd(5), b"newer cvd")
    (tmp_path / "cache" / "objects" / "daily" / "daily-5.cvd").unlink()
    store.close()
    again = Store(tmp_path / "cache")
    assert again.newest_version("daily") == 4
    again.close()


def test_garbage_collection(store: Store, tmp_path: Path) -> None:
    for version in range(1, 6):
        put(store, cdiff(version), b"x" * 10)
        put(store, cvd(version), b"x" * 100)
    assert store.collect_garbage(3, MANY) == sorted([cdiff(1), cdiff(2), cvd(1), cvd(2), cvd(3)])
    assert store.collect_garbage(3, 120) == [cvd(4), cdiff(3)]
    assert set(store.sizes()) == {cdiff(4), cdiff(5), cvd(5)}
    assert len(objects_below(tmp_path / "cache")) == 3
    assert store.newest_version("daily") == 5


def test_a_reader_goes_on_when_its_object_is_dropped(store: Store) -> None:
    put(store, cdiff(1), b"patch")
    published = store.open(cdiff(1))
    assert published is not None
    store.collect_garbage(0, MANY)
    assert store.open(cdiff(1)) is None
    with published:
        assert os.pread(published.fileno(), 99, 0) == b"patch"


@pytest.mark.parametrize("is_another", [False, True], ids=["in the same process", "in another one"])
def test_what_is_published_anew_while_it_is_dropped_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_another: bool
) -> None:
    put(store, cdiff(1), b"damaged")
    change = Index.change
    with closing(Store(store.directory, tidy=False)) as other:

        def change_and_publish(index: Index, changes: Mapping[str, IndexRow | None]) -> None:
            change(index, changes)
            monkeypatch.undo()
            put(other if is_another else store, cdiff(1), b"patch")

        monkeypatch.setattr(Index, "change", change_and_publish)
        store.drop(cdiff(1))
        assert [read(one, cdiff(1)) for one in (store, other)] == [b"patch"] * 2


def test_nobody_else_gets_in(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    store = Store(directory)
    assert [path.stat().st_mode & 0o777 for path in (directory, store.partials)] == [0o700, 0o700]
    store.close()


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        Store(tmp_path / "file")


# Quarantine, notes, counters


def test_the_newest_rejected_files_are_kept_with_their_reasons(store: Store) -> None:
    for number in range(QUARANTINE_LIMIT + 3):
        path = store.partials / "x.part"
        path.write_bytes(b"%d" % number)
        moment = 1_700_000_000 + number
        os.utime(path, (moment, moment))
        store.quarantine("daily-5.cvd", path, f"reason {number}")
        assert not path.exists()
    kept = sorted(store.quarantined(), key=lambda file: file.read_bytes())
    assert [file.read_bytes() for file in kept] == [b"3", b"4", b"5", b"6", b"7"]
    reasons = [file.with_name(f"{file.name}.reason").read_text() for file in kept]
    assert reasons == [f"reason {number}\n" for number in range(3, 8)]
    assert len(list(kept[0].parent.iterdir())) == 2 * QUARANTINE_LIMIT
    assert all(file.name.startswith("daily-5.cvd.") for file in kept)


def test_notes(store: Store) -> None:
    store.set_note("head/daily", {"version": 5})
    store.set_note("head/main", [1, 2.5, None, "ä"])
    store.set_note("advertised/daily", 7)
    assert store.notes("head/") == {"daily": {"version": 5}, "main": [1, 2.5, None, "ä"]}
    store.set_note("head/daily", None)
    store.set_note("head/daily", None)
    assert store.note("head/daily") is None
    assert set(store.notes("head/")) == {"main"}


def test_counters_add_up(store: Store) -> None:
    assert store.counters() == {}
    store.add_to_counters({"hits": 1, "bytes_served": 2**40})
    store.add_to_counters({"hits": 2})
    assert store.counters() == {"hits": 3, "bytes_served": 2**40}


@pytest.mark.parametrize(
    "text", ["", "5", "[]", "null", "not JSON", '{"size": 5}', '{"size": 5, "fetched_at": 1, "x": 1}']
)
def test_metadata_that_makes_no_sense(text: str) -> None:
    assert Metadata.from_json(text) is None


def test_metadata_round_trip() -> None:
    metadata = Metadata(5, 1.5, 2.5, "header")
    assert Metadata.from_json(metadata.to_json()) == metadata


# Other processes

KILLED = """
import os, signal, sys
from pathlib import Path
from clamproxy.cache import layout
from clamproxy.cache.index import Index
from clamproxy.objects import ObjectId
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store

directory, moment = Path(sys.argv[1]), sys.argv[2]
store = Store(directory)

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "before the link":
    os.link = die
elif moment == "after the link":
    layout.sync_directory = die
elif moment == "before the commit":
    Index.change = die
elif moment == "after the commit":
    change = Index.change
    Index.change = lambda *args: (change(*args), die())
path = store.partials / "daily-5.cvd.part"
path.write_bytes(b"whole file")
store.publish(ObjectId.parse("daily-5.cvd"), path, Metadata(10, 1.0))
"""


@pytest.mark.parametrize(
    ("moment", "published"),
    [
        ("before the link", False),
        ("after the link", False),
        ("before the commit", False),
        ("after the commit", True),
    ],
)
def test_a_kill_in_the_middle_of_publishing_loses_nothing(
    tmp_path: Path, child: Child, moment: str, published: bool
) -> None:
    directory = tmp_path / "cache"
    assert child(KILLED, directory, moment).returncode == -signal.SIGKILL
    store = Store(directory)
    partial = store.partials / "daily-5.cvd.part"
    assert read(store, cvd(5)) == (b"whole file" if published else None)
    assert store.newest_version("daily") == (5 if published else None)
    assert len(objects_below(directory)) == published  # no file without a row is left
    assert partial.exists() is not published  # nor a partial file of what is published
    if not published:
        store.publish(cvd(5), partial, Metadata(10, 1.0))
    assert read(store, cvd(5)) == b"whole file"
    assert not partial.exists()
    store.close()


NEIGHBOUR = """
import os, sys
from pathlib import Path
from clamproxy.objects import ObjectId
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store

store = Store(Path(sys.argv[1]))
with store.open(ObjectId.parse("daily-5.cdiff")) as published:
    sys.stdout.write(os.pread(published.fileno(), 99, 0).decode())
path = store.partials / "daily-6.cdiff.part"
path.write_bytes(b"from the other")
store.publish(ObjectId.parse("daily-6.cdiff"), path, Metadata(14, 1.0))
store.add_to_counters({"hits": 2})
store.close()
"""


def test_two_processes_share_a_directory(store: Store, tmp_path: Path, child: Child) -> None:
    put(store, cdiff(5), b"from this one")
    store.add_to_counters({"hits": 1})
    # A file that is linked while its row is not committed yet: the neighbour must not remove it.
    orphan = tmp_path / "cache" / "index" / "00" / "11" / "orphan.val"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"being published")
    (store.partials / "daily-9.cvd.part").write_bytes(b"arriving")
    result = child(NEIGHBOUR, store.directory)
    assert (result.returncode, result.stdout) == (0, "from this one"), result.stderr
    assert orphan.exists()
    assert (store.partials / "daily-9.cvd.part").exists()
    assert read(store, cdiff(6)) == b"from the other"
    assert store.counters() == {"hits": 3}
    assert read(store, cdiff(5)) == b"from this one"


def test_orphans_go_when_the_first_process_starts(store: Store, tmp_path: Path) -> None:
    put(store, cdiff(5), b"patch")
    orphan = tmp_path / "cache" / "index" / "00" / "11" / "orphan.val"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"left by a kill")
    partial = store.partials / "daily-9.cvd.part"
    partial.write_bytes(b"to be resumed")
    store.close()
    again = Store(tmp_path / "cache")
    assert not orphan.exists()
    assert partial.exists()
    assert read(again, cdiff(5)) == b"patch"
    again.close()


def test_a_refused_key_is_told(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store._index.change({"object/../../etc/passwd": IndexRow("text")})
    with caplog.at_level(logging.WARNING):
        assert store.sizes() == {}
    assert "Unknown key" in caplog.text


@pytest.mark.parametrize(("dropped", "newest"), [([5], 4), ([4], 5), ([5, 4], 3), ([5, 4, 3], None)])
def test_without_the_newest_cvd_the_one_before_is_the_newest(
    store: Store, dropped: list[int], newest: int | None
) -> None:
    for version in (3, 5, 4):
        put(store, cvd(version), b"CVD %d" % version)
    put(store, cvd(9, "main"), b"another database")
    put(store, cdiff(6))
    put(store, ObjectId("daily", 7, Kind.CLD))
    for version in dropped:
        store.drop(cvd(version))
    assert store.newest_version("daily") == newest
    assert store.newest_version("main") == 9
    assert read(store, cvd(newest or 5)) == (None if newest is None else b"CVD %d" % newest)
    put(store, cvd(6), b"the next one")
    assert store.newest_version("daily") == 6


def _cut(path: Path) -> None:
    path.write_bytes(b"CV")


def _replace_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("lose", [Path.unlink, _cut, _replace_by_a_directory, _replace_by_a_fifo])
def test_the_newest_cvd_is_one_whose_file_is_there(store: Store, lose: Callable[[Path], None]) -> None:
    """Its file is looked at each time, though it isn't opened."""
    put(store, cvd(4), b"CVD 4", header="4" * 512)
    put(store, cvd(5), b"CVD 5", header="5" * 512)
    for _ in range(2):
        newest = store.newest("daily")
        assert newest is not None
        assert (newest[0], newest[1].header) == (cvd(5), "5" * 512)
    lose(store.directory / "objects" / "daily" / "daily-5.cvd")
    assert store.newest_version("daily") == 4
    store.drop(cvd(5))
    put(store, cvd(5), b"CVD 5 again")
    assert store.newest_version("daily") == 5


def test_a_directory_in_the_place_of_an_object(store: Store, make_cvd: MakeCvd) -> None:
    """It is no file: the object counts as lost, can be dropped, and be published again."""
    put_cvd(store, 5, make_cvd(5))
    path = store.directory / "objects" / "daily" / "daily-5.cvd"
    path.unlink()
    (path / "inside").mkdir(parents=True)
    assert store.open(cvd(5)) is None
    store.drop(cvd(5))
    assert not path.exists()
    (path / "inside").mkdir(parents=True)
    put_cvd(store, 5, make_cvd(5))
    assert store.holds(cvd(5))


def test_a_fifo_in_the_place_of_an_object(store: Store) -> None:
    """Nobody waits for its other end."""
    put(store, cdiff(5), b"patch")
    path = store.directory / "objects" / "daily" / "daily-5.cdiff"
    path.unlink()
    os.mkfifo(path)
    assert store.open(cdiff(5)) is None
    store.close()
    with closing(Store(store.directory)) as again:
        assert not again.has(cdiff(5))


def test_the_newest_version_is_known_without_opening_a_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, cvd(4), b"CVD 4")
    put(store, cvd(5), b"CVD 5")
    opened: list[Path] = []
    monkeypatch.setattr("clamproxy.cache.published.open_to_read", opened.append)
    assert store.newest_version("daily") == 5
    assert opened == []


def test_a_start_removes_what_a_kill_left(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    with closing(Store(directory)) as store:
        put(store, cdiff(5), b"published")
        os.link(directory / "objects/daily/daily-5.cdiff", store.partials / "daily-5.cdiff.part")
        (store.partials / "daily-5.cdiff.json").write_text("{}")
        (store.partials / "daily-6.cdiff.json").touch()  # nothing has arrived
        (store.partials / "daily-7.cvd.part").write_bytes(b"arriving")
        (store.partials / "daily-7.cvd.json").write_text("{}")
        (store.workspaces / "daily-8.cld.x" / "unpacked").mkdir(parents=True)
        left = names_below(directory / "partial") | names_below(store.workspaces)
        with closing(Store(directory)):  # another process may be at work on them
            assert names_below(directory / "partial") | names_below(store.workspaces) == left
    with closing(Store(directory)) as store:
        assert names_below(store.partials) == {"daily-7.cvd.part", "daily-7.cvd.json"}
        assert names_below(store.workspaces) == set()
        assert read(store, cdiff(5)) == b"published"


KILLED_COPY = """
import os, signal, sys
from pathlib import Path
from clamproxy.cache import layout
from clamproxy.objects import ObjectId
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store

layout.shutil.copyfileobj = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store = Store(Path(sys.argv[1]), tidy=False)
path = store.partials / "daily-5.cdiff.part"
path.write_bytes(b"whole")
store.publish(ObjectId.parse("daily-5.cdiff"), path, Metadata(5, 1.0))
"""


def test_a_start_beside_others_removes_an_unfinished_copy(store: Store, child: Child) -> None:
    (nameless := store.directory / "objects/daily/daily-5.cdiff").parent.mkdir()
    nameless.write_bytes(b"of a process that was killed")
    assert child(KILLED_COPY, store.directory).returncode == -signal.SIGKILL
    assert len(objects_below(store.directory)) == 2
    Store(store.directory).close()
    assert objects_below(store.directory) == [nameless]
    put(store, cdiff(5), b"whole")
    assert read(store, cdiff(5)) == b"whole"
    assert objects_below(store.directory) == [nameless]


def names_below(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


LOOK = """
import sys
from pathlib import Path
from clamproxy.cache.store import Store
store = Store(Path(sys.argv[1]), tidy=False)
print(*(object_id.file_name for object_id in store.object_ids()))
store.close()
"""


def test_what_others_look_at_stays_in_one_file(store: Store, child: Child) -> None:
    """A process that closes the index as its last user takes its -wal away; it must know of the others."""
    put(store, cdiff(1), b"1")
    store.close()
    again = Store(store.directory)
    for version in (2, 3, 4):
        put(again, cdiff(version), b"new")
        assert cdiff(version).file_name in child(LOOK, store.directory).stdout.split()
    again.close()
