"""What limits to a rate are made of: the limit in force, a schedule of payments, and the present rate.

Whoever has moved some bytes pays for them, then waits until that is due. Payments are due in the order in
which they were made, and nobody has more than one. So all who wait take turns, and a small file doesn't have
to wait for the end of a large one. A library wouldn't save anything: the algorithm is `due`,
and it has to serve threads as well as asyncio, and to cope with a rate that changes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from datetime import datetime

from clamproxy.clock import Clock
from clamproxy.config.rates import Rates, write_rate

logger = logging.getLogger(__name__)

METER_WINDOW = 10
"""Over how many seconds the present rate is taken."""


class LimitInForce:
    """The limit that a setting puts on a rate now. Thread-safe.

    Args:
        key: of the setting, for the log.
    """

    def __init__(self, key: str, clock: Clock = time) -> None:
        self._key = key
        self._clock = clock
        self._rates = Rates()
        self._is_unlimited = True
        """Whether no limit is configured, at any time of day."""
        self._minute = -1
        """The minute, by the system's clock, for which the current limit was found."""
        self._limit: int | None = None
        self._lock = threading.Lock()

    def follow(self, rates: Rates | None) -> None:
        """Use other rates from now on."""
        with self._lock:
            self._rates, self._minute, self._is_unlimited = rates or Rates(), -1, False
        self.now()
        self._is_unlimited = rates is None

    def now(self) -> int | None:
        """Bytes per second; None for no limit. A change is logged once."""
        if self._is_unlimited:
            return None
        at = self._clock.time()
        minute = int(at // 60)  # all time zones of today differ by whole minutes
        if minute == self._minute:
            return self._limit
        with self._lock:
            before, self._limit = self._limit, self._rates.at(datetime.fromtimestamp(at))
            self._minute, limit = minute, self._limit
        if limit != before:
            logger.info("%s: %s from now on.", self._key, "no limit" if limit is None else write_rate(limit))
        return limit


def due(due_at: float, count: int, rate: int, allowance: float, now: float) -> float:
    """When everything is paid for, in monotonic seconds, after more bytes were moved.

    Args:
        due_at: when what was moved before is paid for.
        count: bytes that were moved.
        rate: bytes per second.
        allowance: for how many seconds somebody who was idle may go on at once.
        now: monotonic seconds.
    """
    return max(due_at, now - allowance) + count / rate


class Payments:
    """When what was moved so far is paid for. Not thread-safe."""

    __slots__ = ("due_at",)

    def __init__(self) -> None:
        self.due_at = 0.0
        """In monotonic seconds."""

    def due_after(self, count: int, rate: int, allowance: float, now: float) -> float:
        """Add bytes; returns the seconds until they are paid for. The arguments are those of `due`."""
        self.due_at = due(self.due_at, count, rate, allowance, now)
        return max(0.0, self.due_at - now)


class Meter:
    """The rate of the last seconds. Not thread-safe."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque(maxlen=METER_WINDOW + 1)

    def count(self, number: int, now: float) -> None:
        """Add bytes at a moment, in monotonic seconds."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            number += self._seconds.pop()[1]
        self._seconds.append((second, number))

    def rate(self, now: float) -> float:
        """Bytes per second, over the last `METER_WINDOW` seconds that are complete."""
        second = int(now)
        return sum(n for at, n in self._seconds if second - METER_WINDOW <= at < second) / METER_WINDOW
