"""Negative caching: remembers for a while what isn't available, so that nobody asks for it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

from clamproxy.dates import as_past_time
from clamproxy.notes import UNKEPT, Merge, Notes, best

MOST = 4096
"""Keys that are remembered. Clients choose them; those closest to expiry make room for new ones."""

type _Noted = tuple[float, float]
"""When something was noted, in Unix seconds, and for how many seconds it is to be remembered."""

_lasts_longest: Merge[_Noted] = best(sum)


class NegativeCache[K: Hashable]:
    """A set whose members expire, and which processes share by notes. Event loop only.

    Args:
        clock: gives seconds; `time.monotonic`, or a test's.
        notes: where the members are kept for other processes, and over a restart, by name.
        name: gives a member's unique name.
        now: gives Unix seconds, for the notes.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        notes: Notes = UNKEPT,
        name: Callable[[K], str] = str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._now = now
        self._notes = notes
        self._name = name
        self._until: dict[str, float] = {}
        """By name, in monotonic seconds."""
        for key, noted in notes.load(self._parse, _lasts_longest).items():
            self._take_in(key, noted)
        self._forget_expired()

    def __contains__(self, key: K) -> bool:
        for name, noted in self._notes.news(self._parse, _lasts_longest).items():
            self._take_in(name, noted)
        until = self._until.get(self._name(key)) if self._until else None
        return until is not None and until > self._clock()

    def add(self, key: K, seconds: float) -> None:
        """Remember a key for `seconds` from now on."""
        self._forget_expired()
        name = self._name(key)
        self._until[name] = self._clock() + seconds
        self._notes.save(name, [self._now(), seconds])
        if len(self._until) > MOST:
            self._forget(min(self._until, key=self._until.__getitem__))

    async def written(self) -> None:
        """Wait until other processes can see what was added; see `Notes.written`."""
        await self._notes.written()

    def discard(self, key: K) -> None:
        self._forget(self._name(key))

    def _take_in(self, name: str, noted: _Noted | None) -> None:
        if noted is None:
            self._until.pop(name, None)
        else:
            at, seconds = noted
            self._until[name] = self._clock() + at + seconds - self._now()

    def _forget_expired(self) -> None:
        now = self._clock()
        for name in [name for name, until in self._until.items() if until <= now]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        if self._until.pop(name, None) is not None:
            self._notes.forget(name)

    def _parse(self, saved: Any) -> _Noted:
        at, seconds = saved
        if not 0 <= seconds < 2**31:
            raise ValueError("not for a time")
        return as_past_time(at, self._now()), float(seconds)
