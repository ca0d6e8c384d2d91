"""Clocks that tests set forward."""

from __future__ import annotations

import time


class Clock:
    """A clock that stands still until a test moves it; replaces a function or the module `time`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        """Unix seconds."""

    def __call__(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    monotonic = time


class ClockAhead:
    """Real time plus an offset; replaces the module `time` where real servers look at the clock as well."""

    def __init__(self) -> None:
        self.ahead = 0.0
        """Seconds."""

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead
