"""How many bytes per second a client may get, over all its connections (`serving.rate_limit_per_client`)."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from clamproxy.clock import Clock
from clamproxy.config.rates import Rates
from clamproxy.config.units import KIB
from clamproxy.pace import LimitInForce, due

ALLOWANCE = 1.0
"""Seconds of its rate that a client which was idle gets at once: most answers are smaller."""
LONGEST_PAUSE = 10.0
"""Seconds that a request waits at most for what was sent before."""
LONGEST_DEBT = 30.0
"""Seconds until a client has paid for everything, at most; freshclam gives up after a minute without a byte.
Small answers beyond that go unpaid: they can't be sent in turns."""
_TURN = 1 / 16
"""Seconds of a client's rate that are sent at a time."""
_SMALLEST_TURN, _LARGEST_TURN = 4 * KIB, 1024 * KIB
_FEW = 1024
"""Clients that are remembered before anybody looks which of them have paid."""


class ClientPayments(Protocol):
    """When each client has paid for what it got. Several processes have them in common."""

    def due_at(self, address: str) -> float:
        """In monotonic seconds; in the past if it owes nothing."""

    def charge(self, address: str, count: int, rate: int, allowance: float, now: float, most: float) -> float:
        """Add bytes; returns the seconds until they are paid for, at most `most`.

        The other arguments are those of `clamproxy.pace.due`.
        """

    def waiting(self, now: float) -> int:
        """How many clients have yet to pay."""


class OwnClientPayments:
    """Those of one process. Only addresses that got something within the last seconds are remembered."""

    def __init__(self) -> None:
        self._due_at: dict[str, float] = {}
        self._room = _FEW

    def due_at(self, address: str) -> float:
        return self._due_at.get(address, 0.0)

    def charge(self, address: str, count: int, rate: int, allowance: float, now: float, most: float) -> float:
        if address not in self._due_at and len(self._due_at) >= self._room:
            self._due_at = {one: at for one, at in self._due_at.items() if at > now - allowance}
            self._room = max(_FEW, 2 * len(self._due_at))
        due_at = due(self.due_at(address), count, rate, allowance, now)
        self._due_at[address] = due_at = min(due_at, now + most)
        return max(0.0, due_at - now)

    def waiting(self, now: float) -> int:
        return sum(due_at > now for due_at in self._due_at.values())


class ClientRates:
    """Remembers what each address has yet to pay for. Event loop only.

    Args:
        payments: of the clients; None if this process alone serves them.
    """

    def __init__(self, clock: Clock = time, payments: ClientPayments | None = None) -> None:
        self._clock = clock
        self._limit = LimitInForce("serving.rate_limit_per_client", clock)
        self._payments = payments or OwnClientPayments()

    def follow(self, rates: Rates | None) -> None:
        """Keep to other limits from now on."""
        self._limit.follow(rates)

    @property
    def limit(self) -> int | None:
        """Bytes per second for each client now; None for no limit."""
        return self._limit.now()

    def waiting(self) -> int:
        """How many clients have to wait at the moment."""
        return self._payments.waiting(self._clock.monotonic())

    def delay_of(self, address: str) -> float:
        """Seconds until everything that a client got is paid for."""
        if self.limit is None:
            return 0.0
        return max(0.0, self._payments.due_at(address) - self._clock.monotonic())

    def charge(self, address: str, count: int) -> float:
        """Add bytes that a client gets; returns the seconds until they are paid for."""
        limit = self.limit
        if limit is None:
            return 0.0
        now = self._clock.monotonic()
        return self._payments.charge(address, count, limit, ALLOWANCE, now, LONGEST_DEBT)

    def share_of(self, address: str) -> ClientShare:
        """By what bodies to a client are paced, as soon as there is a limit."""
        return ClientShare(self, address)


class ClientShare:
    """The pace of the bodies that are sent to one client."""

    __slots__ = ("_address", "_rates")

    def __init__(self, rates: ClientRates, address: str) -> None:
        self._rates = rates
        self._address = address

    @property
    def turn(self) -> int:
        """How many bytes to send at a time."""
        limit = self._rates.limit
        return _LARGEST_TURN if limit is None else min(max(_SMALLEST_TURN, int(limit * _TURN)), _LARGEST_TURN)

    async def pay(self, count: int, *, is_last: bool) -> None:
        """Pay for bytes that were sent, and wait until the next may be, unless they were the last."""
        delay = self._rates.charge(self._address, count)
        if delay > 0 and not is_last:
            await asyncio.sleep(delay)
