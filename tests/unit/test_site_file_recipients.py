"""Which machine was last sent which content: over restarts, and without end."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from clamproxy.site_files import recipients
from clamproxy.site_files.recipients import Recipients, recipient
from clamproxy.threads import Writer

FIRST, SECOND = "1" * 64, "2" * 64
LINE = len(f"{FIRST[:16]} {FIRST[:16]}\n")


def test_what_was_sent_last_counts(tmp_path: Path) -> None:
    sent = Recipients(tmp_path)
    assert sent.has(machine("a"), FIRST) is None
    sent.note(machine("a"), FIRST)
    sent.note(machine("b"), SECOND)
    assert (
        sent.has(machine("a"), FIRST),
        sent.has(machine("a"), SECOND),
        sent.has(machine("b"), SECOND),
    ) == (True, False, True)
    sent.note(machine("a"), SECOND)
    assert (sent.has(machine("a"), FIRST), sent.has(machine("a"), SECOND)) == (False, True)


def test_it_outlives_the_process(tmp_path: Path) -> None:
    sent = Recipients(tmp_path)
    sent.note(machine("a"), FIRST)
    anew = Recipients(tmp_path)
    anew.load()
    assert anew.has(machine("a"), FIRST) is True


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'[["a"]]', b"\xff", b"null"])
def test_a_damaged_file_is_forgotten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / recipients.FILE_NAME).write_bytes(content)
    sent = Recipients(tmp_path)
    sent.load()
    assert sent.has(machine("a"), FIRST) is None
    sent.note(machine("a"), FIRST)
    assert sent.has(machine("a"), FIRST) is True


def test_those_that_got_nothing_new_for_longest_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipients, "MOST", 3)
    sent = Recipients(tmp_path)
    for name, content in (("a", FIRST), ("b", SECOND), ("c", SECOND), ("a", SECOND), ("d", SECOND)):
        sent.note(machine(name), content)
    for process in (sent, Recipients(tmp_path)):
        assert [name for name in "abcd" if process.has(machine(name), SECOND)] == ["a", "c", "d"]


def test_the_same_again_is_not_written(tmp_path: Path) -> None:
    """Whoever asks again and again would fill the disk."""
    one, other = Recipients(tmp_path), Recipients(tmp_path)
    for _ in range(5):
        for process in (one, other):
            process.note(machine("a"), FIRST)
            process.note(machine("b"), FIRST)
    assert (tmp_path / recipients.FILE_NAME).stat().st_size == 2 * LINE


@pytest.mark.parametrize("has_writer", [True, False])
async def test_the_file_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_writer: bool
) -> None:
    """Also while more and more machines, or one that makes them up, are sent something."""
    monkeypatch.setattr(recipients, "MOST", 3)
    writer = Writer()
    one, other = (Recipients(tmp_path, writer if has_writer else None) for _ in range(2))
    for number in range(100):
        (one, other)[number % 2].note(machine(str(number)), FIRST)
        await writer.run(lambda: None)
        assert (tmp_path / recipients.FILE_NAME).stat().st_size <= (4 * 3 + 1) * LINE
    writer.close()
    for process in (one, other, Recipients(tmp_path)):
        assert [number for number in range(100) if process.has(machine(str(number)), FIRST)] == [97, 98, 99]


def test_a_file_that_cannot_be_shortened_grows_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipients, "MOST", 3)
    sent = Recipients(tmp_path)

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(recipients, "replacing", refuse)
        for number in range(100):
            sent.note(machine(str(number)), FIRST)
        assert (tmp_path / recipients.FILE_NAME).stat().st_size == 2 * 4 * 3 * LINE
        assert sent.has(machine("99"), FIRST) is True
    sent.note(machine("100"), FIRST)
    sent.note(machine("101"), FIRST)
    assert Recipients(tmp_path).has(machine("101"), FIRST) is True


def test_of_a_file_that_has_become_long_only_the_end_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version let it grow to gigabytes."""
    sent = Recipients(tmp_path)
    for number in range(50):
        sent.note(machine(str(number)), FIRST)
    monkeypatch.setattr(recipients, "MOST", 10)
    path = tmp_path / recipients.FILE_NAME
    content = path.read_bytes()
    path.write_bytes(b"")
    with path.open("ab") as file:
        file.truncate(2**40)  # a hole, which nothing could read as a whole
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + content)
    anew = Recipients(tmp_path)
    anew.load()
    assert [number for number in range(50) if anew.has(machine(str(number)), FIRST)] == list(range(40, 50))
    anew.note(machine("new"), FIRST)
    assert path.stat().st_size == 10 * LINE
    assert Recipients(tmp_path).has(machine("49"), FIRST) is True


def test_machines_differ_by_address_uuid_and_file() -> None:
    every = {recipient(address, agent, name) for address in "12" for agent in "12" for name in "12"}
    assert len(every) == 8
    assert recipient("::1", "\udcff\u20ac" * 500, "x")


def machine(name: str) -> str:
    return recipient(name, "", "x")


def test_processes_know_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Recipients(tmp_path), Recipients(tmp_path)
    one.note(machine("a"), FIRST)
    assert other.has(machine("a"), FIRST) is True
    other.note(machine("a"), SECOND)
    assert one.has(machine("a"), FIRST) is False
    monkeypatch.setattr(recipients, "MOST", 2)
    for content in (FIRST, SECOND) * 10:
        for name in "bc":
            one.note(machine(name), content)
    assert (tmp_path / recipients.FILE_NAME).stat().st_size < 20 * LINE
    other.note(machine("b"), FIRST)
    assert (one.has(machine("b"), FIRST), one.has(machine("c"), SECOND)) == (True, True)
    assert Recipients(tmp_path).has(machine("c"), SECOND) is True
