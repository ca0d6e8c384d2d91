"""The file of holds: what commands write, and what gateways read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clamproxy.releases import holds
from clamproxy.releases.holds import (
    FILE_NAME,
    NOTHING_HELD,
    Hold,
    HoldChange,
    Holds,
    HoldsError,
    read_holds,
)

FIRST, SECOND = Hold(100, 1.0, "alice", "false positives"), Hold(99, 2.0, "bob")


def test_hold_and_release(tmp_path: Path) -> None:
    assert read_holds(tmp_path) == NOTHING_HELD
    assert holds.hold(tmp_path, "daily", FIRST) is None
    assert holds.hold(tmp_path, "main", SECOND) is None
    assert holds.hold(tmp_path, "daily", SECOND) == FIRST
    assert read_holds(tmp_path).in_force == {"daily": SECOND, "main": SECOND}
    assert holds.release(tmp_path, "daily", "carol", 3.0) == SECOND
    assert holds.release(tmp_path, "daily", "carol", 4.0) is None
    found = read_holds(tmp_path)
    assert found.in_force == {"main": SECOND}
    assert found.changes[0] == HoldChange("daily", 1.0, "alice", 100, "false positives")
    assert found.changes[-1] == HoldChange("daily", 3.0, "carol", None)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_old_changes_are_forgotten(tmp_path: Path) -> None:
    for number in range(120):
        holds.hold(tmp_path, "daily", Hold(number + 1, float(number), "alice"))
    changes = read_holds(tmp_path).changes
    assert (len(changes), changes[-1].version) == (100, 120)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"holds": [], "changes": []}',
        '{"holds": {"daily": {}}, "changes": []}',
        '{"holds": {"daily": {"version": 0, "since": 1, "by": "a", "why": ""}}, "changes": []}',
        '{"holds": {}, "changes": [{"at": 1}]}',
        "\udcff",
    ],
)
def test_a_damaged_file(tmp_path: Path, content: str) -> None:
    """It is an error, not "nothing is held"; the next command makes a good one."""
    (tmp_path / FILE_NAME).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(HoldsError, match="is damaged"):
        read_holds(tmp_path)
    holds.hold(tmp_path, "daily", FIRST)
    assert read_holds(tmp_path).in_force == {"daily": FIRST}


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(HoldsError, match="No such file"):
        holds.hold(tmp_path / "missing", "daily", FIRST)


def test_a_reason_is_one_short_line() -> None:
    told = holds.shortened(Hold(1, 1.0, "alice", "a\nb\x1b[31m  c" + "d" * 500))
    assert told.why.startswith("a b [31m cd")
    assert len(told.why) == 200


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    holds.hold(tmp_path, "daily", FIRST)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    assert content["holds"]["daily"] == {
        "version": 100, "since": 1.0, "by": "alice", "why": "false positives"
    }  # fmt: skip


ALICE, BOB = HoldChange("daily", 1.0, "alice", 100, "bad"), HoldChange("daily", 2.0, "bob", None)
CAROL = HoldChange("main", 1.5, "carol", 62)
HELD = Holds({"daily": Hold(100, 1.0, "alice", "bad")}, (ALICE,))
AGAIN = Holds({"daily": Hold(100, 1.5, "alice", "bad")}, (HoldChange("daily", 1.5, "alice", 100, "bad"),))
RELEASED = Holds({}, (ALICE, BOB))
MAIN = Holds({"main": Hold(62, 1.5, "carol")}, (CAROL,))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (NOTHING_HELD, NOTHING_HELD, NOTHING_HELD),
        (NOTHING_HELD, HELD, HELD),
        (HELD, HELD, HELD),
        (HELD, RELEASED, RELEASED),
        (HELD, MAIN, Holds({**HELD.in_force, **MAIN.in_force}, (ALICE, CAROL))),
        (RELEASED, MAIN, Holds(MAIN.in_force, (ALICE, CAROL, BOB))),
        # A hold whose change was forgotten counts from when it began.
        (Holds(HELD.in_force), NOTHING_HELD, HELD),
        (Holds({"daily": Hold(99, 3.0, "dave")}), RELEASED, Holds(
            {"daily": Hold(99, 3.0, "dave")}, (ALICE, BOB, HoldChange("daily", 3.0, "dave", 99))
        )),
        # The same hold, made a second time: whichever gateway looks, it began at the same time.
        (HELD, AGAIN, Holds(AGAIN.in_force, (ALICE, *AGAIN.changes))),
        # Of changes of the same moment, the same one counts everywhere.
        (HELD, Holds({}, (HoldChange("daily", 1.0, "bob", None),)), Holds(
            HELD.in_force, (HoldChange("daily", 1.0, "bob", None), ALICE)
        )),
    ],
)  # fmt: skip
def test_what_is_held_by_two_gateways(ours: Holds, theirs: Holds, expected: Holds) -> None:
    assert holds.merged(ours, theirs) == holds.merged(theirs, ours) == expected
    assert holds.merged(expected, ours) == holds.merged(expected, theirs) == expected


def test_a_release_counts_even_if_the_hold_was_made_by_a_fast_clock(tmp_path: Path) -> None:
    fast = Hold(100, 9_000.0, "alice")
    holds.hold(tmp_path, "daily", fast)
    before = read_holds(tmp_path)
    holds.release(tmp_path, "daily", "bob", 5.0)
    assert holds.merged(before, read_holds(tmp_path)).in_force == {}
    holds.hold(tmp_path, "daily", Hold(99, 6.0, "carol"))
    assert holds.merged(before, read_holds(tmp_path)).in_force == {"daily": Hold(99, 6.0, "carol")}


def test_the_last_change_of_a_database_is_never_forgotten(tmp_path: Path) -> None:
    holds.hold(tmp_path, "main", SECOND)
    holds.release(tmp_path, "main", "bob", 3.0)
    for number in range(150):
        holds.hold(tmp_path, "daily", Hold(number + 1, float(number), "alice"))
    changes = read_holds(tmp_path).changes
    assert changes[0] == HoldChange("main", 3.0, "bob", None)
    assert len(changes) == 101
