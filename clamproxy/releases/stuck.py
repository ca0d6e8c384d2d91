"""Stuck patches: cdiffs for which the origin repeatedly sends something that can't be published.

A client that asks for such a patch gets 503, and stays one version behind until the next release. After a
while it is told to fetch the whole CVD, as the vendor does with an empty cdiff (docs/protocol.md, trap 15).
That costs each client a whole download from the gateway, so a single failure of the origin isn't enough.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from clamproxy.cache.store import Store
from clamproxy.dates import as_past_time
from clamproxy.notes import Merge, Notes, best
from clamproxy.objects import ObjectId

logger = logging.getLogger(__name__)

ENOUGH_FAILURES = 4
"""How many failures it takes for a patch to count as stuck."""
LEAST_TIME = 60.0
"""Seconds since the first failure before a patch counts as stuck; until then, it may just be a bad edge of
the CDN."""
LONGEST_MEMORY = 2 * 86400.0
"""Seconds after the last failure until it is forgotten: by then, the patch is no longer of interest."""


@dataclass(frozen=True, slots=True)
class PatchFailures:
    """The failures of one patch. Times are in Unix seconds."""

    failures: int
    since: float
    last: float

    @classmethod
    def parse(cls, saved: Any, now: float) -> Self:
        """Read what was saved as JSON.

        Raises:
            ValueError: it is something else.
        """
        match saved:
            case {"failures": int(failures), "since": since, "last": last}:
                return cls(failures, as_past_time(since, now), as_past_time(last, now))
        raise ValueError("no trouble with a patch")

    def is_stuck(self, now: float) -> bool:
        """Whether clients should stop waiting for the patch."""
        return self.failures >= ENOUGH_FAILURES and now - self.since >= LEAST_TIME

    def is_over(self, now: float) -> bool:
        """Whether the failures are old enough to be forgotten."""
        return now - self.last > LONGEST_MEMORY


_most_failures: Merge[PatchFailures] = best(lambda trouble: trouble.failures)


class StuckPatches:
    """Counts how often each patch arrived in a form that was refused. Event loop only.

    Args:
        store: tells which patches have arrived after all.
        notes: where the failures are kept over a restart, by the name of the patch.
        clock: gives Unix seconds.
    """

    def __init__(self, store: Store, notes: Notes, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._notes = notes
        self._clock = clock
        self._troubles: dict[ObjectId, PatchFailures] = {}
        for name, trouble in notes.load(self._parse, _most_failures).items():
            try:
                self._troubles[ObjectId.parse(name)] = trouble
            except ValueError:
                notes.forget(name)
        self._told: set[ObjectId] = set()

    def note(self, patch: ObjectId) -> None:
        """Note that what the origin sent for a patch was refused."""
        self._notes.refresh()
        self._take_in()
        now = self._clock()
        self._forget_old(now)
        before = self._troubles.get(patch, PatchFailures(0, now, now))
        trouble = replace(before, failures=before.failures + 1, last=now)
        self._troubles[patch] = trouble
        self._notes.save(patch.file_name, asdict(trouble))

    def is_stuck(self, patch: ObjectId) -> bool:
        """Whether clients should stop waiting for a patch."""
        self._take_in()
        trouble = self._troubles.get(patch)
        if trouble is None or not trouble.is_stuck(self._clock()) or self._store.has(patch):
            return False
        if patch not in self._told:
            self._told.add(patch)
            logger.warning(
                "%s has failed verification %d times: machines are told to take the whole CVD.",
                patch.file_name,
                trouble.failures,
            )
        return True

    def _take_in(self) -> None:
        for name, trouble in self._notes.news(self._parse, _most_failures).items():
            try:
                patch = ObjectId.parse(name)
            except ValueError:
                continue
            if trouble is None:
                self._troubles.pop(patch, None)
            else:
                self._troubles[patch] = trouble

    def _parse(self, saved: Any) -> PatchFailures:
        return PatchFailures.parse(saved, self._clock())

    def _forget_old(self, now: float) -> None:
        for patch, trouble in list(self._troubles.items()):
            if trouble.is_over(now) or self._store.has(patch):
                del self._troubles[patch]
                self._told.discard(patch)
                self._notes.forget(patch.file_name)


def stuck_patches(store: Store, now: float) -> dict[str, PatchFailures]:
    """The patches that are stuck, by name, whether or not the proxy is running. Blocks."""
    found = {}
    for name, saved in sorted(store.notes("stuck/").items()):
        try:
            patch, trouble = ObjectId.parse(name), PatchFailures.parse(saved, now)
        except (TypeError, ValueError):
            continue
        if trouble.is_stuck(now) and not trouble.is_over(now) and not store.has(patch):
            found[name] = trouble
    return found
