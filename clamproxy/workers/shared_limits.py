"""Limits that hold for all workers of a machine together, in their shared memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from clamproxy.pace import METER_WINDOW, due
from clamproxy.workers.memory import CELLS, FIGURES_SIZE, Lock, Memory

_TRIES = 16
"""Neighbouring cells in which a client may be."""
_LENGTH = 4
"""Bytes of a length."""


def _tag(memory: Memory, address: str) -> int:
    """A number for a client, which nobody else can predict; never 0."""
    return int.from_bytes(blake2b(address.encode(), digest_size=8, key=memory.key).digest()) or 1


class SharedLinkPayments:
    """When what all workers have read is paid for; see `clamproxy.pace.Payments`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._due_at = memory.link

    def due_after(self, count: int, rate: int, allowance: float, now: float) -> float:
        with self._memory.locked(Lock.LINK):
            self._due_at[0] = due_at = due(self._due_at[0], count, rate, allowance, now)
        return max(0.0, due_at - now)


class SharedMeter:
    """The rate of all workers; see `clamproxy.pace.Meter`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._seconds = memory.meter
        self._size = METER_WINDOW + 2

    def count(self, number: int, now: float) -> None:
        second, seconds = int(now), self._seconds
        place = second % self._size * 2
        with self._memory.locked(Lock.LINK):
            before = seconds[place + 1] if seconds[place] == second else 0
            seconds[place], seconds[place + 1] = second, before + number

    def rate(self, now: float) -> float:
        second, seconds = int(now), self._seconds
        places = range(0, self._size * 2, 2)
        counted = (seconds[at + 1] for at in places if second - METER_WINDOW <= seconds[at] < second)
        return sum(counted) / METER_WINDOW


class SharedClientPayments:
    """When each client has paid; see `clamproxy.access.client_rates.ClientPayments`.

    The table has room for thousands of clients that got something within the last seconds. If there are
    more, the one that has paid the most is forgotten.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._tags, self._due_at = memory.clients

    def due_at(self, address: str) -> float:
        tag = _tag(self._memory, address)
        return next((self._due_at[cell] for cell in self._cells(tag) if self._tags[cell] == tag), 0.0)

    def charge(self, address: str, count: int, rate: int, allowance: float, now: float, most: float) -> float:
        tag = _tag(self._memory, address)
        with self._memory.locked(Lock.CLIENTS):
            cells = self._cells(tag)
            cell = next((one for one in cells if self._tags[one] == tag), None)
            if cell is None:
                cell = min(cells, key=self._due_at.__getitem__)
                self._tags[cell], self._due_at[cell] = tag, 0.0
            due_at = due(self._due_at[cell], count, rate, allowance, now)
            self._due_at[cell] = due_at = min(due_at, now + most)
        return max(0.0, due_at - now)

    def waiting(self, now: float) -> int:
        return sum(due_at > now for due_at in self._due_at.tolist())

    def _cells(self, tag: int) -> Sequence[int]:
        return [(tag + offset) % CELLS for offset in range(_TRIES)]


class OtherConnections:
    """The connections that other workers have; see `clamproxy.access.limits.Elsewhere`.

    Clients are counted by cells. Two clients that share one are rare and count together.
    """

    def __init__(self, memory: Memory, own: int) -> None:
        self._memory = memory
        self._total, self._cells = memory.connections(own)
        self._others = [memory.connections(number) for number in memory.numbers if number != own]

    def total(self) -> int:
        return sum(total[0] for total, _ in self._others)

    def of(self, address: str) -> int:
        cell = self._cell(address)
        return sum(cells[cell] for _, cells in self._others)

    def came(self, address: str) -> None:
        self._total[0] += 1
        self._cells[self._cell(address)] += 1

    def left(self, address: str) -> None:
        self._total[0] -= 1
        self._cells[self._cell(address)] -= 1

    def _cell(self, address: str) -> int:
        return _tag(self._memory, address) % CELLS


class SharedFigures:
    """What workers tell each other of themselves, for the pages."""

    def __init__(self, memory: Memory, own: int) -> None:
        self._memory = memory
        self._own = memory.figures(own)
        self._others = [memory.figures(number) for number in memory.numbers if number != own]
        self._told = b""

    def tell(self, figures: Mapping[str, Any]) -> None:
        """Replace what the others know of this worker."""
        text = json.dumps({**figures, "pid": os.getpid()}).encode()
        if text == self._told or len(text) > FIGURES_SIZE - _LENGTH:
            return
        self._told = text
        with self._memory.locked(Lock.FIGURES):
            self._own[: _LENGTH + len(text)] = len(text).to_bytes(_LENGTH) + text

    def others(self) -> list[dict[str, Any]]:
        """What the others have told, except those that are starting, or that died while they told it."""
        with self._memory.locked(Lock.FIGURES):
            texts = [bytes(row[_LENGTH : _LENGTH + int.from_bytes(row[:_LENGTH])]) for row in self._others]
        found = []
        for text in texts:
            with suppress(ValueError):
                found.append(json.loads(text))
        return found
