"""What a gateway takes from the object store and gives to it, and how long it waits for another one."""

from __future__ import annotations

import pytest

from clamproxy.objects import ObjectId
from clamproxy.sharing.give_and_take import (
    CLIENTS_WAIT,
    NOBODY_WAITS,
    left_to_wait,
    name_of_fetch,
    surplus,
    to_give,
    to_take,
)


def ids(text: str) -> list[ObjectId]:
    """Of daily, unless a database is named: ``5.cvd 6.cdiff main-62.cvd``."""
    return [ObjectId.parse(name if "-" in name else f"daily-{name}") for name in text.split()]


def text_of(objects: list[ObjectId]) -> str:
    return " ".join(one.file_name.removeprefix("daily-") for one in objects)


@pytest.mark.parametrize(
    ("site", "own", "ceiling", "taken"),
    [
        ("", "", None, ""),
        ("", "5.cvd", None, ""),
        ("5.cvd 5.cvd.sign", "", None, "5.cvd 5.cvd.sign"),
        ("6.cdiff.sign 7.cdiff 6.cdiff 5.cvd", "", None, "5.cvd 6.cdiff 6.cdiff.sign 7.cdiff"),
        # Older patches, signatures and CVDs come when somebody asks for them, and CLDs by their builder.
        ("4.cvd 5.cvd 4.cdiff 5.cdiff 5.cdiff.sign 4.cvd.sign 6.cld", "", None, "5.cvd"),
        ("5.cvd 6.cdiff 7.cdiff", "5.cvd 6.cdiff", None, "7.cdiff"),
        # Never backwards.
        ("5.cvd 6.cdiff", "7.cvd", None, ""),
        ("5.cvd 6.cdiff 8.cdiff", "7.cvd", None, "8.cdiff"),
        # A new base that another gateway has fetched.
        ("9.cvd 9.cvd.sign 10.cdiff", "5.cvd 6.cdiff 7.cdiff", None, "9.cvd 9.cvd.sign 10.cdiff"),
        ("main-62.cvd main-63.cdiff 5.cvd", "", None, "5.cvd"),
        # Without any CVD, the patches serve clients that have one.
        ("6.cdiff", "", None, "6.cdiff"),
        # What is held back is taken as well, and what clients get until then.
        ("3.cvd 4.cdiff 5.cdiff 6.cvd 7.cdiff", "", 4, "3.cvd 6.cvd 4.cdiff 5.cdiff 7.cdiff"),
    ],
)
def test_what_is_taken(site: str, own: str, ceiling: int | None, taken: str) -> None:
    assert text_of(to_take(ids(site), ids(own), "daily", ceiling)) == taken


@pytest.mark.parametrize(
    ("site", "ceiling", "taken"),
    [
        ("5.cvd 5.cvd.sign 6.cdiff", None, "6.cdiff"),
        ("5.cvd 6.cdiff 7.cdiff", None, "5.cvd 6.cdiff 7.cdiff"),
        ("7.cvd", None, "7.cvd"),
        ("8.cvd", None, "8.cvd"),
        # A hold is the administrator's own wish.
        ("5.cvd 6.cdiff", 6, "5.cvd 6.cdiff"),
    ],
)
def test_nothing_older_is_taken_than_was_proven_here(site: str, ceiling: int | None, taken: str) -> None:
    assert text_of(to_take(ids(site), [], "daily", ceiling, proven=7)) == taken


@pytest.mark.parametrize(
    ("own", "site", "limit", "given"),
    [
        ("5.cvd 6.cdiff 6.cdiff.sign", "", 1000, "5.cvd 6.cdiff 6.cdiff.sign"),
        ("5.cvd 6.cdiff", "5.cvd", 1000, "6.cdiff"),
        # What would be dropped there at once isn't given.
        ("3.cvd 4.cvd", "5.cvd 6.cvd", 1000, ""),
        ("1.cdiff 2.cdiff", "3.cdiff 4.cdiff 5.cdiff", 1000, ""),
        ("7.cdiff", "5.cvd 6.cvd", 25, "7.cdiff"),
        ("main-62.cvd", "5.cvd", 15, "main-62.cvd"),
    ],
)
def test_what_is_given(own: str, site: str, limit: int, given: str) -> None:
    sizes, there = dict.fromkeys(ids(own), 10), dict.fromkeys(ids(site), 10)
    assert text_of(to_give(sizes, there, 3, limit)) == given


def test_an_empty_patch_is_not_given() -> None:
    (cdiff,) = ids("6.cdiff")
    assert to_give({cdiff: 0}, {}, 3, 1000) == []


@pytest.mark.parametrize(
    ("site", "recent", "ceilings", "dropped"),
    [
        ("5.cvd 6.cdiff", "", {}, ""),
        ("3.cvd 4.cvd 5.cvd", "", {}, "3.cvd"),
        ("3.cvd 4.cvd 5.cvd", "3.cvd", {}, ""),
        ("3.cvd 4.cvd 5.cvd", "", {"daily": 3}, ""),
        ("1.cdiff 2.cdiff 3.cdiff 4.cdiff 1.cdiff.sign", "", {}, "1.cdiff 1.cdiff.sign"),
    ],
)
def test_what_is_dropped(site: str, recent: str, ceilings: dict[str, int], dropped: str) -> None:
    present = dict.fromkeys(ids(site), 10)
    assert text_of(surplus(present, 3, 1000, ids(recent), ceilings)) == dropped


@pytest.mark.parametrize(
    ("now", "client_since", "left"),
    [
        (100.0, None, NOBODY_WAITS),
        (100.0, 100.0, CLIENTS_WAIT),
        (115.0, 100.0, CLIENTS_WAIT - 15),
        (130.0, 130.0, CLIENTS_WAIT),
        (150.0, 130.0, 0),
        (100 + NOBODY_WAITS, 95 + NOBODY_WAITS, 0),
    ],
)
def test_how_long_to_wait(now: float, client_since: float | None, left: float) -> None:
    assert left_to_wait(now, 100.0, client_since) == left


def test_whole_files_are_one_at_the_origin() -> None:
    names = [name_of_fetch(one) for one in ids("5.cvd 6.cvd 6.cdiff 6.cvd.sign")]
    assert names == ["fetch daily.cvd"] * 2 + ["fetch daily-6.cdiff", "fetch daily-6.cvd.sign"]
