"""The last day in steps of five minutes: how many requests there were, and what they cost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from clamproxy.leases.duties import on_duty
from clamproxy.leases.leases import ALONE, Leases
from clamproxy.notes import Notes
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

STEP = 300
"""Length of a step in seconds."""
STEPS = 288
"""A day; the last step is the current one."""
SERIES = ("requests", "hits", "misses", "errors", "bytes_served", "upstream_bytes")
"""The counters to follow, by their names in `clamproxy stats`."""

_AFTER_STEP = 1.0
"""Seconds after which the last step has been saved, whichever process does that."""
_NOTE = "day"

type Amounts = tuple[int, ...]
"""One number for each of `SERIES`."""


@dataclass(frozen=True, slots=True)
class Past:
    """What was counted in each step. Immutable: a sample makes a new one."""

    steps: Mapping[int, Amounts] = field(default_factory=dict)
    """By the number of the step, which is Unix seconds divided by `STEP`."""
    step: int | None = None
    """The step in which the counters were last read; None if they never were."""
    counters: Amounts = ()
    """The values of the counters when they were last read."""

    def noted(self, counters: Mapping[str, int], now: float) -> Self:
        """The past after another reading of the counters.

        What was counted since the last reading belongs to the step of that reading: the counters are read
        at the beginning of each step, unless the gateway wasn't running.

        Args:
            counters: their present values; they are shared by all processes and survive restarts.
            now: Unix seconds.
        """
        present, step = tuple(counters.get(name, 0) for name in SERIES), int(now // STEP)
        # If the clock was set back, nothing may be counted in a step that is still to come. If it is fast for
        # a moment, the last day isn't too old: how many are kept doesn't depend on the clock.
        kept = sorted(number for number in self.steps if number <= step)[-STEPS:]
        steps = {number: self.steps[number] for number in kept}
        if self.step is not None:
            running = min(self.step, step)
            before = steps.get(running, (0,) * len(SERIES))
            counted = _difference(present, self.counters)
            steps[running] = tuple(map(sum, zip(before, counted, strict=True)))
        steps.setdefault(step, (0,) * len(SERIES))
        return type(self)(steps, step, present)

    def to_json(self, counters: Mapping[str, int], now: float) -> dict[str, Any]:
        """The last day for status.json, up to now.

        Args:
            counters: their present values.
            now: Unix seconds.
        """
        current = self if self.step is None else self.noted(counters, now)
        last = int(now // STEP)
        shown = [current.steps.get(number) for number in range(last - STEPS + 1, last + 1)]
        return {
            "step": STEP,
            "until": float((last + 1) * STEP),
            "series": {
                name: [None if amounts is None else amounts[position] for amounts in shown]
                for position, name in enumerate(SERIES)
            },
        }

    def saved(self) -> dict[str, Any]:
        """The past as JSON, to keep it over a restart."""
        steps = [[number, *amounts] for number, amounts in sorted(self.steps.items())]
        return {"series": list(SERIES), "steps": steps, "step": self.step, "counters": list(self.counters)}

    @classmethod
    def parse(cls, saved: Any) -> Self:
        """The inverse of `saved`; an empty past for anything else."""
        match saved:
            case {"series": series, "steps": [*steps], "step": int(step), "counters": [*counters]}:
                rows = [*steps, [0, *counters]]
                if series == list(SERIES) and all(_is_row(row) for row in rows):
                    return cls({row[0]: tuple(row[1:]) for row in steps}, step, tuple(counters))
        return cls()


def read_past(notes: Notes) -> Past:
    """The past as it was last saved; an empty one if there is none. Blocks, but not for long."""
    return notes.load(Past.parse).get(_NOTE, Past())


class History:
    """Reads the counters every five minutes and keeps the last day. Event loop only.

    The counters are those of all processes that share a cache, so one of them reads and saves.

    Args:
        read: returns the counters. It blocks, is called in a thread, and must release whatever it holds
            for that thread.
        notes: where the past is kept over a restart.
        clock: returns Unix seconds.
        leases: let one process read.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, int]],
        notes: Notes,
        clock: Callable[[], float] = time.time,
        leases: Leases = ALONE,
    ) -> None:
        self._read = read
        self._notes = notes
        self._clock = clock
        self._leases = leases
        self._past = read_past(notes)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def past(self) -> Past:
        return self._past

    def start(self) -> None:
        """Start to read the counters, in the background."""
        self._tasks = [
            asyncio.create_task(on_duty(self._leases, "history", self._sample), name="history"),
            asyncio.create_task(self._read_along(), name="history of all"),
        ]

    def stop(self) -> None:
        """Stop reading. What has been counted since the last reading is seen after the next start."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def sample(self) -> None:
        """Read the counters now."""
        await self._take_in()
        counters = await in_thread("clamproxy-history", self._read)
        self._past = self._past.noted(counters, self._clock())
        self._notes.save(_NOTE, self._past.saved())

    async def _take_in(self) -> None:
        """Go on from what another process has saved since, also after the clock was set back."""
        saved = await in_thread("clamproxy-history", lambda: read_past(self._notes))
        own, present = self._past.step, int(self._clock() // STEP)
        if saved.step is not None and (own is None or saved.step > own or own > present):
            self._past = saved

    async def _read_along(self) -> None:
        """See what the process on duty saves at the beginning of each step."""
        while True:
            await asyncio.sleep(STEP - self._clock() % STEP + _AFTER_STEP)
            try:
                await self._take_in()
            except Exception as error:  # the next reading may work
                logger.warning("The history can't be read: %s", error)

    async def _sample(self) -> float:
        """Read the counters; returns seconds until the next step."""
        try:
            await self.sample()
        except Exception as error:  # the next reading may work
            logger.warning("No sample for the history: %s", error)
        return STEP - self._clock() % STEP


def _difference(present: Amounts, before: Amounts) -> Amounts:
    """What was added to each counter."""
    # A counter that has become smaller began again at 0, together with the cache.
    return tuple(new - old if new >= old else new for new, old in zip(present, before, strict=True))


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == len(SERIES) + 1
        and all(type(value) is int and 0 <= value < 2**63 for value in row)
    )
