"""Which machine was last sent which content: over restarts, and without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from clamproxy.site_files import recipients
from clamproxy.site_files.recipients import Recipients, recipient

FIRST, SECOND = "1" * 64, "2" * 64


def test_what_was_sent_last_counts(tmp_path: Path) -> None:
    sent = Recipients(tmp_path)
    assert sent.has("a", FIRST) is None
    sent.note("a", FIRST)
    sent.note("b", SECOND)
    assert (sent.has("a", FIRST), sent.has("a", SECOND), sent.has("b", SECOND)) == (True, False, True)
    sent.note("a", SECOND)
    assert (sent.has("a", FIRST), sent.has("a", SECOND)) == (False, True)


def test_it_outlives_the_process(tmp_path: Path) -> None:
    sent = Recipients(tmp_path)
    sent.note("a", FIRST)
    sent.prepare_save()()
    anew = Recipients(tmp_path)
    anew.load()
    assert anew.has("a", FIRST) is True


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'[["a"]]', b"\xff", b"null"])
def test_a_damaged_file_is_forgotten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / recipients.FILE_NAME).write_bytes(content)
    sent = Recipients(tmp_path)
    sent.load()
    assert sent.has("a", FIRST) is None
    sent.note("a", FIRST)
    sent.prepare_save()()


def test_the_longest_silent_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients, "MOST", 3)
    sent = Recipients(tmp_path)
    for name in ("a", "b", "c", "a", "d"):
        sent.note(name, FIRST)
    assert [name for name in "abcd" if sent.has(name, FIRST)] == ["a", "c", "d"]


def test_machines_differ_by_address_uuid_and_file() -> None:
    every = {recipient(address, agent, name) for address in "12" for agent in "12" for name in "12"}
    assert len(every) == 8
    assert recipient("::1", "\udcff\u20ac" * 500, "x")
