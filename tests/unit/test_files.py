"""Locks, files that are replaced as a whole, and damaged databases that are set aside."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clamproxy.files import (
    identity_of,
    link_or_copy,
    open_lock,
    open_to_read,
    remove,
    replacing,
    set_aside,
    sweep_unfinished,
    try_lock,
    unlock,
)
from tests.support.killing import killed_at


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
    ids=["both alone", "alone, shared", "shared, alone", "both shared"],
)
def test_who_may_lock_besides(tmp_path: Path, first: bool, second: bool, expected: bool) -> None:
    with (tmp_path / "lock").open("ab") as one, (tmp_path / "lock").open("ab") as other:
        assert try_lock(one, shared=first)
        assert try_lock(other, shared=second) is expected
        duplicate = os.dup(one.fileno())
        unlock(one)
        assert try_lock(other)
        os.close(duplicate)


def test_a_lock_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_lock(tmp_path / "lock").close()
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_ends_with_the_last_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("ab") as other:
        with path.open("ab") as one:
            assert try_lock(one)
            duplicate = os.dup(one.fileno())
        assert not try_lock(other)
        os.close(duplicate)
        assert try_lock(other)


def replace_it(path: Path, body: bytes = b"new" * 1000) -> None:
    with replacing(path, mode=0o640) as file:
        file.write(body)


def test_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for body in (b"first", b"second"):
        replace_it(path, body)
        assert path.read_bytes() == body
        assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def fill_the_disk(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"half of")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("was_there", [False, True])
def test_what_can_not_be_written_replaces_nothing(tmp_path: Path, was_there: bool) -> None:
    path = tmp_path / "file"
    if was_there:
        path.write_bytes(b"former")
    with pytest.raises(OSError, match="No space"):
        fill_the_disk(path)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == (
        {"file": b"former"} if was_there else {}
    )


def test_a_kill_leaves_the_former_file_or_the_new_one(tmp_path: Path) -> None:
    path, step, found = tmp_path / "file", 0, set()
    path.write_bytes(b"former")
    while killed_at(step, lambda: replace_it(path)):
        found.add(path.read_bytes())
        step += 1
    found.add(path.read_bytes())
    assert step >= 2  # making the file, renaming it
    assert found == {b"former", b"new" * 1000}


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_copy_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_gone: bool
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"body")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with source.open("rb") as file:
        file.seek(2)
        if is_gone:
            source.unlink()
        link_or_copy(source, target, file.fileno())
        assert file.tell() == 2  # others read by it
    assert target.read_bytes() == b"body"
    assert target.stat().st_mode & 0o777 == 0o600


def test_neither_linked_nor_copied(tmp_path: Path) -> None:
    (source := tmp_path / "source").touch()
    (tmp_path / "target").touch()
    with source.open("rb") as file:
        with pytest.raises(FileExistsError):
            link_or_copy(source, tmp_path / "target", file.fileno())
        with pytest.raises(FileNotFoundError):
            link_or_copy(source, tmp_path / "nowhere" / "other", file.fileno())


@pytest.mark.parametrize(
    "make", [lambda _: None, Path.mkdir, os.mkfifo], ids=["nothing", "directory", "FIFO"]
)
def test_what_is_no_file_can_not_be_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "it")
    with pytest.raises(FileNotFoundError):
        open_to_read(tmp_path / "it")
    remove(tmp_path / "it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_in_the_way", [False, True])
def test_a_damaged_database_is_set_aside_with_its_log_deleted(tmp_path: Path, is_in_the_way: bool) -> None:
    database, aside = tmp_path / "db", tmp_path / "db.damaged"
    for suffix in ("", "-wal", "-shm"):
        database.with_name(f"db{suffix}").write_text(suffix)
    if is_in_the_way:
        (aside / "inside").mkdir(parents=True)
    damaged = identity_of(database)
    assert set_aside(database, damaged, aside)
    assert [path.name for path in tmp_path.iterdir()] == [aside.name]
    database.write_text("another process has made it anew")
    assert not set_aside(database, damaged, aside)
    assert not set_aside(database, None, aside)
    assert database.exists()


def test_what_a_killed_process_had_begun_to_write_is_swept_up(tmp_path: Path) -> None:
    path = tmp_path / "below" / "record.json"
    path.parent.mkdir()

    def work() -> None:
        with replacing(path) as file:
            file.write(b"begun")
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(10**9, work)
    kept = path.with_name("other.part")
    kept.touch()
    sweep_unfinished(tmp_path)
    assert list(path.parent.iterdir()) == [kept]


def test_a_directory_that_cannot_be_read_does_not_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its block on the disk is bad; a start must go on."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (begun := tmp_path / "b" / ".x.json.0.part").touch()
    scandir = os.scandir

    def fail(path: str) -> Any:
        if path == str(tmp_path / "a"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    sweep_unfinished(tmp_path)
    assert not begun.exists()


def test_what_is_being_written_is_not_swept_up(tmp_path: Path) -> None:
    """Other processes that share the directory start meanwhile, also at the worst moment."""
    path, done = tmp_path / "record.json", threading.Event()

    def sweep() -> None:
        while not done.is_set():
            sweep_unfinished(tmp_path)

    with ThreadPoolExecutor() as threads:
        sweepers = [threads.submit(sweep) for _ in range(2)]
        try:
            for number in range(300):
                with replacing(path) as file:
                    file.write(b"%d" % number)
                assert path.read_bytes() == b"%d" % number
        finally:
            done.set()
    for sweeper in sweepers:
        sweeper.result()
    assert list(tmp_path.iterdir()) == [path]
