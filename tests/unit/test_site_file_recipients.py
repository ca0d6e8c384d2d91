"""Which machine was last sent which content: over restarts, and without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from clamproxy.site_files import recipients
from clamproxy.site_files.recipients import Recipients, recipient

FIRST, SECOND = "1" * 64, "2" * 64


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
    sent.prepare_save()()
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
    sent.prepare_save()()


def test_the_longest_silent_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients, "MOST", 3)
    sent = Recipients(tmp_path)
    for name in ("a", "b", "c", "a", "d"):
        sent.note(machine(name), FIRST)
    assert [name for name in "abcd" if sent.has(machine(name), FIRST)] == ["a", "c", "d"]


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
    for _ in range(10):
        for name in "bc":
            one.note(machine(name), SECOND)
    other.prepare_save()()
    assert (tmp_path / recipients.FILE_NAME).stat().st_size == 2 * len(f"{FIRST[:16]} {FIRST[:16]}\n")
    other.note(machine("b"), FIRST)
    assert (one.has(machine("b"), FIRST), one.has(machine("c"), SECOND)) == (True, True)
    assert Recipients(tmp_path).has(machine("c"), SECOND) is True
