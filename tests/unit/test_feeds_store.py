"""Responses of feeds on disk: crashes, damage, limits."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers

from clamproxy.feeds import given
from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.feed_store import OVERHEAD, FeedStore
from clamproxy.feeds.given import Given
from clamproxy.feeds.sharing_rules import ResponseHead
from clamproxy.feeds.spool import FeedsFullError
from clamproxy.files import open_unfinished
from tests.support.disk import limited_files
from tests.support.fixtures import Child

LIMIT = 100_000
AT = 1_800_000_000.0


def key_of(number: int) -> str:
    return f"{number:064x}"


def open_store(directory: Path, limit: int = LIMIT) -> FeedStore:
    store = FeedStore(directory, limit, lambda function: function(), clock=lambda: AT)
    store.load()
    return store


def put(store: FeedStore, number: int, body: bytes, at: float = AT) -> StoredResponse:
    spool = store.create()
    try:
        spool.append(body)
        head = ResponseHead(Headers([("ETag", '"a"')]), at, at)
        return store.publish(spool, key_of(number), "feed.example", head, {})
    finally:
        spool.close()


def body_of(store: FeedStore, number: int) -> bytes | None:
    entry = store.get(key_of(number))
    descriptor = store.open(entry) if entry else None
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "feeds"


def test_what_is_stored_is_there_after_a_restart(directory: Path) -> None:
    entry = put(open_store(directory), 1, b"body")
    again = open_store(directory)
    assert again.get(key_of(1)) == entry
    assert body_of(again, 1) == b"body"
    assert (len(again), again.size) == (1, 4 + OVERHEAD)
    assert not again.is_checked(entry)
    assert again.check(entry)
    assert again.is_checked(entry)


def test_nobody_else_can_read_the_store(directory: Path) -> None:
    put(open_store(directory), 1, b"body")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_a_new_body_replaces_the_old_one(directory: Path) -> None:
    store = open_store(directory)
    put(store, 1, b"old")
    reader = store.open(store.get(key_of(1)))  # type: ignore[arg-type]
    put(store, 1, b"newer")
    assert body_of(store, 1) == b"newer"
    assert os.pread(reader or -1, 9, 0) == b"old"
    os.close(reader or -1)
    assert (len(store), store.size) == (1, 5 + OVERHEAD)
    assert len(list(directory.iterdir())) == 2
    assert body_of(open_store(directory), 1) == b"newer"


def test_a_body_that_is_stored_again_is_as_old_as_it_was(directory: Path) -> None:
    store = open_store(directory)
    put(store, 1, b"same", at=AT)
    again = put(store, 1, b"same", at=AT + 100)
    assert (again.obtained_at, again.head.received_at) == (AT, AT + 100)
    assert put(store, 1, b"other", at=AT + 200).obtained_at == AT + 200


def test_a_renewed_head_is_kept(directory: Path) -> None:
    store = open_store(directory)
    entry = put(store, 1, b"body")
    store.renew(entry, ResponseHead(Headers([("ETag", '"b"')]), AT + 5, AT + 5))
    renewed = open_store(directory).get(key_of(1))
    assert renewed is not None
    assert renewed.head.headers["ETag"] == '"b"'
    assert renewed.obtained_at == AT
    put(store, 1, b"other")
    assert store.renew(entry, entry.head) is None


def test_the_least_recently_used_makes_room(directory: Path) -> None:
    store = open_store(directory, 3 * (10_000 + OVERHEAD))
    for number in (1, 2, 3):
        put(store, number, b"x" * 10_000)
    assert body_of(store, 1)
    put(store, 4, b"x" * 10_000)
    assert [number for number in (1, 2, 3, 4) if store.get(key_of(number))] in ([1, 4], [1, 3, 4])
    assert store.size <= 3 * (10_000 + OVERHEAD)
    assert len(list(directory.glob("*.json"))) == len(store)


def test_the_order_of_use_survives_a_restart(directory: Path) -> None:
    store = open_store(directory)
    for number in (1, 2, 3):
        put(store, number, b"x" * 10_000)
        os.utime(directory / f"{key_of(number)}.json", (AT - number, AT - number))
    again = open_store(directory, 2 * (10_000 + OVERHEAD))
    assert [number for number in (1, 2, 3) if again.get(key_of(number))] == [1, 2]


def test_what_is_larger_than_the_limit_is_refused(directory: Path) -> None:
    store = open_store(directory)
    put(store, 1, b"body")
    spool = store.create()
    spool.append(b"x" * 60_000)
    with pytest.raises(FeedsFullError):
        spool.append(b"x" * 60_000)
    spool.close()
    assert not list(directory.glob("*.part"))
    put(store, 2, b"x" * 90_000)  # the room was given back
    assert body_of(store, 2) is not None


def test_bodies_that_arrive_count(directory: Path) -> None:
    store = open_store(directory)
    put(store, 1, b"x" * 50_000)
    spool = store.create()
    spool.append(b"y" * 60_000)
    assert store.get(key_of(1)) is None
    with pytest.raises(FeedsFullError):
        store.make_room(60_000)
    spool.close()


@pytest.mark.parametrize(
    ("old", "left"),
    [
        pytest.param(None, 0, id="the first body"),
        pytest.param(b"old", 2, id="another body"),
        pytest.param(b"body", 2, id="the same body again"),
    ],
)
def test_no_body_stays_without_its_note_on_a_full_disk(directory: Path, old: bytes | None, left: int) -> None:
    store = open_store(directory)
    if old is not None:
        put(store, 1, old)
    # The body fits in, its note doesn't.
    with limited_files(10), pytest.raises(OSError, match="too large"):
        put(store, 1, b"body")
    assert body_of(store, 1) == old
    assert len([path for path in directory.iterdir() if path.is_file()]) == left
    put(store, 1, b"body")
    assert body_of(store, 1) == b"body"


def test_a_head_that_can_not_be_written_counts_here(directory: Path) -> None:
    store = open_store(directory)
    entry = put(store, 1, b"body")
    head = ResponseHead(entry.head.headers, AT + 1, AT + 1)
    with limited_files(10):
        renewed = store.renew(entry, head)
    assert renewed is not None
    assert store.get(key_of(1)) == renewed
    assert (renewed.head, body_of(store, 1)) == (head, b"body")
    assert open_store(directory).get(key_of(1)) == entry, "a restart knows the old one"


def test_room_is_given_back_though_the_disk_can_not_be_written_to(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    store = open_store(directory, 100_000)
    for _ in range(3):
        spool = store.create()
        spool.append(b"x" * 60_000)
        with monkeypatch.context() as context:
            context.setattr(Path, "unlink", fail)
            spool.close()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"key": 1}', b"\xff\xfe", b"[" * 5000])
def test_a_damaged_note_is_dropped_with_its_body(directory: Path, damage: bytes) -> None:
    put(open_store(directory), 1, b"body")
    (directory / f"{key_of(1)}.json").write_bytes(damage)
    store = open_store(directory)
    assert store.get(key_of(1)) is None
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", key_of(2)),
        ("key", "../../etc/passwd"),
        ("sha256", "short"),
        ("size", "x"),
        ("headers", [["Set-Cookie", "a=b"]]),
        ("headers", [["ETag", "a\r\nb"]]),
        ("headers", [1]),
        ("obtained_at", None),
        ("selection", []),
        ("redirect_lifetime", {}),
    ],
)
def test_a_changed_note_is_dropped(directory: Path, name: str, value: object) -> None:
    put(open_store(directory), 1, b"body")
    path = directory / f"{key_of(1)}.json"
    noted = json.loads(path.read_text().partition(" ")[2])
    path.write_text(json.dumps(noted | {name: value}))  # as earlier versions did, without a checksum
    assert len(open_store(directory)) == 0


def test_a_note_of_an_earlier_version_is_read(directory: Path) -> None:
    put(open_store(directory), 1, b"body")
    path = directory / f"{key_of(1)}.json"
    path.write_text(path.read_text().partition(" ")[2])
    assert body_of(open_store(directory), 1) == b"body"


def test_no_flipped_bit_of_a_note_is_served(directory: Path) -> None:
    put(open_store(directory), 1, b"body")
    path = directory / f"{key_of(1)}.json"
    note = path.read_bytes()
    body = next(one for one in directory.iterdir() if one != path)
    for bit in range(0, 8 * len(note), 13):
        flipped = bytearray(note)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        body.write_bytes(b"body")
        assert len(open_store(directory)) == 0


def test_a_body_that_is_cut_while_it_runs(directory: Path) -> None:
    store = open_store(directory)
    entry = put(store, 1, b"body")
    (directory / entry.body_name).write_bytes(b"bod")
    assert store.open(entry) is None
    assert store.get(key_of(1)) is None


def test_a_body_of_another_length_is_dropped(directory: Path) -> None:
    entry = put(open_store(directory), 1, b"body")
    (directory / entry.body_name).write_bytes(b"bod")
    assert len(open_store(directory)) == 0
    assert list(directory.iterdir()) == []


def test_a_body_that_was_changed_is_dropped_when_it_is_looked_at(directory: Path) -> None:
    entry = put(open_store(directory), 1, b"body")
    (directory / entry.body_name).write_bytes(b"bodY")
    store = open_store(directory)
    assert not store.check(entry)
    assert store.get(key_of(1)) is None


def test_a_body_that_is_gone_is_dropped_when_it_is_opened(directory: Path) -> None:
    store = open_store(directory)
    entry = put(store, 1, b"body")
    (directory / entry.body_name).unlink()
    assert store.open(entry) is None
    assert store.get(key_of(1)) is None
    assert store.size == 0


def test_what_a_killed_process_left_is_swept(directory: Path, child: Child) -> None:
    put(open_store(directory), 1, b"body")
    code = """
