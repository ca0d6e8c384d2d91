"""When a feed may be asked again: its cool-downs, separate from those of ClamAV's origin.

* A refusal (403 and similar) concerns one URL, because it is mostly about a subscriber's key.
* 429 and an unreachable server concern the host, because feeds limit requests per address.
* Everything else concerns one URL.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from clamproxy.notes import Notes
from clamproxy.origin.cooldown import Cooldown, FailureKind, load_cooldowns, longest_in_force, take_in

_OF_HOST = frozenset({FailureKind.RATE_LIMITED, FailureKind.UNREACHABLE})
MOST = 4096
"""How many cool-downs are kept; clients choose the URLs."""


class FeedCooldowns:
    """All cool-downs of feeds. Event loop only.

    Args:
        notes: where they are kept over a restart.
        clock: gives Unix seconds.
    """

    def __init__(self, notes: Notes, clock: Callable[[], float] = time.time) -> None:
        self._notes = notes
        self._clock = clock
        self._active = load_cooldowns(notes, clock)
        self._forget_forgiven()

    def check(self, server: str, key: str) -> Cooldown | None:
        """The longest cool-down that forbids asking now; None if there is none.

        Args:
            server: see `Target.server`.
            key: stands for the URL, see `Target.key`.
        """
        self._take_in()
        found = (self._active.get(server), self._active.get(key))
        return longest_in_force(found, self._clock())

    def failed(
        self, server: str, key: str, failure: FailureKind, reason: str, retry_after: float | None
    ) -> float:
        """Note a failure; returns the seconds until the next try."""
        self._notes.refresh()
        self._take_in()
        name = server if failure in _OF_HOST else key
        previous, now = self._active.get(name), self._clock()
        cooldown = Cooldown.after(previous, failure, reason, retry_after, now)
        if cooldown is not previous:
            self._make_room()
            self._active[name] = cooldown
            self._notes.save(name, asdict(cooldown))
        return cooldown.until - now

    def succeeded(self, server: str, key: str, asked_at: float) -> None:
        """Note that the feed has responded, which ends its cool-downs.

        Args:
            asked_at: when the request began, in Unix seconds. What the feed demanded later goes on, see
                `Cooldown.outlasts_answer`.
        """
        self._take_in()
        for name in (server, key):
            cooldown = self._active.get(name)
            if cooldown is not None and not cooldown.outlasts_answer(asked_at, self._clock()):
                self._forget(name)

    def until(self, server: str) -> float | None:
        """When the cool-down of a host as a whole ends, in Unix seconds; None if there is none."""
        self._take_in()
        cooldown = self._active.get(server)
        return cooldown.until if cooldown is not None and cooldown.holds(self._clock()) else None

    def _take_in(self) -> None:
        take_in(self._active, self._notes, self._clock)

    def _make_room(self) -> None:
        if len(self._active) < MOST:
            return
        self._forget_forgiven()
        while len(self._active) >= MOST:
            self._forget(min(self._active, key=lambda name: self._active[name].until))

    def _forget_forgiven(self) -> None:
        now = self._clock()
        for name in [name for name, cooldown in self._active.items() if cooldown.is_forgiven_at < now]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        if self._active.pop(name, None) is not None:
            self._notes.forget(name)
