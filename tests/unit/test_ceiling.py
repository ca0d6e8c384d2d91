"""Ceilings: which version clients are shown, by holds and delays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.config.settings import LONGEST_DELAY
from clamproxy.policy import PLAUSIBLE_LEAD, Choice, Known, choose, must_probe
from clamproxy.releases.ceiling import (
    KNOWN_BEFORE,
    MOST_REMEMBERED,
    Cause,
    Ceiling,
    FirstSeen,
    ceiling,
    corrected,
    earliest,
    newest_released,
    with_version,
    without_errors,
)

NOW, HOUR = 1_790_000_000.0, 3600.0
SEEN: FirstSeen = {100: KNOWN_BEFORE, 101: NOW - 30 * HOUR, 102: NOW - 5 * HOUR, 103: NOW - HOUR}


@pytest.mark.parametrize(
    ("held", "seen", "delay", "servable", "expected"),
    [
        pytest.param(None, SEEN, 0, 100, None, id="neither"),
        pytest.param(101, SEEN, 0, 100, Ceiling(101, Cause.HOLD), id="hold"),
        pytest.param(101, {}, 0, None, Ceiling(101, Cause.HOLD), id="hold, whatever is cached"),
        pytest.param(None, SEEN, 4 * HOUR, 100, Ceiling(102, Cause.DELAY), id="delay"),
        pytest.param(None, SEEN, 24 * HOUR, 100, Ceiling(101, Cause.DELAY), id="long delay"),
        pytest.param(None, SEEN, 48 * HOUR, 100, Ceiling(100, Cause.DELAY), id="known before"),
        pytest.param(None, SEEN, HOUR / 2, 100, Ceiling(103, Cause.DELAY), id="all released"),
        pytest.param(None, SEEN, 4 * HOUR, 103, None, id="nothing older to serve"),
        pytest.param(None, {}, 4 * HOUR, 100, None, id="nothing seen yet"),
        pytest.param(None, {103: NOW}, 4 * HOUR, 100, None, id="nothing seen long ago"),
        pytest.param(101, SEEN, 4 * HOUR, 100, Ceiling(101, Cause.HOLD), id="hold below the delay"),
        pytest.param(103, SEEN, 4 * HOUR, 100, Ceiling(102, Cause.DELAY), id="hold above the delay"),
        pytest.param(102, SEEN, 4 * HOUR, 100, Ceiling(102, Cause.HOLD), id="both the same"),
        pytest.param(101, SEEN, 4 * HOUR, 103, Ceiling(101, Cause.HOLD), id="a hold hides everything"),
    ],
)
def test_ceiling(
    held: int | None, seen: FirstSeen, delay: float, servable: int | None, expected: Ceiling | None
) -> None:
    def is_servable(version: int) -> bool:
        return servable is not None and version >= servable

    assert ceiling(held, seen, delay, NOW, is_servable) == expected


@pytest.mark.parametrize(
    ("seen", "version", "expected"),
    [
        pytest.param({}, 100, {100: KNOWN_BEFORE}, id="the first one is a start, not a release"),
        pytest.param({100: 1.0}, 101, {100: 1.0, 101: NOW}, id="a release"),
        pytest.param({100: 1.0, 101: NOW}, 101, {100: 1.0, 101: NOW}, id="known"),
        pytest.param({100: 1.0, 102: NOW}, 101, {100: 1.0, 101: NOW, 102: NOW}, id="a name server lags"),
        pytest.param({100: 1.0, 101: 2.0}, 102, {101: 2.0, 102: NOW}, id="released long ago"),
        pytest.param({100: 1.0, 900: NOW}, 101, {100: 1.0, 101: NOW, 900: NOW}, id="far below"),
    ],
)
def test_with_version(seen: FirstSeen, version: int, expected: FirstSeen) -> None:
    assert with_version(seen, version, NOW) == expected


@pytest.mark.parametrize(
    ("seen", "version", "at_origin", "expected"),
    [
        pytest.param({100: 1.0, 900: 2.0}, 101, 0, {100: 1.0}, id="an error of DNS is forgotten"),
        pytest.param({900: 2.0}, 101, 0, {}, id="even if it was the first"),
        pytest.param({100: 1.0, 105: 2.0}, 101, 0, {100: 1.0, 105: 2.0}, id="a name server lags"),
        pytest.param(
            {100: 1.0, 107: 2.0}, 100, 107, {100: 1.0, 107: 2.0}, id="DNS is stuck, the origin isn't"
        ),
        pytest.param({100: 1.0, 900: 2.0}, 107, 100, {100: 1.0}, id="the origin lags"),
    ],
)
def test_without_errors(seen: FirstSeen, version: int, at_origin: int, expected: FirstSeen) -> None:
    assert without_errors(seen, version, at_origin) == expected


@pytest.mark.parametrize(
    ("delay", "a_day", "coarse"),
    [
        pytest.param(4 * HOUR, 1, 0, id="less than a day"),
        pytest.param(24 * HOUR, 24, 0, id="each hour"),
        pytest.param(21 * 24 * HOUR, 1, 0, id="three weeks"),
        pytest.param(LONGEST_DELAY, 1, 0, id="a month"),
        pytest.param(LONGEST_DELAY, 50, 501, id="more than are remembered"),
    ],
)
def test_a_delay_covers_any_number_of_releases(delay: float, a_day: int, coarse: int) -> None:
    seen: FirstSeen = {}
    pause = 24 * HOUR / a_day
    within = math.ceil(delay / pause)
    for number in range(65 * a_day):
        now = NOW + number * pause
        seen = with_version(seen, 100 + number, now)
        released = newest_released(seen, delay, now)
        assert released is not None
        assert 0 <= 100 + max(0, number - within) - released <= coarse
        assert len(seen) <= min(MOST_REMEMBERED, 2 + LONGEST_DELAY / pause)


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 10)), max_size=60), st.floats(0.1, 50))
def test_a_delay_only_ever_rises(releases: list[tuple[int, float]], delay: float) -> None:
    """Versions may come in any order, as from name servers that lag: what clients were shown stays shown."""
    seen: FirstSeen = {}
    now, shown, newest = NOW, 0, 0
    for version, pause in releases:
        now += pause
        newest = max(newest, version) if version + PLAUSIBLE_LEAD >= newest else newest
        seen = with_version(without_errors(seen, newest, 0), newest, now)
        assert len(seen) <= MOST_REMEMBERED
        released = newest_released(seen, delay, now)
        assert released is None or released >= shown
        shown = released or shown


def known(**facts: object) -> Known:
    return Known(**{"now": NOW, "refresh": 300.0, "advertised_is_fresh": True, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "limit", "expected"),
    [
        pytest.param({"advertised": 6, "cached": 4}, None, Choice(4, True, False), id="no ceiling"),
        pytest.param({"advertised": 6, "cached": 4}, 4, Choice(4, True, False), id="at the ceiling: current"),
        pytest.param(
            {"advertised": 6, "cached": 2, "patched": 4}, 4, Choice(4, True, False, True), id="patches"
        ),
        pytest.param({"advertised": 6, "seen": 6, "cached": 4}, 4, Choice(4, True, False), id="seen above"),
        pytest.param({"advertised": 6, "seen": 4}, 4, Choice(4, False, False), id="to be fetched"),
        pytest.param({"advertised": 6, "seen": 6}, 4, None, id="nothing up to it"),
        pytest.param({"advertised": 6, "cached": 3, "seen": 3}, 4, Choice(3, True, False), id="below it"),
        pytest.param(
            {"advertised": 4, "demanded": 9, "cached": 4}, 4, Choice(4, True, False), id="demanded above"
        ),
    ],
)
def test_choice_under_a_ceiling(facts: dict[str, object], limit: int | None, expected: Choice | None) -> None:
    assert choose(known(seen_at=NOW, probed_advertised=6, probed_for=6, **facts).under(limit)) == expected


@given(
    st.builds(
        Known,
        now=st.just(NOW),
        refresh=st.just(300.0),
        advertised=st.none() | st.integers(1, 20),
        advertised_is_fresh=st.booleans(),
        demanded=st.none() | st.integers(1, 20),
        seen=st.none() | st.integers(1, 20),
        seen_at=st.sampled_from([0.0, NOW - 1000, NOW]),
        probed_advertised=st.integers(0, 20),
        probed_for=st.integers(0, 20),
        fruitless=st.integers(0, 3),
        can_fetch=st.booleans(),
    ),
    st.integers(1, 20),
)
def test_nothing_above_a_ceiling_is_chosen_or_newest(facts: Known, limit: int) -> None:
    under = facts.under(limit)
    choice = choose(under)
    assert choice is None or choice.version <= limit
    assert under.newest <= limit
    # A client may have what is hidden: an older version must not replace it.
    if max(facts.advertised or 0, facts.seen or 0) > limit:
        assert not under.is_newest(limit)
    assert under.under(limit) == under


def test_an_origin_above_the_ceiling_is_not_asked_by_every_client() -> None:
    facts = known(advertised=6, seen=6, seen_at=NOW - 1, probed_advertised=6, probed_for=6)
    assert not must_probe(facts.under(4))
    assert must_probe(known(advertised=6).under(4))


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ({}, {}, {}),
        ({1: 0.0, 2: 50.0}, {}, {1: 0.0, 2: 50.0}),
        ({}, {1: 0.0, 2: 50.0}, {1: 0.0, 2: 50.0}),
        ({1: 0.0, 2: 50.0}, {2: 40.0, 3: 60.0}, {1: 0.0, 2: 40.0, 3: 60.0}),
        ({1: 0.0, 2: 50.0}, {2: 60.0}, {1: 0.0, 2: 50.0}),
        # What a new gateway heard of first isn't older than it is.
        ({2: 0.0}, {1: 0.0, 2: 50.0}, {1: 0.0, 2: 50.0}),
        ({1: 0.0, 2: 50.0}, {2: 0.0}, {1: 0.0, 2: 50.0}),
        ({1: 0.0}, {2: 0.0}, {1: 0.0}),
    ],
)
def test_the_first_gateway_that_sees_a_version_counts(
    own: FirstSeen, others: FirstSeen, expected: FirstSeen
) -> None:
    assert earliest(own, [others]) == expected


def test_gateways_do_not_correct_each_other_forever() -> None:
    own, together = {1: 0.0, 2: 50.0, 3: 100.0}, {1: 0.0, 2: 49.0, 3: 60.0}
    assert corrected(own, together) == {1: 0.0, 2: 50.0, 3: 60.0}
    assert corrected({2: 0.0}, {2: 50.0}) == {2: 50.0}


def test_a_version_of_which_another_gateway_told_is_as_old_as_it_said() -> None:
    assert with_version({}, 2, 90.0, {1: 0.0, 2: 50.0}) == {1: 0.0, 2: 50.0}
    assert with_version({}, 3, 90.0, {1: 0.0, 2: 50.0}) == {1: 0.0, 2: 50.0, 3: 90.0}
    assert with_version({1: 0.0}, 2, 90.0, {2: 50.0}) == {1: 0.0, 2: 50.0}
    assert with_version({}, 2, 90.0, {2: 0.0}) == {2: 0.0}
    assert with_version({1: 0.0}, 2, 90.0, {2: 0.0}) == {1: 0.0, 2: 90.0}
    assert with_version({}, 3, 90.0) == {3: 0.0}
