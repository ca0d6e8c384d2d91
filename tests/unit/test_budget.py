"""The budget: what the gateway may ask for by itself, and how often."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.origin.budget import FIRST_PAUSE, PER_FILE, WINDOW, Budget
from tests.support.clock import Clock
from tests.support.notes import notes_in
from tests.support.strategies import json_values

FILE, OTHER = "/daily-7.cdiff", "/daily.cvd"


class BudgetHarness:
    """A budget with a clock and a notebook."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.notes: dict[str, Any] = {}
        self.budget = self.make()

    def make(self) -> Budget:
        return Budget(notes_in(self.notes), self.clock)

    def restart(self) -> None:
        self.budget = self.make()

    def ask_if_allowed(self, path: str = FILE, first_pause: float = FIRST_PAUSE) -> bool:
        """What the gateway does by itself."""
        allowed = self.budget.allows(path, first_pause)
        if allowed:
            self.budget.note(path)
        return allowed


@pytest.fixture
def harness() -> BudgetHarness:
    return BudgetHarness()


def test_what_nobody_asked_for_is_free(harness: BudgetHarness) -> None:
    assert harness.budget.allows(FILE)
    assert harness.budget.used(FILE) == 0


@pytest.mark.parametrize(
    ("first_pause", "moments"),
    [
        pytest.param(60, [0, 60, 240, 780, 2400], id="a minute, tripled each time"),
        pytest.param(10, [0, 10, 40, 130, 400, 3600], id="a shorter first pause"),
        pytest.param(1200, [0, 1200, 3600], id="a pause beyond the hour ends with it"),
    ],
)
def test_each_pause_is_three_times_the_one_before(
    harness: BudgetHarness, first_pause: float, moments: list[int]
) -> None:
    start, asked = harness.clock.now, []
    for moment in range(0, 3601, 10):
        harness.clock.now = start + moment
        if harness.ask_if_allowed(first_pause=first_pause):
            asked.append(moment)
    assert asked == moments


@given(
    st.lists(
        st.tuples(st.floats(0, 2 * WINDOW), st.sampled_from(["itself", "itself", "client", "restart"])),
        max_size=60,
    ),
    st.floats(0, 600),
)
@example([(0.0, "itself")] * 20, 0.0)
@example([(100.0, "itself"), (0.0, "restart")] * 20, 0.0)
def test_never_more_than_the_limit_in_any_hour(steps: list[tuple[float, str]], first_pause: float) -> None:
    harness = BudgetHarness()
    own: list[float] = []
    everything: list[float] = []
    for pause, what in steps:
        harness.clock.now += pause
        now = harness.clock.now
        if what == "restart":
            harness.restart()
        elif what == "client":
            harness.budget.note(FILE)
            everything.append(now)
        elif harness.ask_if_allowed(first_pause=first_pause):
            # What clients asked for counts as well: the rest is left to them.
            assert sum(1 for at in everything if now - at < WINDOW) < PER_FILE
            own.append(now)
            everything.append(now)
        assert sum(1 for at in own if now - at < WINDOW) <= PER_FILE


def test_what_clients_ask_for_counts(harness: BudgetHarness) -> None:
    for _ in range(3 * PER_FILE):
        harness.budget.note(FILE)
    assert harness.budget.used(FILE) >= PER_FILE
    assert not harness.budget.allows(FILE, first_pause=0)
    harness.clock.now += WINDOW - 1
    assert not harness.budget.allows(FILE, first_pause=0)
    harness.clock.now += 1
    assert harness.budget.allows(FILE, first_pause=0)


def test_files_do_not_share_a_budget(harness: BudgetHarness) -> None:
    for _ in range(PER_FILE):
        harness.budget.note(FILE)
    assert not harness.budget.allows(FILE)
    assert harness.budget.allows(OTHER)
    assert harness.budget.used(OTHER) == 0


def test_what_was_asked_long_ago_is_forgotten(harness: BudgetHarness) -> None:
    for number in range(20):
        harness.budget.note(f"/daily-{number}.cdiff")
    harness.clock.now += WINDOW
    harness.budget.note(FILE)
    assert set(harness.notes) == {FILE}


def test_a_restart_forgets_nothing(harness: BudgetHarness) -> None:
    for _ in range(PER_FILE):
        harness.budget.note(FILE)
        harness.clock.now += 100
    harness.restart()
    assert harness.budget.used(FILE) == PER_FILE
    assert not harness.budget.allows(FILE)


def test_times_of_a_clock_that_was_ahead(harness: BudgetHarness) -> None:
    harness.notes[FILE] = [harness.clock.now + 30 * 86400] * PER_FILE
    harness.restart()
    harness.clock.now += WINDOW
    assert harness.budget.allows(FILE)


def test_a_clock_that_is_set_back_holds_nothing_back_for_longer_than_an_hour(harness: BudgetHarness) -> None:
    harness.budget.note(FILE)
    harness.clock.now -= 30 * 86400
    harness.budget.allows(FILE)
    harness.clock.now += WINDOW
    assert harness.budget.allows(FILE)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "x",
        [],
        {},
        ["x"],
        [1.0, None],
        [[1.0]],
        {"0": 1.0},
        pytest.param([float("nan")], id="NaN"),
        pytest.param([10**400], id="a number beyond all floats"),
    ],
)
def test_a_note_that_makes_no_sense_is_dropped(harness: BudgetHarness, value: Any) -> None:
    harness.notes[FILE] = value
    harness.restart()
    assert harness.budget.used(FILE) == 0
    assert harness.budget.allows(FILE)
    assert harness.notes == {}


@given(st.dictionaries(st.sampled_from([FILE, OTHER, "", "/x"]), json_values))
@example({FILE: [float("nan")], OTHER: [1.0]})
@example({FILE: [float("inf"), 5]})
@example({FILE: [10**400]})
@example({FILE: [1_700_000_000, 5]})
def test_whatever_was_noted_an_hour_later_all_is_allowed_and_forgotten(saved: dict[str, Any]) -> None:
    harness = BudgetHarness()
    harness.notes.update(saved)
    harness.restart()
    for path in saved:
        assert harness.budget.used(path) >= 0
    harness.clock.now += WINDOW
    for path in saved:
        assert (harness.budget.used(path), harness.budget.allows(path)) == (0, True)
    harness.budget.note("/new")
    assert set(harness.notes) == {"/new"}