import os, sys
from pathlib import Path
from clamproxy.feeds.feed_store import FeedStore
store = FeedStore(Path(sys.argv[1]), 100000, lambda function: None)
store.load()
store.create().append(b"half")
os.kill(os.getpid(), 9)
"""
    assert child(code, directory).returncode == -9
    (directory / f"{key_of(5)}.0123456789abcdef").write_bytes(b"a body without a note")
    assert len(list(directory.iterdir())) == 4
    assert body_of(open_store(directory), 1) == b"body"
    assert len(list(directory.iterdir())) == 2


def test_what_another_process_is_writing_is_left_alone(directory: Path) -> None:
    writing = open_store(directory)
    spool = writing.create()
    spool.append(b"half")
    note = open_unfinished(directory / ".x.json.tmp")
    open_store(directory)
    assert spool.path.exists()
    assert (directory / ".x.json.tmp").exists()
    spool.close()
    os.close(note)
    open_store(directory)
    assert list(directory.iterdir()) == []


def test_a_client_that_had_an_older_body_is_not_told_that_its_own_is_right(directory: Path) -> None:
    store = open_store(directory)
    old = put(store, 1, b"old", at=AT - 1000)
    new = put(store, 1, b"new", at=AT - 100)
    assert not old.is_not_newer(AT - 1001)
    assert old.is_not_newer(AT - 1000)
    assert not new.is_not_newer(AT - 500)
    assert new.is_not_newer(AT - 50)
    store.sent(key_of(1), old.obtained_at)  # a slow one has got the old body right now
    for current in (store.get(key_of(1)), open_store(directory).get(key_of(1))):
        assert current is not None
        assert not current.is_not_newer(AT - 50)
        assert not current.is_not_newer(AT)
        assert current.is_not_newer(AT + 1)
    store.sent(key_of(1), new.obtained_at)
    store.sent(key_of(7), 0.0)


# Several processes


def test_what_one_process_changes_the_others_see(directory: Path) -> None:
    one, other = open_store(directory), open_store(directory)
    entry = put(one, 1, b"body")
    assert (other.get(key_of(1)), body_of(other, 1)) == (entry, b"body")
    renewed = other.renew(entry, ResponseHead(Headers([("ETag", '"b"')]), AT + 1, AT + 1))
    assert one.get(key_of(1)) == renewed
    put(other, 1, b"another", at=AT + 2)
    assert body_of(one, 1) == b"another"
    assert one.size == other.size == 7 + OVERHEAD
    one.drop(entry)  # which has been replaced
    assert body_of(other, 1) == b"another"
    current = one.get(key_of(1))
    assert current is not None
    one.drop(current)
    assert (other.get(key_of(1)), other.size) == (None, 0)
    assert list(directory.iterdir()) == []


def test_a_late_reader_at_one_process_is_remembered_by_the_others(directory: Path) -> None:
    one, other = open_store(directory), open_store(directory)
    old = put(one, 1, b"old", at=AT - 1000)
    put(other, 1, b"new", at=AT - 100)
    one.sent(key_of(1), old.obtained_at)
    current = other.get(key_of(1))
    assert current is not None
    assert not current.is_not_newer(AT - 50)


def test_what_others_have_stored_counts_towards_the_limit(directory: Path) -> None:
    one, other = (open_store(directory, 4 * (OVERHEAD + 10)) for _ in range(2))
    for number in range(10):
        put((one, other)[number % 2], number, b"x" * 10)
    assert len(list(directory.glob("*.json"))) <= 4
    one.catch_up()
    assert (len(one), one.size) == (4, 4 * (OVERHEAD + 10))


def test_a_start_leaves_alone_what_another_process_stores(directory: Path) -> None:
    """Its body has its name a moment before the entry does."""
    one = open_store(directory)

    def write(entry: StoredResponse) -> None:
        thread = threading.Thread(target=lambda: stores.append(open_store(directory)))
        thread.start()
        thread.join(0.3)
        written(entry)
        threads.append(thread)

    stores, threads, written = list[FeedStore](), list[threading.Thread](), one._write
    one._write = write  # type: ignore[method-assign]
    put(one, 1, b"body")
    threads[0].join()
    assert body_of(stores[0], 1) == b"body"


def test_what_clients_were_given_is_known_to_all(tmp_path: Path) -> None:
    one, other = Given(tmp_path / "given"), Given(tmp_path / "given")
    assert other.at(key_of(1)) == 0
    one.mark(key_of(1), AT)
    one.forget(key_of(1), AT - 1)  # that was an earlier one
    assert other.at(key_of(1)) == AT
    other.forget(key_of(1), AT)
    other.forget(key_of(1), AT)
    assert one.at(key_of(1)) == 0


def test_only_so_many_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "MOST", 10)
    marks = Given(tmp_path / "given")
    for number in range(1, 257):
        marks.mark(key_of(number), AT + number)
    assert [number for number in range(1, 257) if marks.at(key_of(number))] == list(range(247, 257))


def test_only_names_that_are_there_are_looked_at(directory: Path) -> None:
    one, other = open_store(directory), open_store(directory)
    put(one, 1, b"body")
    one.given.mark(key_of(2), AT)
    keys = [key_of(number) for number in range(5)]
    settle(directory)
    assert other.among(keys) == [key_of(1), key_of(2)]


def test_what_another_process_has_just_stored_is_looked_at(directory: Path) -> None:
    """Within a step of the file system's clock, a directory's time doesn't tell that it has changed."""
    one, other = open_store(directory), open_store(directory)
    settle(directory)
    assert other.among([key_of(1)]) == []
    put(one, 1, b"body")
    assert other.among([key_of(1)]) == [key_of(1)]


def settle(directory: Path) -> None:
    """As if nothing had changed lately."""
    for one in (directory, directory / "given"):
        if one.exists():
            os.utime(one, (AT - 1e9, AT - 1e9))
