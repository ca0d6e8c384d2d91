"""How many bytes per second a client may get, over all its connections (`serving.rate_limit_per_client`)."""

from __future__ import annotations

import asyncio
import time

from clamproxy.clock import Clock
from clamproxy.config.rates import Rates
from clamproxy.config.units import KIB
from clamproxy.pace import LimitInForce, Payments

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


class ClientRates:
    """Remembers what each address has yet to pay for. Event loop only.

    Only addresses that got something within the last seconds are remembered.
    """

    def __init__(self, clock: Clock = time) -> None:
        self._clock = clock
        self._limit = LimitInForce("serving.rate_limit_per_client", clock)
        self._clients: dict[str, Payments] = {}
        self._room = _FEW

    def follow(self, rates: Rates | None) -> None:
        """Keep to other limits from now on."""
        self._limit.follow(rates)

    @property
    def limit(self) -> int | None:
        """Bytes per second for each client now; None for no limit."""
        return self._limit.now()

    def waiting(self) -> int:
        """How many clients have to wait at the moment."""
        now = self._clock.monotonic()
        return sum(client.due_at > now for client in self._clients.values())

    def delay_of(self, address: str) -> float:
        """Seconds until everything that a client got is paid for."""
        client = self._clients.get(address)
        return (
            0.0 if client is None or self.limit is None else max(0.0, client.due_at - self._clock.monotonic())
        )

    def charge(self, address: str, count: int) -> float:
        """Add bytes that a client gets; returns the seconds until they are paid for."""
        limit = self.limit
        if limit is None:
            return 0.0
        client, now = self._clients.get(address), self._clock.monotonic()
        if client is None:
            if len(self._clients) >= self._room:
                self._forget_paid(now)
            client = self._clients[address] = Payments()
        delay = min(client.due_after(count, limit, ALLOWANCE, now), LONGEST_DEBT)
        client.due_at = min(client.due_at, now + LONGEST_DEBT)
        return delay

    def share_of(self, address: str) -> ClientShare:
        """By what bodies to a client are paced, as soon as there is a limit."""
        return ClientShare(self, address)

    def _forget_paid(self, now: float) -> None:
        self._clients = {
            address: client for address, client in self._clients.items() if client.due_at > now - ALLOWANCE
        }
        self._room = max(_FEW, 2 * len(self._clients))


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
