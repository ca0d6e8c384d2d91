"""Advertised versions: what DNS says is current (docs/protocol.md section 3)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from clamproxy.clock import Clock
from clamproxy.formats.version_record import IN_PRIMARY, OLDEST_RECORD, VersionRecord, record_name
from clamproxy.leases.duties import turn
from clamproxy.leases.leases import ALONE, Leases
from clamproxy.negative_cache import NegativeCache
from clamproxy.notes import UNKEPT, Merge, Notes, best
from clamproxy.objects import MAX_VERSION
from clamproxy.origin.resolver import Resolver
from clamproxy.single_flight import SingleFlight

logger = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds that callers wait for a lookup if an older answer is known, or if they need none."""
_RETRY = 30.0
_LONGEST_LOOKUP = 20.0
"""Seconds after which the lookup of another process is no longer waited for; none takes that long."""

type _Known = tuple[int, float]
"""A version, and when it was learnt, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """A version that DNS advertised."""

    version: int
    fresh: bool
    """Whether the answer is still fresh; otherwise it is the last good one."""


class AdvertisedVersions:
    """Asks DNS, at most once per refresh interval for each record. Event loop only.

    Answers from before a restart still count, and so do those that other processes and gateways got.

    Args:
        domain: the name of the primary record, ``current.cvd.clamav.net``.
        resolver: does the lookups, and is closed with this object; None: DNS is never asked.
        refresh: seconds for which an answer is fresh.
        notes: where the good answers are kept, by database.
        records: where the text of the primary record is kept, by domain.
        learnt: called with each database and its version whenever DNS gives one.
        unanswered: where the names are kept for which there was no answer lately.
        leases: of the processes of this machine, one looks up a name.
    """

    def __init__(
        self,
        domain: str,
        resolver: Resolver | None,
        refresh: float,
        notes: Notes,
        records: Notes,
        learnt: Callable[[str, int], object] | None = None,
        clock: Clock = time,
        unanswered: Notes = UNKEPT,
        leases: Leases = ALONE,
    ) -> None:
        self._domain = domain
        self._resolver = resolver
        self._refresh = refresh
        self._notes = notes
        self._records = records
        self._learnt = learnt
        self._clock = clock
        self._leases = leases
        self._record = records.load(_record_text, _newest_record).get(domain)
        self._known = notes.load(self._parse, self._best)
        self._unanswered = NegativeCache[str](clock.monotonic, unanswered, now=clock.time)
        self._looking = SingleFlight[str, None]("look-up")
        self._asked_at: dict[str, float] = {}
        """The loop time at which the last lookup of each name began."""

    def _parse(self, saved: Any) -> _Known:
        now = self._clock.time()
        match saved:
            case [int(version), int() | float() as learnt_at] if 0 < version <= MAX_VERSION:
                # A time in the future was noted by a wrong clock: it doesn't count.
                return version, learnt_at if learnt_at <= now else now - self._refresh
        raise ValueError("no version with a time")

    def _best(self, own: _Known | None, others: Sequence[_Known]) -> _Known:
        """The highest version that is fresh, or else the newest answer."""
        known, oldest = [*others] if own is None else [own, *others], self._clock.time() - self._refresh
        fresh = [one for one in known if one[1] > oldest]
        return max(fresh) if fresh else max(known, key=lambda one: one[1])

    def _take_in(self) -> None:
        for database, news in self._notes.news(self._parse, self._best).items():
            if news is not None:
                self._note(database, *news)
        for domain, record in self._records.news(_record_text, _newest_record).items():
            if domain == self._domain:
                self._record = record or self._record

    def _note(self, database: str, version: int, learnt_at: float) -> None:
        self._known[database] = (version, learnt_at)
        if self._learnt is not None:
            self._learnt(database, version)

    @property
    def last_record(self) -> str | None:
        """The last good primary record, unchanged, however old."""
        self._take_in()
        return self._record

    def last_known(self, database: str) -> Advertised | None:
        """The last good answer, without asking; None if there is none, or if it is too old for any record."""
        self._take_in()
        version, learnt_at = self._known.get(database, (0, 0.0))
        age = self._clock.time() - learnt_at
        return Advertised(version, 0 <= age < self._refresh) if age < OLDEST_RECORD else None

    async def get(
        self, database: str, patience: float | None = PATIENCE, *, is_needed: bool = True
    ) -> Advertised | None:
        """The advertised version, after asking DNS if the last answer is no longer fresh.

        Args:
            patience: seconds that a lookup may take, whichever caller started it; None: until it ends.
            is_needed: whether to wait until the lookup ends if no older answer is known.

        Returns:
            The last good answer if DNS gives none; None if there was none for half a day.
        """
        known, resolver = self.last_known(database), self._resolver
        if resolver is not None and (known is None or not known.fresh):
            name = record_name(database, self._domain)
            now = asyncio.get_running_loop().time()
            if name not in self._looking:
                if name in self._unanswered:
                    return known
                self._asked_at[name] = now
            look_up = self._looking.start(name, partial(self._look_up_once, resolver, name, database))
            limit = None
            if patience is not None and (known is not None or not is_needed):
                limit = max(0.0, self._asked_at[name] + patience - now)
            # Not `SingleFlight.run`: callers that have waited long enough, or are still waiting when the
            # gateway stops, get what is known.
            await asyncio.wait({look_up}, timeout=limit)
        return self.last_known(database)

    def stop(self) -> None:
        self._looking.stop()
        if self._resolver is not None:
            self._resolver.close()

    async def _look_up_once(self, resolver: Resolver, name: str, database: str) -> None:
        """Look up a name, or wait for another process of this machine that does."""
        known = self._known.get(database)
        async with turn(self._leases, f"look up {name}", _LONGEST_LOOKUP):
            self._notes.refresh()
            self._take_in()
            if self._known.get(database) == known and name not in self._unanswered:
                await self._look_up(resolver, name, database)
                await self._notes.written()

    async def _look_up(self, resolver: Resolver, name: str, database: str) -> None:
        try:
            text = await resolver.txt(name)
            versions = VersionRecord.parse(text, database).versions_at(self._clock.time())
        except Exception as error:  # whatever it is, the last good answer still counts
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning("No advertised versions from DNS (%s): %s", name, reason)
            self._unanswered.add(name, min(self._refresh, _RETRY))
            return
        if database in versions:
            self._unanswered.discard(name)
        else:
            self._unanswered.add(name, min(self._refresh, _RETRY))
        if database in IN_PRIMARY and text != self._record:
            self._record = text
            self._records.save(self._domain, text)
        for found, version in versions.items():
            if self._known.get(found, (0, 0.0))[0] != version:
                logger.info("DNS advertises %s version %d.", found, version)
            learnt_at = self._clock.time()
            self._notes.save(found, [version, learnt_at])
            self._note(found, version, learnt_at)


def _record_text(saved: Any) -> str:
    VersionRecord.parse(saved)
    return str(saved)


_newest_record: Merge[str] = best(lambda text: VersionRecord.parse(text).recorded_at)
