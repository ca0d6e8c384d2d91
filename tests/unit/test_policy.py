"""Decisions about versions; the traps are those of docs/protocol.md section 10."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.objects import Kind, ObjectId
from clamproxy.policy import (
    LONGEST_RECHECK,
    OLDEST_CDIFF,
    PLAUSIBLE_LEAD,
    RECHECK,
    Choice,
    Known,
    choose,
    is_not_modified,
    must_probe,
    negative_ttl,
    shown_last_modified,
)

FOR_EVER = 2**31 - 1
NOW = 1_700_000_000.0
REFRESH = 300.0
STIME = 1_600_000_000
UPLOADED = STIME + 7200.0


def known(**values: object) -> Known:
    """Version 10 is cached, advertised by a fresh answer, and was seen at the origin just now."""
    current = Known(
        now=NOW,
        refresh=REFRESH,
        advertised=10,
        advertised_is_fresh=True,
        cached=10,
        seen=10,
        seen_at=NOW,
        probed_advertised=10,
        probed_for=10,
    )
    return replace(current, **values)  # type: ignore[arg-type]


WITHOUT_DNS = {"advertised": None, "advertised_is_fresh": False}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, False, id="trap 3: what is advertised is cached"),
        pytest.param({"seen_at": 0.0, "seen": None}, False, id="trap 3: however old it is"),
        pytest.param({"cached": 11}, False, id="the cache is ahead of DNS"),
        pytest.param({"cached": None, "seen": None}, True, id="nothing is known"),
        pytest.param({"cached": None, "seen": None, **WITHOUT_DNS}, True, id="nothing, and no DNS"),
        pytest.param({"cached": None}, False, id="a head that was seen is as good as a cached CVD"),
        pytest.param({"advertised": 11}, True, id="trap 5: DNS has news"),
        pytest.param(
            {"advertised": 11, "probed_advertised": 11, "probed_for": 11},
            False,
            id="trap 5: no loop while the CDN lags",
        ),
        pytest.param(
            {"advertised": 11, "probed_advertised": 11, "probed_for": 11, "seen_at": NOW - RECHECK},
            True,
            id="trap 5: once a minute while the CDN lags",
        ),
        pytest.param(
            {"advertised": 12, "probed_advertised": 11, "probed_for": 11},
            True,
            id="trap 5: further news are news again",
        ),
        pytest.param({"advertised_is_fresh": False}, False, id="DNS silent: the origin's answer counts"),
        pytest.param(
            {"advertised_is_fresh": False, "seen_at": NOW - REFRESH},
            True,
            id="trap 35: DNS silent: the origin is asked once in a refresh interval",
        ),
        pytest.param({**WITHOUT_DNS, "seen_at": NOW - REFRESH}, True, id="trap 35: without DNS, the same"),
        pytest.param({**WITHOUT_DNS, "seen_at": NOW - REFRESH + 1}, False, id="trap 35: not more often"),
        pytest.param({"demanded": 10}, False, id="trap 25: the demand is met"),
        pytest.param({"demanded": 11}, True, id="trap 25: a demand may be ahead of the gateway's DNS"),
        pytest.param({"demanded": 10 + PLAUSIBLE_LEAD}, True, id="a demand that is plausible"),
        pytest.param({"demanded": 11 + PLAUSIBLE_LEAD}, False, id="an invented demand is not news"),
        pytest.param(
            {"demanded": 99999, "seen_at": NOW - RECHECK}, True, id="an invented demand, once a minute"
        ),
        pytest.param({"demanded": 11, "probed_for": 11}, False, id="a demand that was looked into"),
        pytest.param(
            {"advertised": 11, "demanded": 14, "probed_for": 14},
            True,
            id="an invented demand does not hide what is advertised",
        ),
        pytest.param(
            {"advertised": 11, "probed_advertised": FOR_EVER, "probed_for": FOR_EVER},
            True,
            id="DNS lied when the origin was asked, and now has news",
        ),
        pytest.param(
            {"advertised": FOR_EVER, "probed_advertised": FOR_EVER, "probed_for": FOR_EVER},
            False,
            id="DNS goes on lying",
        ),
        pytest.param(
            {"demanded": 11, "probed_for": FOR_EVER}, True, id="an invented demand does not hide the next one"
        ),
        pytest.param({"seen": 9}, False, id="an old head beside a newer cached CVD"),
        pytest.param({"advertised": 12, "patched": 12}, False, id="patches lead to what is advertised"),
        pytest.param({"advertised": 12, "patched": 13}, False, id="patches lead further"),
        pytest.param({"advertised": 12, "patched": 11}, True, id="patches don't lead far enough"),
        pytest.param(
            {"advertised": 12, "patched": 11, "probed_advertised": 12, "probed_for": 12},
            False,
            id="the same, and the origin was asked",
        ),
        pytest.param({"patched": 12, **WITHOUT_DNS}, False, id="patches, no DNS, the origin's answer counts"),
        pytest.param(
            {"patched": 12, **WITHOUT_DNS, "seen_at": NOW - REFRESH},
            True,
            id="patches and no DNS: the origin is asked once in a refresh interval",
        ),
    ],
)
def test_when_the_origin_is_asked_for_its_header(values: dict[str, object], expected: bool) -> None:
    assert must_probe(known(**values)) is expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, Choice(10, True, False), id="the cached one is current"),
        pytest.param({"cached": None, "seen": None}, None, id="none to be had"),
        pytest.param({"cached": None}, Choice(10, False, False), id="only the head is here"),
        pytest.param({"seen": 11}, Choice(11, False, False), id="trap 13: a newer one was seen"),
        pytest.param({"seen": 11, "can_fetch": False}, Choice(10, True, True), id="trap 29: cool-down"),
        pytest.param(
            {"cached": None, "seen": 11, "can_fetch": False},
            Choice(11, False, False),
            id="cool-down and nothing cached: the head is all there is",
        ),
        pytest.param({"seen": 9}, Choice(10, True, False), id="trap 4: never backwards"),
        pytest.param({"seen": None}, Choice(10, True, False), id="no head was ever seen"),
        pytest.param(
            {"advertised": 11, "probed_advertised": 11, "probed_for": 11},
            Choice(10, True, False),
            id="trap 5: what the CDN has now is all there is",
        ),
        pytest.param({"advertised": 11}, Choice(10, True, True), id="trap 30: the probe failed"),
        pytest.param(
            {**WITHOUT_DNS, "seen_at": NOW - REFRESH}, Choice(10, True, True), id="no DNS, no origin: stale"
        ),
        pytest.param(
            {"advertised": 12, "patched": 12}, Choice(12, True, False, by_patches=True), id="patches lead on"
        ),
        pytest.param(
            {"advertised": 12, "patched": 12, "seen": 12},
            Choice(12, True, False, by_patches=True),
            id="patches before a whole file of the same version",
        ),
        pytest.param({"patched": 10}, Choice(10, True, False), id="patches that lead nowhere"),
        pytest.param(
            {"advertised": 12, "patched": 11, "seen": 12},
            Choice(12, False, False),
            id="patches end before what was seen",
        ),
        pytest.param(
            {"advertised": 12, "patched": 11, "seen": 12, "can_fetch": False},
            Choice(11, True, True, by_patches=True),
            id="trap 29: cool-down, and patches lead on a little",
        ),
        pytest.param(
            {"advertised": 12, "patched": 11},
            Choice(11, True, True, by_patches=True),
            id="trap 30: a patch is missing, and the probe failed",
        ),
        pytest.param(
            {"advertised": 12, "patched": 11, "probed_advertised": 12, "probed_for": 12},
            Choice(11, True, False, by_patches=True),
            id="trap 5: patch and CVD are late",
        ),
    ],
)
def test_the_version_for_all_clients(values: dict[str, object], expected: Choice | None) -> None:
    assert choose(known(**values)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, False, id="DNS says that it is the newest"),
        pytest.param({"advertised": 12}, True, id="DNS is ahead"),
        pytest.param({"hidden": 12}, True, id="held"),
        pytest.param({"proven": 11}, True, id="a newer one was here"),
        pytest.param({**WITHOUT_DNS, "hears_dns": False}, True, id="DNS silent, or not asked"),
        pytest.param({"hears_dns": False}, True, id="offline: clients may still ask DNS"),
    ],
)
def test_clients_may_have_heard_of_a_newer_version(values: dict[str, object], expected: bool) -> None:
    assert known(**values).may_be_behind(10) is expected


@pytest.mark.parametrize(
    ("fruitless", "pause"),
    [
        (0, RECHECK),
        (1, RECHECK),
        (2, 2 * RECHECK),
        (3, 4 * RECHECK),
        (4, 8 * RECHECK),
        (5, LONGEST_RECHECK),
        pytest.param(10**5, LONGEST_RECHECK, id="a database that is advertised and gone"),
    ],
)
def test_trap_5_fruitless_looks_become_rare(fruitless: int, pause: float) -> None:
    lagging = known(advertised=11, probed_advertised=11, probed_for=11, fruitless=fruitless)
    assert not must_probe(replace(lagging, now=NOW + pause - 1))
    assert must_probe(replace(lagging, now=NOW + pause))
    assert must_probe(replace(lagging, advertised=12)), "news are looked into at once"
    assert must_probe(replace(lagging, now=NOW - 3600)), "the clock has been set back since the last look"


@pytest.mark.parametrize(
    ("refresh", "fruitless", "pause"),
    [
        (300.0, 0, 300),
        (300.0, 1, 300),
        (300.0, 2, 600),
        (300.0, 3, LONGEST_RECHECK),
        pytest.param(7200.0, 5, 7200, id="a long refresh interval stays as it is"),
    ],
)
def test_trap_35_without_dns_fruitless_looks_become_rare(
    refresh: float, fruitless: int, pause: float
) -> None:
    state = known(**WITHOUT_DNS, refresh=refresh, fruitless=fruitless)
    assert not must_probe(replace(state, now=NOW + pause - 1))
    assert must_probe(replace(state, now=NOW + pause))


def test_trap_5_ten_requests_an_hour_at_most_while_the_cdn_lags() -> None:
    looks, state = 0, known(advertised=11, seen_at=NOW - RECHECK)
    for second in range(0, 3600, 5):
        state = replace(state, now=NOW + second)
        if must_probe(state):
            looks += 1
            state = replace(
                state, seen_at=state.now, probed_advertised=11, probed_for=11, fruitless=state.fruitless + 1
            )
    assert 5 <= looks <= 10


@pytest.mark.parametrize(
    ("cached", "patched", "held"),
    [(None, None, 0), (10, None, 10), (10, 12, 12), (10, 10, 10)],
)
def test_what_can_be_served_from_the_cache(cached: int | None, patched: int | None, held: int) -> None:
    assert known(cached=cached, patched=patched).held == held


versions = st.none() | st.integers(1, 30)


def with_patches(state: Known, patches: int | None) -> Known:
    """Patches lead on from a cached CVD, or there is none of either."""
    if state.cached is None or patches is None:
        return state
    return replace(state, patched=state.cached + patches)


facts = st.builds(
    Known,
    now=st.just(NOW),
    refresh=st.floats(1, 86400),
    advertised=versions,
    advertised_is_fresh=st.booleans(),
    demanded=versions,
    cached=versions,
    seen=versions,
    seen_at=st.floats(0, NOW),
    probed_advertised=st.integers(0, 30),
    probed_for=st.integers(0, 30),
    fruitless=st.integers(0, 2000),
    can_fetch=st.booleans(),
)
knowledge = st.builds(with_patches, facts, st.none() | st.integers(0, 5))


@given(knowledge)
def test_traps_4_and_13_never_older_than_the_cache_and_never_invented(state: Known) -> None:
    choice = choose(state)
    if choice is None:
        assert not state.cached
        assert not state.seen
    else:
        assert choice.version >= state.held >= (state.cached or 0)
        assert choice.version in (state.cached, state.patched, state.seen)
        assert choice.is_cached == (choice.version == state.held)
        assert choice.by_patches == (choice.is_cached and choice.version != state.cached)


@given(knowledge)
def test_trap_5_an_answer_ends_the_questions(state: Known) -> None:
    asked = replace(
        state,
        seen=state.seen or 1,
        seen_at=state.now,
        probed_advertised=state.advertised or 0,
        probed_for=state.wanted,
    )
    assert not must_probe(asked)


@given(knowledge)
def test_nothing_is_fetched_that_patches_lead_to(state: Known) -> None:
    choice = choose(state)
    if choice is not None and not choice.is_cached:
        assert choice.version > state.held


@given(knowledge)
def test_what_is_current_is_not_stale(state: Known) -> None:
    choice = choose(state)
    if choice is not None and not must_probe(state) and choice.version >= state.best:
        assert not choice.stale


@given(knowledge, st.integers(1, 10**6))
def test_what_one_client_demands_changes_no_version_for_the_others(state: Known, demanded: int) -> None:
    one, other = choose(replace(state, demanded=demanded)), choose(replace(state, demanded=None))
    assert (one and one.version) == (other and other.version)


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        pytest.param(UPLOADED, UPLOADED, id="trap 8: the upload time as it is"),
        pytest.param(STIME - 1.0, STIME, id="trap 7: never before the build"),
        pytest.param(0.0, STIME, id="trap 7: never the epoch"),
        pytest.param(None, STIME, id="the origin says nothing"),
    ],
)
def test_last_modified_for_clients(origin: float | None, shown: float) -> None:
    assert shown_last_modified(origin, STIME) == shown


@given(st.none() | st.floats(0, 2e9), st.integers(0, 2 * 10**9), st.integers(0, 2 * 10**9))
def test_trap_7_a_newer_version_is_never_hidden_by_its_last_modified(
    origin: float | None, older: int, newer: int
) -> None:
    if older < newer:
        assert shown_last_modified(origin, newer) > older


@pytest.mark.parametrize("is_newest", [True, False])
@pytest.mark.parametrize(
    ("since", "expected_if_newest", "expected_if_not"),
    [
        pytest.param(STIME - 86400, False, False, id="the client has an older version"),
        pytest.param(STIME - 1, False, False, id="a second older"),
        pytest.param(STIME, True, True, id="trap 6: the client has this very version"),
        pytest.param(STIME + 1, False, True, id="trap 30: it may have a newer one"),
        pytest.param(UPLOADED - 1, False, True, id="trap 8: a DatabaseCustomURL's time before the upload"),
        pytest.param(UPLOADED, True, True, id="trap 8: downloaded at the upload"),
        pytest.param(UPLOADED + 86400, True, True, id="a newer version, or a later download"),
        pytest.param(0, False, False, id="cvdupdate's epoch"),
    ],
)
def test_when_a_cvd_is_not_modified(
    since: float, expected_if_newest: bool, expected_if_not: bool, is_newest: bool
) -> None:
    expected = expected_if_newest if is_newest else expected_if_not
    assert is_not_modified(since, STIME, UPLOADED, is_newest) is expected


@given(st.integers(0, 2 * 10**9), st.integers(0, 2 * 10**9), st.none() | st.floats(0, 2e9), st.booleans())
def test_traps_6_and_9_an_older_client_never_gets_a_304(
    client: int, stime: int, origin: float | None, is_newest: bool
) -> None:
    if client < stime:
        assert not is_not_modified(client, stime, shown_last_modified(origin, stime), is_newest)


@pytest.mark.parametrize(
    ("kind", "version", "advertised", "seconds"),
    [
        pytest.param(Kind.CDIFF, 100, 100, 30, id="trap 16: the newest patch is late"),
        pytest.param(Kind.CDIFF, 101, 100, 30, id="trap 16: the next one"),
        pytest.param(Kind.CDIFF, 99, 100, 30, id="trap 16: the one before"),
        pytest.param(Kind.CDIFF, 98, 100, 120, id="a patch that should be there"),
        pytest.param(Kind.CDIFF, 1000 - OLDEST_CDIFF, 1000, 120, id="the last that may come back"),
        pytest.param(Kind.CDIFF, 999 - OLDEST_CDIFF, 1000, 3600, id="trap 16: gone for good"),
        pytest.param(Kind.CDIFF, 5, None, 30, id="nothing is advertised"),
        pytest.param(Kind.CVD_SIGN, 100, 100, 120, id="trap 23: a signature is published later"),
        pytest.param(Kind.CDIFF_SIGN, 5, 1000, 120, id="trap 23: an old signature too"),
        pytest.param(Kind.CVD_SIGN, 5, None, 120, id="trap 23: without DNS"),
    ],
)
def test_how_long_a_404_is_remembered(
    kind: Kind, version: int, advertised: int | None, seconds: float
) -> None:
    assert negative_ttl(ObjectId("daily", version, kind), advertised) == seconds


def test_an_invented_version_is_not_looked_into_at_once() -> None:
    """Else one of DNS that counts up would cost a request for each answer."""
    invented = {"advertised": 10**6 + 1, "probed_advertised": 10**6, "probed_for": 10**6}
    assert not must_probe(known(**invented))
    assert must_probe(known(**invented, seen_at=NOW - RECHECK))
    assert must_probe(known(advertised=11, probed_advertised=10**6, probed_for=10**6))


@pytest.mark.parametrize(
    ("values", "choice", "probes"),
    [
        pytest.param({"cached": None, "seen": 9}, None, False, id="an older one is no offer"),
        pytest.param(
            {"cached": None, "seen": 9, "seen_at": NOW - RECHECK}, None, True, id="asked again later"
        ),
        pytest.param({"cached": None, "seen": 11}, Choice(11, False, False), False, id="a newer one is"),
        pytest.param({"cached": 9, "seen": 9}, Choice(9, True, True), False, id="what is left is stale"),
        pytest.param({"cached": 8, "seen": 9}, Choice(8, True, True), False, id="even then"),
        pytest.param({"cached": 8, "patched": 10}, Choice(10, True, False, True), False, id="patches count"),
        pytest.param({"cached": None, "seen": None, "seen_at": 0.0}, None, True, id="never asked"),
    ],
)
def test_nothing_older_than_what_was_proven(
    values: dict[str, object], choice: Choice | None, probes: bool
) -> None:
    now = known(proven=10, **values)
    assert must_probe(now) is probes
    assert choose(now) == choice
    assert not now.is_newest(9)


def test_a_hold_is_below_what_was_proven() -> None:
    held = known(proven=10, cached=9, seen=9).under(9)
    assert choose(held) == Choice(9, is_cached=True, stale=False)
    assert not held.is_newest(9), "some client may have the proven one"
