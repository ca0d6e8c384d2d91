"""What gateways of a site tell each other, and how little of it is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.origin.cooldown import FailureKind
from clamproxy.sharing.topics import (
    LONGEST_WAIT,
    MOST_NOTES,
    TOPICS,
    Reading,
    told,
    understood,
)
from tests.support.releases import Releases

NOW = 1_700_000_000.0
AHEAD = -3600.0
"""The other gateway's clock is an hour fast."""
THEIRS = NOW - AHEAD
HEADER = Releases().cvd(7)[:512].decode("ascii")
AGENT = "ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 00000000-0000-4000-8000-000000000000)"
RECORD = "1.4.6:62:27800:1700000000:0:90:49192:339"


def cooldown(**changes: Any) -> dict[str, Any]:
    usual = {
        "until": THEIRS + 60,
        "failures": 1,
        "failure": "rate limited",
        "reason": "429",
        "noted_at": THEIRS,
    }
    return {**usual, **changes}


def head(seen_at: float) -> dict[str, Any]:
    return {"header": HEADER, "seen_at": seen_at, "advertised": 7, "wanted": 0, "fruitless": 2}


GOOD: dict[str, tuple[str, Any, Any]] = {
    "advertised": ("daily", [27800, THEIRS - 5], [27800, NOW - 5]),
    "record": ("current.cvd.clamav.net", RECORD, RECORD),
    "head": ("daily", head(THEIRS), head(NOW)),
    "headless": ("daily", [THEIRS - 5, 60.0], [NOW - 5, 60.0]),
    "missing": ("daily-27801.cdiff", [THEIRS - 5, 60.0], [NOW - 5, 60.0]),
    "first-seen": ("daily", {"27799": 0.0, "27800": THEIRS - 9}, {"27799": 0.0, "27800": NOW - 9}),
    "agent": ("1.4.6", {"user_agent": AGENT, "seen_at": THEIRS}, {"user_agent": AGENT, "seen_at": NOW}),
    "cld": ("daily", THEIRS - 1, NOW - 1),
    "stuck": (
        "daily-27800.cdiff",
        {"failures": 4, "since": THEIRS - 99, "last": THEIRS},
        {"failures": 4, "since": NOW - 99, "last": NOW},
    ),
    "cooldown": ("/daily.cvd", cooldown(), cooldown(until=NOW + 60, noted_at=NOW)),
    "budget": ("/daily.cvd", [THEIRS - 60, THEIRS - 1], [NOW - 60, NOW - 1]),
}
BAD: list[tuple[str, str, Any]] = [
    ("advertised", "daily", [10**12, THEIRS]),
    ("advertised", "daily", [True, THEIRS]),
    ("advertised", "daily", [27800, float("nan")]),
    ("advertised", "daily", [27800, 1e300]),
    ("advertised", "daily", [27800, -1]),
    ("advertised", "DAILY", [27800, THEIRS]),
    ("advertised", "daily/../main", [27800, THEIRS]),
    ("advertised", "daily", None),
    ("record", "current.cvd.clamav.net", "x" * 300),
    ("record", "current.cvd.clamav.net", RECORD + "\n"),
    ("record", "current.cvd.clamav.net", RECORD.replace("27800", "2000000000")),
    ("record", "current.cvd.clamav.net", RECORD.replace("1700000000", "1900000000")),
    ("head", "daily", {"header": "ClamAV-VDB:" + "x" * 501, "seen_at": THEIRS}),
    ("head", "daily", {"header": HEADER, "seen_at": "now"}),
    ("head", "daily", {**head(THEIRS), "wanted": 10**12}),
    ("head", "daily", {**head(THEIRS), "fruitless": "1"}),
    ("missing", "daily-27801.cdiff", [THEIRS, 1e9]),
    ("missing", "daily-27801.cdiff", [THEIRS, float("nan")]),
    ("missing", "daily.cvd", [THEIRS, 60]),
    ("first-seen", "daily", {str(version): THEIRS for version in range(1, 1100)}),
    ("first-seen", "daily", {"-1": THEIRS}),
    ("agent", "1.4.6", {"user_agent": AGENT + "\r\nX: y", "seen_at": THEIRS}),
    ("agent", "1.4.6", {"user_agent": "x" * 300, "seen_at": THEIRS}),
    ("stuck", "daily-27800.cdiff", {"failures": -4, "since": THEIRS, "last": THEIRS}),
    ("stuck", "../daily-27800.cdiff", {"failures": 4, "since": THEIRS, "last": THEIRS}),
    ("cooldown", "origin", cooldown(failure="unreachable")),
    ("cooldown", "/daily.cvd", cooldown(failure="no room")),
    ("cooldown", "/daily.cvd", cooldown(failure=["forbidden"])),
    ("cooldown", "/daily.cvd", cooldown(until="tomorrow")),
    ("cooldown", "/" + "x" * 500, cooldown()),
    ("budget", "/daily.cvd", [THEIRS] * 30),
    ("budget", "/daily.cvd", []),
    ("budget", "/daily.cvd", "123"),
    ("quarantine", "daily", 1),
    ("counter", "requests", 10**30),
]


