"""The quiet hour: when clients ask least, so that a large download disturbs least."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from clamproxy.notes import Notes

HOURS = 24
USUAL_HOUR = 3
"""The hour of the day, in local time, that counts as the quiet one as long as nothing is known."""
_WEIGHT_OF_TODAY = 0.3
_NOTE = "hours"


class QuietHour:
    """Counts requests by the hour of the day. Event loop only.

    Args:
        notes: where the history is kept over a restart; it is saved once an hour.
        clock: gives Unix seconds.
    """

    def __init__(self, notes: Notes, clock: Callable[[], float] = time.time) -> None:
        self._notes = notes
        self._clock = clock
        self._usual = notes.load(_parse).get(_NOTE, [0.0] * HOURS)
        self._hour = int(clock() // 3600)
        self._count = 0
        # Gateways must not all start at once, so each waits for a random part of the hour.
        self._offset = random.uniform(0, 0.5) * 3600  # noqa: S311

    def count(self) -> None:
        """Count a request."""
        self._turn()
        self._count += 1

    def is_now(self) -> bool:
        """Whether it is the quiet hour, and this gateway's part of it has come."""
        self._turn()
        now = self._clock()
        return _hour_of_day(now) == self.hour and now % 3600 >= self._offset

    @property
    def hour(self) -> int:
        """The local hour of the day with the fewest requests; of equal ones, the nearest to 3 o'clock."""
        return min(range(HOURS), key=lambda hour: (self._usual[hour], _distance(hour, USUAL_HOUR)))

    def _turn(self) -> None:
        """Add the hours that have passed to the history."""
        hour = int(self._clock() // 3600)
        if hour == self._hour:
            return
        for passed in range(self._hour, min(hour, self._hour + HOURS)):
            position = _hour_of_day(passed * 3600)
            self._usual[position] += _WEIGHT_OF_TODAY * (self._count - self._usual[position])
            self._count = 0
        self._hour, self._count = hour, 0
        self._notes.save(_NOTE, list(self._usual))


def _parse(saved: Any) -> list[float]:
    match saved:
        case [*values] if len(values) == HOURS and all(_is_count(value) for value in values):
            return [float(value) for value in values]
    raise ValueError("no counts of the hours of a day")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 2**53


def _hour_of_day(now: float) -> int:
    return time.localtime(now).tm_hour


def _distance(hour: int, other: int) -> int:
    return min((hour - other) % HOURS, (other - hour) % HOURS)
