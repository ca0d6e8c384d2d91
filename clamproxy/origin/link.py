"""The internet link: what transfers and feeds together may use of it (`upstream.rate_limit`).

A transfer reads a little, pays, and waits until that is due. Meanwhile the kernel's receive buffer fills up,
and TCP slows the sender down; so that buffer is small while there is a limit.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from clamproxy.clock import Clock
from clamproxy.config.rates import Rates
from clamproxy.config.units import KIB, MIB
from clamproxy.pace import LimitInForce, Meter, Payments

TURN = 1 / 32
"""Seconds of the link's time that a transfer may use before the next one has its turn."""
SMALLEST_TURN = KIB
_ALLOWANCE = 0.1
"""Seconds. Makes up for the time that reading itself takes."""
_BUFFERED = 0.5
"""Seconds of the whole link that a connection's receive buffer holds: enough for a round trip."""
_SMALLEST_BUFFER, _LARGEST_BUFFER = 16 * KIB, 4 * MIB


class Waiting(Protocol):
    """Waits on behalf of a transfer."""

    def pause(self, seconds: float) -> None:
        """Wait for the link; ends at once, and raises an OSError, if the transfer is cancelled."""


class LinkPayments(Protocol):
    """As `Payments`; those of several processes are common."""

    def due_after(self, count: int, rate: int, allowance: float, now: float) -> float:
        """See `Payments.due_after`."""


class LinkMeter(Protocol):
    """As `Meter`; that of several processes is common."""

    def count(self, number: int, now: float) -> None:
        """See `Meter.count`."""

    def rate(self, now: float) -> float:
        """See `Meter.rate`."""


class Link:
    """Shares the link among those who read from it. Thread-safe.

    Args:
        payments: for what was read; None if this process alone uses the link.
        meter: of what is read; None if this process alone uses the link.
    """

    def __init__(
        self, clock: Clock = time, payments: LinkPayments | None = None, meter: LinkMeter | None = None
    ) -> None:
        self._clock = clock
        self._limit = LimitInForce("upstream.rate_limit", clock)
        self._payments = payments or Payments()
        self._meter = meter or Meter()
        self._lock = threading.Lock()

    def follow(self, rates: Rates | None) -> None:
        """Keep to other limits from now on, including what is under way."""
        self._limit.follow(rates)

    @property
    def limit(self) -> int | None:
        """Bytes per second that may be used now; None for no limit."""
        return self._limit.now()

    @property
    def rate(self) -> float:
        """Bytes per second that are used at present."""
        with self._lock:
            return self._meter.rate(self._clock.monotonic())

    @property
    def receive_buffer(self) -> int | None:
        """Bytes of a connection's receive buffer; None for as large as the system likes."""
        limit = self.limit
        return None if limit is None else int(min(max(_SMALLEST_BUFFER, limit * _BUFFERED), _LARGEST_BUFFER))

    def turn(self, largest: int) -> int:
        """How many bytes to read at a time, at most `largest`."""
        limit = self.limit
        return largest if limit is None else min(largest, max(SMALLEST_TURN, int(limit * TURN)))

    def pay(self, count: int, waiting: Waiting) -> None:
        """Pay for bytes that were read. Blocks until the next may be.

        Raises:
            OSError: see `Waiting.pause`.
        """
        limit = self.limit
        with self._lock:
            now = self._clock.monotonic()
            self._meter.count(count, now)
            delay = 0.0 if limit is None else self._payments.due_after(count, limit, _ALLOWANCE, now)
        if delay > 0:
            waiting.pause(delay)
