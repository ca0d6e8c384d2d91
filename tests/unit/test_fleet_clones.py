"""Cloned machines, told apart from machines that move, or that have several addresses."""

from __future__ import annotations

import pytest

from clamproxy.fleet.clones import WINDOW, last_round
from clamproxy.fleet.story import VersionChange

HOUR, DAY = 3600, 86400
NOW = 1_795_000_000
START = NOW - 9 * DAY

type Fetches = list[tuple[float, int]]
"""Days since `START`, and versions."""


def changes(fetches: Fetches) -> list[VersionChange]:
    return [
        VersionChange("daily", version, START + int(day * DAY), is_fetched=True) for day, version in fetches
    ]


CLONES = [(0.1, 1), (1.1, 2), (2.1, 3), (3.1, 4)]
CASES: dict[str, tuple[list[Fetches], bool]] = {
    "two clones": ([CLONES, [(day + 0.2, version) for day, version in CLONES]], True),
    "five clones": ([[(day + n / 10, version) for day, version in CLONES] for n in range(5)], True),
    "a clone that is off at times": ([CLONES, [(0.9, 1), (2.5, 2), (2.6, 3), (3.5, 4)]], True),
    "clones that got new addresses": (
        [[(0.1, 1), (1.1, 2)], [(0.2, 1), (1.2, 2)], [(2.1, 3), (3.1, 4)], [(2.3, 3), (3.3, 4)]],
        True,
    ),
    "one machine": ([CLONES], False),
    "a laptop between two places": ([[(0.1, 1), (2.1, 3), (4, 5)], [(1.1, 2), (3.1, 4)]], False),
    "a laptop that was carried away while it fetched": ([[(0.1, 1), (1, 2)], [(1.1, 2), (2, 3)]], False),
    "IPv4 and IPv6 by turns": ([[(0.1, 1), (1.1, 2), (4, 5)], [(2.1, 3), (3.1, 4), (5, 6)]], False),
    "an address that changed once": ([[(0, 1), (1, 2), (2, 3)], [(3, 4), (4, 5), (5, 6)]], False),
    "restored once from a backup": (
        [[(0, 1), (1, 2), (2, 3), (3, 4)], [(4, 2), (4.01, 3), (4.02, 4), (5, 5)]],
        False,
    ),
    "a container that is made anew each hour": (
        [[(day + n / 10, day + 1)] for day in range(5) for n in range(5)],
        False,
    ),
    "a lab that goes back to its image each day": (
        [[(day + n / 1000, n + 1) for n in range(day + 1)] for day in range(8)],
        False,
    ),
    "too few releases": ([CLONES[:2], [(day + 0.2, version) for day, version in CLONES[:2]]], False),
}


@pytest.mark.parametrize(("addresses", "cloned"), CASES.values(), ids=CASES)
def test_which_are_clones(addresses: list[Fetches], cloned: bool) -> None:
    found = last_round([changes(fetches) for fetches in addresses], NOW)
    assert (found is not None) == cloned


def test_when_they_were_last_seen() -> None:
    addresses = [changes(CLONES), changes([(day + 0.2, version) for day, version in CLONES])]
    assert last_round(addresses, NOW) == START + int(3.3 * DAY)
    assert last_round(addresses, NOW + WINDOW) is None


def test_versions_that_were_only_shown_prove_nothing() -> None:
    shown = [change._replace(is_fetched=False) for change in changes(CLONES)]
    assert last_round([changes(CLONES), shown], NOW) is None


def test_databases_are_not_mixed_up() -> None:
    main = [change._replace(what="main") for change in changes(CLONES)]
    assert last_round([changes(CLONES), main], NOW) is None
