"""The quiet hour, in UTC here."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.notes import Notes
from clamproxy.releases.quiet import HOURS, USUAL_HOUR, QuietHour
from tests.support.clock import Clock
from tests.support.strategies import json_values

HOUR = 3600
MIDNIGHT = 1_700_006_400
"""Some midnight in UTC."""


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class QuietHarness:
    """A quiet hour with a clock and a notebook, at midnight."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.now = MIDNIGHT
        self.saves = 0
        self.saved: dict[str, Any] = {}
        self.quiet = self.make()

    def make(self) -> QuietHour:
        return QuietHour(Notes(self, None, "traffic"), self.clock)

    def notes(self, prefix: str) -> dict[str, Any]:
        return self.saved

    def set_note(self, key: str, value: Any) -> None:
        self.saves += 1
        self.saved[key.removeprefix("traffic/")] = json.loads(json.dumps(value))

    def live(self, days: int, requests: Callable[[int], int]) -> None:
        """Some days, with so many requests in each hour of the day, evenly spread."""
        for number in range(days * HOURS):
            count = requests(number % HOURS)
            for _ in range(count):
                self.quiet.count()
                self.clock.now += HOUR / count
            if not count:
                self.clock.now += HOUR
        self.clock.now = round(self.clock.now)

    def moments(self) -> list[bool]:
        """Whether it is on, in each minute of a day from midnight."""
        found = []
        for _ in range(HOURS * 60):
            found.append(self.quiet.is_now())
            self.clock.now += 60
        return found


@pytest.fixture
def harness() -> QuietHarness:
    return QuietHarness()


def test_at_night_while_nothing_is_known(harness: QuietHarness) -> None:
    assert harness.quiet.hour == USUAL_HOUR == 3


@pytest.mark.parametrize(
    ("requests", "hour"),
    [
        pytest.param(lambda hour: 5, 3, id="always the same"),
        pytest.param(lambda hour: 1 if hour == 14 else 5, 14, id="one hour is quieter"),
        pytest.param(lambda hour: 0 if 8 <= hour < 18 else 5, 8, id="a site that works at night"),
        pytest.param(lambda hour: 0 if hour in (22, 9) else 5, 22, id="of two the nearer one to the night"),
        pytest.param(lambda hour: 60 if hour == 3 else 5, 2, id="all machines are checked at three"),
    ],
)
def test_the_hour_with_the_fewest_requests(
    harness: QuietHarness, requests: Callable[[int], int], hour: int
) -> None:
    harness.live(5, requests)
    harness.quiet.count()
    assert harness.quiet.hour == hour


def test_habits_change(harness: QuietHarness) -> None:
    harness.live(5, lambda hour: 1 if hour == 4 else 10)
    harness.live(30, lambda hour: 1 if hour == 20 else 10)
    assert harness.quiet.hour == 20


def test_an_hour_in_which_nobody_comes_is_counted_as_such(harness: QuietHarness) -> None:
    """Without any request there is nothing that closes an hour but the next request."""
    harness.live(5, lambda hour: 5 if hour == 3 else 10)
    harness.live(20, lambda hour: 0 if 9 <= hour < 12 else 5 if hour == 3 else 10)
    harness.quiet.count()
    assert harness.quiet.hour == 9


def test_the_quiet_hour_lasts_to_its_end_and_at_least_a_quarter(harness: QuietHarness) -> None:
    for _ in range(20):
        harness.clock.now = MIDNIGHT
        minutes = [minute for minute, on in enumerate(QuietHarness().moments()) if on]
        assert minutes == list(range(minutes[0], 4 * 60))
        assert 3 * 60 <= minutes[0] <= 3 * 60 + 45


def test_gateways_do_not_begin_all_at_once() -> None:
    random.seed(5)
    assert len({QuietHarness().moments().index(True) for _ in range(20)}) > 5


def test_habits_are_saved_once_an_hour(harness: QuietHarness) -> None:
    harness.live(1, lambda hour: 100)
    assert harness.saves <= HOURS


def test_a_restart_forgets_nothing(harness: QuietHarness) -> None:
    harness.live(3, lambda hour: 1 if hour == 14 else 5)
    harness.quiet.count()
    assert QuietHarness().quiet.hour == 3
    assert harness.make().hour == 14


@given(json_values | st.lists(json_values, min_size=HOURS, max_size=HOURS))
@example([10**400] * HOURS)
@example([float("nan")] * HOURS)
@example([float("nan"), *[5.0] * (HOURS - 1)])
@example([float("-inf"), *[5.0] * (HOURS - 1)])
@example([1.0] * (HOURS - 1))
def test_whatever_was_noted_does_no_harm(saved: Any) -> None:
    harness = QuietHarness()
    harness.saved["hours"] = saved
    harness.quiet = harness.make()
    harness.live(40, lambda hour: 1 if hour == 14 else 3)
    harness.quiet.count()
    assert harness.quiet.hour == 14
