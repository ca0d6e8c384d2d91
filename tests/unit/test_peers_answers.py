"""What other gateways answer is untrusted: nothing of it breaks this one, and nothing bad gets through."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.peers.answers import AnswerError, parse_machines, parse_status
from tests.harness.status import machine

NOW = 1_790_000_000.0
MACHINE = replace(machine(1, daily=2), name="web01.example.net", group="Büro 2", cloned=True).to_json()
STATUS: dict[str, Any] = {
    "gateway": {"version": "0.2.0", "now": NOW, "started_at": NOW, "host": "clamproxy", "offline": False},
    "ready": True,
    "problems": [],
    "databases": [{"name": "daily", "advertised": 4, "cached": None, "reached": 3, "size": None}],
    "fleet": {
        **{"enabled": True, "total": 3, "up_to_date": 1, "behind": 1, "unknown": 1, "overdue": 0},
        **{"end_of_life": 0, "behind_for": 86400, "machines": []},
    },
    "peers": [{"name": "a peer of a peer"}],
}
LONG = "x" * 5000
BAD_TEXTS: list[Any] = [
    "a\nb",
    "a\x00b",
    "a\x1b[31m",
    "a\u202eb",
    "a\u2028b",
    "a\xa0b",
    LONG,
    5,
    None,
    True,
    ["a"],
    {"a": "b"},
]
BAD_DATABASES: list[Any] = [None, [], {"<b>": {}}, {"daily": {}}, {"daily": None}, "x"]
BAD_ERRORS: list[Any] = ["x", [], 7]
BAD_TIMES: list[Any] = [-1, 1e300, float("nan"), float("inf"), "1", None, True, [1]]


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def listed(*machines: Any) -> bytes:
    return body({"total": len(machines), "machines": list(machines)})


def test_a_status() -> None:
    status = parse_status(body(STATUS))
    assert (status.ready, status.gateway.version, status.fleet.total) == (True, "0.2.0", 3)
    assert [one.model_dump() for one in status.databases] == [
        {"name": "daily", "advertised": 4, "reached": 3}
    ]


def test_problems_are_short_and_few() -> None:
    problems = ["a\nb\x1b[31m", *[LONG + " " + LONG] * 50]
    lines = parse_status(body({**STATUS, "problems": problems})).lines()
    assert lines[0] == "a b?[31m"
    assert (len(lines), max(map(len, lines))) == (20, 300)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"[" * 100_000,
        body({**STATUS, "ready": "yes"}),
        body({**STATUS, "ready": 1}),
        body({**STATUS, "problems": "none"}),
        body({**STATUS, "problems": [{}]}),
        body({**STATUS, "gateway": {"version": "1\n", "now": NOW}}),
        body({**STATUS, "databases": [{"name": "<b>"}]}),
        body({**STATUS, "databases": [{"name": "daily", "reached": -1}]}),
        body({**STATUS, "databases": STATUS["databases"] * 1000}),
        body({**STATUS, "fleet": {**STATUS["fleet"], "total": 10**40}}),
        body({**STATUS, "fleet": {**STATUS["fleet"], "behind": -1}}),
        body({key: value for key, value in STATUS.items() if key != "fleet"}),
    ],
)
def test_no_status(content: bytes) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_status(content)
    assert str(caught.value).startswith("not the status.json of a gateway: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


def test_a_machine_comes_through_unchanged() -> None:
    (found,) = parse_machines(listed(MACHINE), NOW).machines
    assert found.to_json() == MACHINE


def test_an_older_gateway_tells_neither_names_nor_groups() -> None:
    older = {key: value for key, value in MACHINE.items() if key not in ("name", "group", "cloned")}
    (found,) = parse_machines(listed(older), NOW).machines
    assert found.to_json() == {**MACHINE, "name": None, "group": None, "cloned": False}


@pytest.mark.parametrize("name", [None, "x" * 253])
def test_names_may_be_as_long_as_those_of_dns(name: str | None) -> None:
    (found,) = parse_machines(listed({**MACHINE, "name": name, "group": name}), NOW).machines
    assert (found.name, found.group) == (name, name)


def test_times_of_another_clock() -> None:
    late = {**MACHINE, "last_seen": NOW + 1e6, "first_seen": NOW + 1e6}
    (found,) = parse_machines(listed(late), NOW).machines
    assert (found.first_seen, found.last_seen) == (NOW, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        *({"uuid": bad} for bad in [*BAD_TEXTS, ""]),
        *({"address": bad} for bad in BAD_TEXTS),
        *({key: bad} for bad in BAD_TEXTS if bad is not None for key in ("freshclam", "name", "group")),
        *({key: bad} for bad in ("", "x" * 254) for key in ("name", "group")),
        *({"cloned": bad} for bad in (1, "true", None)),
        *({"last_seen": bad} for bad in BAD_TIMES),
        *({"first_seen": bad} for bad in BAD_TIMES),
        *({"end_of_life": bad} for bad in (1, "true", None)),
        *({"databases": bad} for bad in BAD_DATABASES),
        {"databases": {chr(97 + n % 26) * (n // 26 + 1): {} for n in range(200)}},
        {"databases": {"daily": {"version": 2**40, "behind": 0, "behind_since": None, "seen_at": 1}}},
        {"databases": {"daily": {"version": 1, "behind": -1, "behind_since": None, "seen_at": 1}}},
        {"databases": {"daily": {"version": 1, "behind": 1.5, "behind_since": None, "seen_at": 1}}},
        *({"last_error": {"at": 1, "what": bad}} for bad in BAD_TEXTS),
        *({"last_error": bad} for bad in BAD_ERRORS),
    ],
)
def test_a_bad_machine_is_left_out(changes: dict[str, Any]) -> None:
    page = parse_machines(listed(MACHINE, {**MACHINE, **changes}, MACHINE), NOW)
    assert (len(page.machines), page.listed) == (2, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"machines": 7}',
        b'{"machines": {}}',
    ],
)
def test_no_machines(content: bytes) -> None:
    with pytest.raises(AnswerError, match=r"^not the fleet\.json of a gateway$"):
        parse_machines(content, NOW)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
_KEYS = sorted(MACHINE)


@given(st.lists(st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=4), max_size=5))
def test_whatever_a_gateway_says_of_machines(changes: list[dict[str, Any]]) -> None:
    page = parse_machines(listed(*({**MACHINE, **one} for one in changes)), NOW)
    assert page.listed == len(changes)
    for found in page.machines:
        texts = [found.uuid, found.address, found.freshclam or "", found.os or "", found.arch or ""]
        assert all(text.isprintable() and len(text) <= 100 for text in texts)
        assert all(text.isprintable() and len(text) <= 253 for text in (found.name or "", found.group or ""))
        assert isinstance(found.cloned, bool)
        assert 0 <= found.first_seen <= NOW
        assert 0 <= found.last_seen <= NOW
        json.dumps(found.to_json(), allow_nan=False)


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_gateway_answers(content: bytes) -> None:
    with pytest.raises(AnswerError):
        parse_status(content)
