"""Agents: in whose name the gateway asks for what nobody asked yet (docs/protocol.md 9.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.notes import Notes
from clamproxy.origin.agents import LONGEST_REMEMBERED, MOST_VERSIONS, Agents
from tests.support.clock import Clock
from tests.support.notes import DictKeeper
from tests.support.stored import DAY
from tests.support.strategies import json_values

MACHINE = " (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 00000000-0000-4000-8000-000000000000)"
CONFIGURED = "ClamAV/1.4.3 (OS: Linux, ARCH: x86_64)"


def agent(version: str) -> str:
    """What a freshclam sends."""
    return f"ClamAV/{version}{MACHINE}"


class AgentsHarness:
    """Agents with a clock and a notebook."""

    def __init__(self, configured: str | None = None) -> None:
        self.clock = Clock()
        self.saved: dict[str, Any] = {}
        self.configured = configured
        self.saves = 0
        self.agents = self.make()

    def make(self) -> Agents:
        return Agents(self.configured, Notes(self, None, "agent"), self.clock)

    def notes(self, prefix: str) -> dict[str, Any]:
        return dict(self.saved)

    def set_note(self, key: str, value: Any) -> None:
        self.saves += 1
        DictKeeper(self.saved).set_note(key, value)

    def restart(self) -> None:
        self.agents = self.make()

    def asks(self, is_admitted: Callable[[str], bool] = lambda _: True) -> str | None:
        """The User-Agent that is used."""
        requester = self.agents.requester(is_admitted)
        return requester.user_agent if requester else None


@pytest.fixture
def harness() -> AgentsHarness:
    return AgentsHarness()


@pytest.mark.parametrize(
    ("seen", "used"),
    [
        ([], None),
        ([agent("1.4.6")], agent("1.4.6")),
        pytest.param([agent("1.5.3"), agent("1.4.6")], agent("1.5.3"), id="the newest"),
        pytest.param([agent("1.4.6"), agent("1.5.3")], agent("1.5.3"), id="the newest, seen later"),
        pytest.param([agent("1.4.9"), agent("1.4.10")], agent("1.4.10"), id="numbers, not texts"),
        pytest.param([agent("1.5"), agent("1.5.1")], agent("1.5.1"), id="a release without a third number"),
        pytest.param([agent("1.0.0")], agent("1.0.0"), id="the oldest that is supported"),
        pytest.param([agent("0.103.12"), agent("0.105.2")], None, id="no longer supported"),
        pytest.param([agent("0.103.12"), agent("1.0.9")], agent("1.0.9"), id="one is supported"),
        pytest.param([agent("1.5.0-rc")], agent("1.5.0-rc"), id="a release candidate"),
        pytest.param([agent("1.4.6+dfsg")], agent("1.4.6+dfsg"), id="a distribution's"),
        pytest.param([None], None, id="no User-Agent"),
        pytest.param(["", "curl/8.5.0", "CVDUPDATE/1.2.0 (x)", "Mozilla/5.0"], None, id="other programs"),
        pytest.param(["clamav/1.4.6", " ClamAV/1.4.6", "xClamAV/1.4.6"], None, id="almost"),
        pytest.param(
            ["ClamAV/", "ClamAV/x", "ClamAV/1", "ClamAV/1.4.6.7", "ClamAV/1."], None, id="no number"
        ),
        pytest.param(["ClamAV/99999.1.1", "ClamAV/1.\u0665"], None, id="numbers that nobody would write"),
    ],
)
def test_the_newest_supported_freshclam(
    harness: AgentsHarness, seen: list[str | None], used: str | None
) -> None:
    for user_agent in seen:
        harness.agents.see(user_agent)
    assert harness.asks() == used


@pytest.mark.parametrize(
    "user_agent",
    [
        pytest.param("ClamAV/1.4.6 \xff", id="a byte beyond ASCII"),
        pytest.param("ClamAV/1.4.6\0", id="a zero"),
        pytest.param("ClamAV/1.4.6" + "x" * 5000, id="longer than any freshclam's (docs/protocol.md 1.1)"),
    ],
)
def test_what_no_freshclam_sends_is_never_used(harness: AgentsHarness, user_agent: str) -> None:
    harness.agents.see(user_agent)
    assert harness.asks() is None
    harness.saved["1.4.6"] = {"user_agent": user_agent, "seen_at": harness.clock.now}
    harness.restart()
    assert harness.asks() is None


def test_the_cdn_decides_who_is_admitted(harness: AgentsHarness) -> None:
    for version in ("1.5.3", "1.4.6", "1.0.9"):
        harness.agents.see(agent(version))
    assert harness.asks(lambda version: version != "ClamAV/1.5.3") == agent("1.4.6")
    assert harness.asks(lambda _: False) is None


@pytest.mark.parametrize(
    ("seen", "used"),
    [
        ([], CONFIGURED),
        pytest.param([agent("0.103.2")], CONFIGURED, id="an old one came by"),
        pytest.param([agent("1.0.9")], agent("1.0.9"), id="a client's own comes first"),
    ],
)
def test_the_configured_agent(seen: list[str], used: str) -> None:
    harness = AgentsHarness(CONFIGURED)
    for user_agent in seen:
        harness.agents.see(user_agent)
    assert harness.asks() == used


def test_the_configured_agent_is_subject_to_cooldowns() -> None:
    harness = AgentsHarness(CONFIGURED)
    harness.agents.see(agent("1.5.3"))
    assert harness.asks(lambda version: version != "ClamAV/1.5.3") == CONFIGURED
    assert harness.asks(lambda version: version not in ("ClamAV/1.5.3", "ClamAV/1.4.3")) is None


def test_a_restart_forgets_nothing(harness: AgentsHarness) -> None:
    harness.agents.see(agent("1.4.6"))
    harness.agents.see(agent("1.5.3"))
    harness.restart()
    assert harness.asks() == agent("1.5.3")


def test_what_comes_by_all_day_is_not_written_each_time(harness: AgentsHarness) -> None:
    for _ in range(1000):
        harness.agents.see(agent("1.4.6"))
        harness.clock.now += 1
    assert harness.saves == 1


def test_what_does_not_come_by_is_forgotten(harness: AgentsHarness) -> None:
    harness.agents.see(agent("1.5.3"))
    for _ in range(int(LONGEST_REMEMBERED / DAY) + 1):
        harness.agents.see(agent("1.4.6"))
        harness.clock.now += DAY
    harness.agents.see(agent("1.4.6"))
    assert harness.asks() == agent("1.4.6")
    assert set(harness.saved) == {"1.4.6"}


def test_what_comes_by_now_and_then_is_remembered(harness: AgentsHarness) -> None:
    for _ in range(4):
        harness.agents.see(agent("1.5.3"))
        harness.clock.now += LONGEST_REMEMBERED / 2
        harness.agents.see(agent("1.4.6"))
    assert harness.asks() == agent("1.5.3")


def test_clients_cannot_fill_the_memory(harness: AgentsHarness) -> None:
    for number in range(10 * MOST_VERSIONS):
        harness.agents.see(agent(f"2.{number}.0"))
        harness.clock.now += 1
    assert len(harness.saved) == MOST_VERSIONS
    assert harness.asks() == agent(f"2.{10 * MOST_VERSIONS - 1}.0")


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "x",
        [],
        {},
        {"user_agent": "curl/8.5.0", "seen_at": 1.0},
        {"user_agent": 5, "seen_at": 1.0},
        {"user_agent": agent("1.4.6")},
        {"user_agent": agent("1.4.6"), "seen_at": "x"},
        pytest.param({"user_agent": agent("0.103.2"), "seen_at": 1_699_999_999}, id="not supported"),
        pytest.param({"user_agent": agent("1.4.6"), "seen_at": 10**400}, id="beyond all floats"),
        pytest.param({"user_agent": agent("1.4.6"), "seen_at": float("nan")}, id="NaN"),
    ],
)
def test_a_note_that_makes_no_sense_is_dropped(harness: AgentsHarness, value: Any) -> None:
    harness.saved["1.4.6"] = value
    harness.restart()
    assert harness.asks() is None
    assert harness.saved == {}


notes = st.fixed_dictionaries(
    {},
    optional={
        "user_agent": json_values | st.sampled_from([agent("1.4.6"), agent("0.1")]),
        "seen_at": json_values,
    },
)


@given(st.dictionaries(st.sampled_from(["1.4.6", "1.5.0", "", "x"]), notes | json_values))
@example({"1.4.6": {"user_agent": agent("1.4.6"), "seen_at": 10**400}})
def test_whatever_was_noted_does_no_harm(saved: dict[str, Any]) -> None:
    harness = AgentsHarness()
    harness.saved = dict(saved)
    harness.restart()
    assert harness.asks() in (None, agent("1.4.6"))
    for version in ("1.4.6", "1.6.0"):
        harness.agents.see(agent(version))
    assert harness.asks() == agent("1.6.0")
    harness.restart()
    assert harness.asks() == agent("1.6.0")
