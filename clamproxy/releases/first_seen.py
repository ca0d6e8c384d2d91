"""When each version was seen advertised first, by this gateway or another one of its site."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from clamproxy.clock import Clock
from clamproxy.notes import UNKEPT, Notes
from clamproxy.objects import MAX_VERSION
from clamproxy.releases.ceiling import (
    NOTHING_SEEN,
    FirstSeen,
    corrected,
    earliest,
    with_version,
    without_errors,
    without_wrong_times,
)

TOPIC = "first-seen"
"""The topic of the notes about it."""


class SeenVersions:
    """Notes versions as they are advertised, and hears of those that others have seen. Event loop only.

    Args:
        notes: where the times are kept.
        workers: tells the other processes of this machine what this one has seen.
        others: gives what other gateways of the site have seen.
    """

    def __init__(
        self, notes: Notes, clock: Clock = time, workers: Notes = UNKEPT, others: Notes = UNKEPT
    ) -> None:
        self._notes = notes
        self._clock = clock
        self._workers = workers
        self._others = others
        kept, told = notes.load(parse_seen), workers.load(parse_seen)
        self._own = _of_both(kept, told)
        self._theirs = others.load(parse_seen, _of_others)
        self._together: dict[str, FirstSeen] = {}
        for database in {*self._own, *self._theirs}:
            self._combine(database)
        for database, seen in self._own.items():
            if not kept.get(database) == seen == told.get(database):
                self._save(database)  # one of the two was lost
        self.correct_times()

    def of(self, database: str) -> FirstSeen:
        """The versions of a database, as far as has been heard."""
        return self._together.get(database, NOTHING_SEEN)

    def learn(self, database: str, version: int, at_origin: int = 0) -> None:
        """Note that a version is advertised. Quick.

        Args:
            at_origin: the version in the origin's header, as far as it is known.
        """
        self.hear_others()
        self._note(database, version, without_errors(self._of_own(database), version, at_origin))

    def sight(self, database: str, version: int) -> None:
        """Note a version that the origin's header gives, beside DNS. Quick."""
        self.hear_others()
        self._note(database, version, self._of_own(database))

    def hear_others(self) -> None:
        """Take in what other processes and gateways have seen."""
        for database, seen in self._workers.news(parse_seen).items():
            if seen is not None:
                own = self._of_own(database)
                # Two processes may have seen a version at the same time.
                self._own[database] = {one: min(at, own.get(one, at)) for one, at in seen.items()}
                if self._own[database] != seen:
                    self._save(database)
                self._combine(database)
        for database, seen in self._others.news(parse_seen, _of_others).items():
            self._theirs[database] = NOTHING_SEEN if seen is None else seen
            self._combine(database)
            self._replace(database, corrected(self._of_own(database), self._together[database]))

    def correct_times(self) -> None:
        """Correct what was noted by a clock that was fast."""
        now = self._clock.time()
        for database, seen in list(self._own.items()):
            self._replace(database, without_wrong_times(seen, now))

    def _of_own(self, database: str) -> FirstSeen:
        return self._own.get(database, NOTHING_SEEN)

    def _note(self, database: str, version: int, known: FirstSeen) -> None:
        if version not in known:
            others = self._theirs.get(database, NOTHING_SEEN)
            known = with_version(known, version, self._clock.time(), others)
        self._replace(database, known)

    def _replace(self, database: str, seen: FirstSeen) -> None:
        if seen != self._of_own(database):
            self._own[database] = seen
            self._save(database)
            self._combine(database)

    def _save(self, database: str) -> None:
        for notes in (self._notes, self._workers):
            notes.save(database, {str(one): at for one, at in self._own[database].items()})

    def _combine(self, database: str) -> None:
        theirs = self._theirs.get(database, NOTHING_SEEN)
        self._together[database] = earliest(self._of_own(database), [theirs])


def load_seen(kept: Notes, told: Notes) -> Mapping[str, FirstSeen]:
    """What the gateways of a site have seen together, for callers that only read. Blocks for a moment.

    Args:
        kept: the notes in the records.
        told: those in the cache, with what other gateways have seen.
    """
    return _of_both(kept.load(parse_seen), told.load(parse_seen, _merged))


def parse_seen(saved: Any) -> FirstSeen:
    """The versions of a database with the times when they were first seen."""
    seen = {int(version): float(at) for version, at in saved.items()}
    if not all(0 < version <= MAX_VERSION for version in seen):
        raise ValueError("no versions")
    return seen


def _of_both(kept: Mapping[str, FirstSeen], told: Mapping[str, FirstSeen]) -> dict[str, FirstSeen]:
    """What is noted in two places: a full disk or the loss of a file may have cost one of them a version."""
    return {
        database: earliest(kept.get(database, NOTHING_SEEN), [told.get(database, NOTHING_SEEN)])
        for database in {*kept, *told}
    }


def _merged(own: FirstSeen | None, others: Sequence[FirstSeen]) -> FirstSeen:
    return earliest(own or NOTHING_SEEN, others)


def _of_others(own: FirstSeen | None, others: Sequence[FirstSeen]) -> FirstSeen:
    return earliest(NOTHING_SEEN, others)
