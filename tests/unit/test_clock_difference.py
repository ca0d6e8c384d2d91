"""The difference between two gateways' clocks, as documents show it."""

from __future__ import annotations

import pytest

from clamproxy.sharing.clock_difference import ClockDifference

NOW = 1_700_000_000.0
HOUR = 3600.0


def heard(*documents: tuple[float, float], first: bool = True) -> float | None:
    """The difference after some documents: how far the writer's clock is ahead, and the delay, in seconds.

    One is written every minute, and this gateway looks every two seconds.
    """
    difference = ClockDifference()
    for number, (ahead, delay) in enumerate(documents):
        written = NOW + 60 * number
        looked_at = None if first and number == 0 else written + delay - 2
        difference = difference.refined(written + ahead, looked_at, written + delay)
    return difference.seconds


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([(0, 1)], 0),
        ([(0, 59)], 0),
        ([(0, 1.5), (0, 0.5)], 0),
        ([(3 * HOUR, 1)], -3 * HOUR + 1),
        ([(3 * HOUR, 1.5), (3 * HOUR, 0.2), (3 * HOUR, 1.9)], -3 * HOUR + 0.2),
        ([(-600, 1)], None),  # an old document, or a clock that is behind
        ([(-600, 1), (-600, 0.5)], 600.5),
        ([(0, 900), (0, 1)], 0),  # the first one was old
        ([(0, 1), (3 * HOUR, 1)], -3 * HOUR + 1),  # its clock was set
        ([(3 * HOUR, 1), (3 * HOUR, 1), (0, 1)], 0),
        ([(0, 1), (-600, 1)], 601),
    ],
)
def test_difference(documents: list[tuple[float, float]], expected: float | None) -> None:
    seconds = heard(*documents)
    assert seconds == (None if expected is None else pytest.approx(expected))


def test_an_outage_of_the_reader_is_no_difference() -> None:
    """The document is an hour old when it is seen, but so is the look before."""
    difference = ClockDifference().refined(NOW, None, NOW + 1).refined(NOW + 60, NOW + 59, NOW + 61)
    difference = difference.refined(NOW + 120, NOW + 119, NOW + 120 + HOUR)
    assert difference.seconds == 0


def test_slow_drift_is_followed() -> None:
    difference = ClockDifference()
    for minute in range(600):
        ahead = minute * 0.1  # a minute within ten hours
        at = NOW + minute * 60
        difference = difference.refined(at + ahead, at - 1, at + 1)
    seconds = difference.seconds
    assert seconds is not None
    assert -60 <= seconds <= -40