def read(notes: Any) -> dict[str, dict[str, Any]]:
    return understood(notes, Reading(AHEAD, NOW, {"daily": 27799}))


@pytest.mark.parametrize("topic", GOOD)
def test_what_a_gateway_tells_is_understood_in_own_time(topic: str) -> None:
    key, theirs, ours = GOOD[topic]
    assert read(json.loads(json.dumps({topic: {key: theirs}}))) == {topic: {key: ours}}


@pytest.mark.parametrize(("topic", "key", "value"), BAD)
def test_what_no_gateway_tells_is_left_out(topic: str, key: str, value: Any) -> None:
    good = {name: {key: theirs} for name, (key, theirs, _) in GOOD.items()}
    found = read({"x": 1, **good, topic: {key: value}})
    assert key not in found.get(topic, {})
    assert len(found) >= len(GOOD) - 1


def test_no_wait_is_longer_than_a_day() -> None:
    found = read({"cooldown": {"/daily.cvd": cooldown(until=2.0**39, noted_at=2.0**39)}})
    assert found["cooldown"]["/daily.cvd"]["until"] == NOW + LONGEST_WAIT
    assert found["cooldown"]["/daily.cvd"]["noted_at"] == NOW


def test_a_hundred_thousand_keys_are_no_burden() -> None:
    many = {f"/{'abcdefghij'[n % 10]}-{n + 1}.cdiff": [THEIRS] for n in range(100_000)}
    found = read({"budget": many, "advertised": {"daily": [27800, THEIRS]}})
    assert sum(map(len, found.values())) <= MOST_NOTES


def test_a_version_far_ahead_of_what_dns_says_does_not_count() -> None:
    notes = {"advertised": {"daily": [27900, THEIRS], "main": [99, THEIRS]}}
    assert read(notes) == {"advertised": {"main": [99, NOW]}}


def test_own_notes_that_concern_only_this_gateway_are_not_told() -> None:
    own: dict[str, dict[str, Any]] = {
        "cooldown": {"origin": cooldown(failure="unreachable"), "/daily.cvd": cooldown()},
        "traffic": {"hours": [0] * 24},
        "site": {"0123456789abcdef/advertised/daily": [27800, NOW]},
    }
    assert told(lambda topic: own.get(topic, {})) == {"cooldown": {"/daily.cvd": cooldown()}}


def test_what_matters_most_is_told_first() -> None:
    own = {
        "budget": {f"/daily-{n}.cdiff": [NOW] for n in range(1, 2000)},
        "advertised": {"daily": [27800, NOW]},
    }
    found = told(lambda topic: own.get(topic, {}))
    assert found["advertised"] == own["advertised"]
    assert len(found["budget"]) == MOST_NOTES - 1


def test_failures_are_named_as_cooldowns_name_them() -> None:
    accepted = {
        str(kind) for kind in FailureKind if read({"cooldown": {"/daily.cvd": cooldown(failure=str(kind))}})
    }
    assert accepted == {"forbidden", "rate limited", "server error", "changed", "bad content"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
)


@given(
    st.dictionaries(
        st.sampled_from([topic.name for topic in TOPICS]),
        st.one_of(
            JSON,
            st.dictionaries(st.sampled_from(sorted({key for key, *_ in GOOD.values()})), JSON, max_size=4),
        ),
        max_size=5,
    )
)
def test_anything_else_is_no_trouble(notes: Any) -> None:
    found = read(notes)
    json.dumps(found, allow_nan=False)
