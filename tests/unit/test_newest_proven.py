"""The newest proven version is known to all processes, whatever happens to disk and files."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from clamproxy.cache.newest_proven import NewestProven
from clamproxy.storage.condition import Condition


def open_in(directory: Path) -> NewestProven:
    return NewestProven(directory / "proven", Condition(directory, "The cache directory"))


def test_only_the_newest_counts(tmp_path: Path) -> None:
    proven = open_in(tmp_path)
    assert proven.of("daily") == 0
    for version in (5, 7, 6):
        proven.note("daily", version)
    assert (proven.of("daily"), proven.of("main")) == (7, 0)
    assert open_in(tmp_path).of("daily") == 7


def test_other_processes_hear_of_it(tmp_path: Path) -> None:
    one, other = open_in(tmp_path), open_in(tmp_path)
    one.note("daily", 5)
    assert other.of("daily") == 5
    other.note("daily", 6)
    one.note("daily", 5)
    assert one.of("daily") == other.of("daily") == 6
    one.set_back("daily", 3)
    assert one.of("daily") == other.of("daily") == 3


@pytest.mark.parametrize("damage", ["", "~00000000 9", "-5", "seven", "99999999999", "\x00" * 20, "9" * 99])
def test_a_damaged_file_says_nothing(tmp_path: Path, damage: str) -> None:
    proven = open_in(tmp_path)
    proven.note("daily", 5)
    (tmp_path / "proven" / "daily").write_text(damage)
    assert proven.of("daily") == 5
    assert open_in(tmp_path).of("daily") == 0


def test_a_lost_file_is_written_anew(tmp_path: Path) -> None:
    proven = open_in(tmp_path)
    proven.note("daily", 5)
    shutil.rmtree(tmp_path / "proven")
    assert proven.of("daily") == 5
    proven.note("daily", 4)
    assert open_in(tmp_path).of("daily") == 5


def test_a_full_disk(tmp_path: Path) -> None:
    proven = open_in(tmp_path)
    proven.note("daily", 5)
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch("clamproxy.cache.newest_proven.replacing", side_effect=full):
        proven.note("daily", 6)
    assert (proven.of("daily"), open_in(tmp_path).of("daily")) == (6, 5)
    proven.mend()
    assert open_in(tmp_path).of("daily") == 6
