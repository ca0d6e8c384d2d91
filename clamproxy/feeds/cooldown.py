"""When a feed may be asked again: cool-downs of their own, apart from those of ClamAV's origin.

* A refusal (403 and its like) concerns one URL: it is about a subscriber's key, mostly.
* 429 and an unreachable server concern the host: feeds limit requests per address.
* Everything else concerns one URL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from clamproxy.origin.cooldown import BACKOFFS, LONGEST_RETRY_AFTER, Cooldown, Failure

_OF_HOST = frozenset({Failure.RATE_LIMITED, Failure.UNREACHABLE})
_PREFIX = "cooldown/"
MOST = 4096
"""Cool-downs that are kept; clients choose the URLs."""


class FeedCooldowns:
    """All cool-downs of feeds. Event loop only."""

    def __init__(self, save: Callable[[str, Any], None], clock: Callable[[], float] = time.time) -> None:
        """Start without any.

        Args:
            save: called with a key and a JSON value (None: gone) whenever one changes.
            clock: gives Unix seconds.
        """
        self._save = save
        self._clock = clock
        self._active: dict[str, Cooldown] = {}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Take over what an earlier process saved; what can't be read is dropped."""
        latest = self._clock() + LONGEST_RETRY_AFTER
        for note, value in notes.items():
            if value is None or not note.startswith(_PREFIX):
                continue
            try:
                cooldown = Cooldown(
                    min(float(value["until"]), latest),
                    int(value["failures"]),
                    Failure(value["failure"]),
                    str(value["reason"]),
                )
                if _is_over(cooldown, self._clock()):
                    raise ValueError("nothing to remember")
                self._active[note.removeprefix(_PREFIX)] = cooldown
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
                self._save(note, None)

    def check(self, server: str, key: str) -> Cooldown | None:
        """What forbids asking now, or None.

        Args:
            server: see `Target.server`.
            key: names the URL.
        """
        found = (self._active.get(server), self._active.get(key))
        running = [cooldown for cooldown in found if cooldown and cooldown.until > self._clock()]
        return max(running, key=lambda cooldown: cooldown.until, default=None)

    def failed(
        self, server: str, key: str, failure: Failure, reason: str, retry_after: float | None
    ) -> float:
        """Note a failure; returns the seconds until the next try."""
        name = server if failure in _OF_HOST else key
        previous = self._active.get(name)
        failures = previous.failures + 1 if previous and previous.failure is failure else 1
        delay = BACKOFFS[failure].delay(failures)
        if retry_after is not None and retry_after > 0:
            delay = min(retry_after, LONGEST_RETRY_AFTER)
        cooldown = Cooldown(self._clock() + delay, failures, failure, reason)
        self._make_room()
        self._active[name] = cooldown
        self._save(_PREFIX + name, asdict(cooldown))
        return delay

    def succeeded(self, server: str, key: str) -> None:
        """The feed has answered: nothing is held back."""
        for name in (server, key):
            self._forget(name)

    def until(self, server: str) -> float | None:
        """When the cool-down of a host as a whole ends; None if there is none."""
        cooldown = self._active.get(server)
        return cooldown.until if cooldown is not None and cooldown.until > self._clock() else None

    def _make_room(self) -> None:
        if len(self._active) < MOST:
            return
        now = self._clock()
        for name in [name for name, cooldown in self._active.items() if _is_over(cooldown, now)]:
            self._forget(name)
        while len(self._active) >= MOST:
            self._forget(min(self._active, key=lambda name: self._active[name].until))

    def _forget(self, name: str) -> None:
        if self._active.pop(name, None) is not None:
            self._save(_PREFIX + name, None)


def _is_over(cooldown: Cooldown, now: float) -> bool:
    """Whether it ended so long ago that the next failure is a first one again."""
    return cooldown.until + BACKOFFS[cooldown.failure].longest < now
