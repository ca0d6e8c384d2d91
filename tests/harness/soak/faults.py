"""What goes wrong during a soak, one thing at a time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from math import inf

from tests.harness.soak.origin import SoakOrigin
from tests.harness.soak.plan import HOUR
from tests.support import faults
from tests.support.disk import Disk
from tests.support.dns_server import Mode, Zone
from tests.support.faults import Fault
from tests.support.simulated_time import Timeline

_ANSWERS: dict[str, Fault] = {
    "403": faults.status(403),
    "429": faults.status(429, retry_after="600"),
    "503": faults.status(503),
    "error page": faults.html(),
    "cut short": faults.short(700),
    "silent": faults.silent(),
    "slow": faults.slow(20_000),
}
_DNS = (Mode.NXDOMAIN, Mode.SERVFAIL, Mode.SILENT, Mode.STALE, Mode.GARBAGE)
ORIGIN_DOWN, DISK_FULL = "origin down", "disk full"
LONGEST_STEP = 45.0
"""Seconds by which the system's clock may be set wrong; an ordinary drift, corrected."""
TRIED_AGAIN_WITHIN = 12.0
"""Seconds after which everything is on disk that could not be written before."""

type End = Callable[[], Awaitable[None]]


class Faults:
    """Begins faults, and ends them."""

    def __init__(
        self, chance: random.Random, origin: SoakOrigin, zone: Zone, timeline: Timeline, disk: Disk | None
    ) -> None:
        self._chance, self._origin, self._zone = chance, origin, zone
        self._timeline, self._disk = timeline, disk
        self.current: str | None = None
        self._full_at = self._cleared_at = -inf

    def unwritten_since(self, delay: float) -> float:
        """The moment since which what happened may not be on disk.

        Args:
            delay: seconds until it is written while the disk has room.
        """
        now = self._timeline.monotonic()
        is_full = self.current == DISK_FULL or now - self._cleared_at < TRIED_AGAIN_WITHIN
        return (self._full_at if is_full else now) - delay

    def choose(self) -> tuple[str, float]:
        """The next fault, and for how many seconds it lasts."""
        names = [*_ANSWERS, ORIGIN_DOWN, *_DNS, "clock", *([DISK_FULL] if self._disk is not None else [])]
        name = self._chance.choice(names)
        return name, HOUR if name == DISK_FULL else self._chance.uniform(HOUR / 12, HOUR)

    def begin(self, name: str) -> None:
        self.current = name
        if name in _ANSWERS:
            self._origin.fault = _ANSWERS[name]
        elif name == ORIGIN_DOWN:
            self._origin.refuse()
        elif name == "clock":
            self._timeline.step = self._chance.uniform(-LONGEST_STEP, LONGEST_STEP)
        elif name == DISK_FULL:
            assert self._disk is not None
            self._full_at = self._timeline.monotonic()
            self._disk.fill()
        else:
            self._zone.mode = Mode(name)

    async def end(self) -> None:
        name, self.current = self.current, None
        self._origin.heal()
        self._zone.mode = Mode.RIGHT
        self._timeline.step = 0.0
        if name == ORIGIN_DOWN:
            await self._origin.accept()
        if name == DISK_FULL:
            assert self._disk is not None
            self._cleared_at = self._timeline.monotonic()
            self._disk.clear()
