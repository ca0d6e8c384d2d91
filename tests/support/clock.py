"""Clocks that tests turn on."""

from __future__ import annotations

import time


class Clock:
    """A clock that stands still until a test turns it; stands in for a function or for the module `time`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        """Unix seconds."""

    def __call__(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    monotonic = time


class ClockAhead:
    """The time, and more: stands in for the module `time` where real servers tell the time as well."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """Seconds."""

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead
