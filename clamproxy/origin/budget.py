"""The budget: how often the origin was asked for each file within the last hour.

The CDN answers 429 to anyone who asks for one file more than about ten times an hour. The gateway's own
requests stay well below that, and leave the rest to what clients need.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clamproxy.dates import as_past_time
from clamproxy.notes import Notes

WINDOW = 3600.0
"""Seconds over which requests are counted."""
PER_FILE = 5
"""How many requests for one file within that time are the limit for the gateway's own requests."""
FIRST_PAUSE = 60.0
"""Seconds between the gateway's own first two requests for a file."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """When a file was asked for, in Unix seconds, oldest first."""

    own: tuple[float, ...] = ()
    """By the processes of this machine."""
    others: tuple[float, ...] = ()
    """By other gateways, as far as they have told."""

    def recent(self, now: float) -> _Asked:
        """The times within the window; a time in the future was noted before the clock was set back."""
        times = (self.own, self.others)
        return _Asked(*(tuple(min(at, now) for at in some if now - at < WINDOW) for some in times))

    @property
    def last(self) -> float:
        return max((*self.own[-1:], *self.others[-1:]), default=0.0)


def _together(own: _Asked | None, others: Sequence[_Asked]) -> _Asked:
    theirs = sorted(at for asked in others for at in asked.own)
    return _Asked(own.own if own is not None else (), tuple(theirs))


class Budget:
    """Counts the requests for each file, whichever process or gateway made them. Thread-safe.

    Args:
        notes: where the times of the requests are kept over a restart, by path.
        clock: gives Unix seconds.
        first_pause: seconds between the gateway's own first two requests for a file.
    """

    def __init__(
        self,
        notes: Notes,
        clock: Callable[[], float] = time.time,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._first_pause = first_pause
        self._notes = notes
        self._clock = clock
        self._lock = threading.Lock()
        asked = notes.load(self._parse, _together)
        # The file that was asked for most recently is at the end.
        self._asked = dict(sorted(asked.items(), key=lambda entry: entry[1].last))

    def note(self, path: str) -> None:
        """Count a request for a file."""
        now = self._clock()
        self._notes.refresh()
        with self._lock:
            self._take_in()
            asked = self._asked.pop(path, _Asked()).recent(now)
            times = [*asked.own, now][-2 * PER_FILE :]
            self._asked[path] = replace(asked, own=tuple(times))  # at the end
            forgotten = self._forget_old(now)
        self._notes.save(path, times)
        for old in forgotten:
            self._notes.forget(old)

    def used(self, path: str) -> int:
        """How often a file was asked for within the last hour."""
        with self._lock:
            return len(self._recent(path, self._clock()))

    def allows(self, path: str, first_pause: float | None = None, cost: int = 1) -> bool:
        """Whether the gateway may ask for a file on its own.

        Args:
            path: at the origin.
            first_pause: seconds between the first two requests, if not the usual ones; each further pause
                is three times as long as the one before.
            cost: how many requests it may take.
        """
        now = self._clock()
        pause = self._first_pause if first_pause is None else first_pause
        with self._lock:
            times = self._recent(path, now)
        if not times:
            return True
        return len(times) + cost <= PER_FILE and now - times[-1] >= pause * 3 ** (len(times) - 1)

    def _recent(self, path: str, now: float) -> list[float]:
        self._take_in()
        asked = self._asked.get(path)
        if asked is None:
            return []
        recent = asked.recent(now)
        if recent.last:
            self._asked[path] = recent
        return sorted((*recent.own, *recent.others))

    def _take_in(self) -> None:
        for path, news in self._notes.news(self._parse, _together).items():
            known = self._asked.get(path)
            if news is None:
                self._asked.pop(path, None)
            elif known is None:
                self._asked[path] = news
            else:  # both may have noted a request at the same time
                own = tuple(sorted({*known.own, *news.own})[-2 * PER_FILE :])
                self._asked[path] = replace(news, own=own)

    def _parse(self, saved: Any) -> _Asked:
        return _Asked(_parse(saved, self._clock()))

    def _forget_old(self, now: float) -> list[str]:
        """Forget what was asked for long ago: clients choose the files, so they must not pile up."""
        forgotten = []
        while self._asked and now - next(iter(self._asked.values())).last >= WINDOW:
            forgotten.append(next(iter(self._asked)))
            del self._asked[forgotten[-1]]
        return forgotten


def _parse(saved: Any, now: float) -> tuple[float, ...]:
    times = sorted(as_past_time(at, now) for at in saved)[-2 * PER_FILE :]
    if not times:
        raise ValueError("no times")
    return tuple(times)
