"""Ceilings: which versions each client is shown at this moment, by holds and by `releases.delay`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.clock import Clock
from clamproxy.config.settings import ReleasesSection
from clamproxy.files import stamp_of
from clamproxy.leases.duties import Duty
from clamproxy.leases.leases import ALONE, Leases
from clamproxy.notes import UNKEPT, Notes
from clamproxy.objects import MAX_VERSION
from clamproxy.readable import shown_span
from clamproxy.releases.ceiling import (
    NOTHING_SEEN,
    Cause,
    Ceiling,
    FirstSeen,
    ceiling,
    corrected,
    earliest,
    with_version,
    without_errors,
    without_wrong_times,
)
from clamproxy.releases.holds import FILE_NAME, Hold, HoldChange, Holds, HoldsError, read_holds, restore
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

TOPIC = "first-seen"
"""The topic of the notes that say when each version was first seen."""
LOOK_EVERY = 0.5
"""Seconds between looks at the file of holds, and at delays that may be over."""
NOTICED_WITHIN = 0.005
"""Seconds in which thousands of answers may be given without a look whether a command has changed the holds.
Such a command takes longer to end."""
WARN_EVERY = 86400.0
"""Seconds between warnings about a hold that has been forgotten."""


class Ceilings:
    """The ceiling of each database for each client. Event loop only.

    Args:
        store: tells what can be served under a ceiling.
        directory: the state directory, with the file of holds.
        notes: where the times at which versions were first seen are kept.
        known: what an earlier object of this process held. It counts if the file is lost.
        others: gives what other gateways of the site have seen.
        workers: tells the other processes of this machine what this one has seen.
        leases: let one process write to the log.
    """

    def __init__(
        self,
        settings: ReleasesSection,
        store: Store,
        directory: Path,
        notes: Notes,
        clock: Clock = time,
        known: Holds | None = None,
        others: Notes = UNKEPT,
        workers: Notes = UNKEPT,
        leases: Leases = ALONE,
    ) -> None:
        """Read the holds. Blocks for a moment.

        Raises:
            HoldsError: nobody knows what is held. A bad release may be, so nothing must be served.
        """
        self._settings = settings
        self._store = store
        self._directory = directory
        self._path = directory / FILE_NAME
        self._notes = notes
        self._clock = clock
        self._others = others
        self._workers = workers
        workers.load(parse_seen)  # only what comes later is news
        self._log_duty = Duty(leases, "log of releases")
        self._own_seen = notes.load(parse_seen)
        self._seen_by_others = others.load(parse_seen, _of_others)
        self._seen = dict(self._own_seen)
        """By this gateway or another one of the site."""
        for database in self._seen_by_others:
            self._combine(database)
        self._correct_times()
        self._mark = stamp_of(self._path)
        self._is_lost = False
        """Whether the file is lost, and couldn't be written anew yet."""
        self._is_retired = False
        self._informed = asyncio.Event()
        self._informed.set()
        self._holds = read_holds(directory) if known is None else self._read(known)
        self._seen_mark, self._looked_at = self._mark, 0.0
        self._told = set(self._holds.changes)
        """The changes that need no line in the log any more."""
        self._delayed: dict[str, tuple[int, int] | None] = {}
        """By database: the version that machines get, and the newest one, which a delay holds back."""
        self._warned_at: dict[str, float] = {}
        self._is_changed = asyncio.Event()
        """Wakes the task."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Notice changes from now on."""
        for database, one in self._holds.in_force.items():
            logger.warning("%s is held at version %d, %s.", database, one.version, one.explain())
        self._task = asyncio.create_task(self._run(), name="watch holds")

    def retire(self) -> None:
        """Go on noticing changes, as answers and upkeep may end late, but leave the log to a successor."""
        self._is_retired = True
        self._log_duty.leave()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def wait_for_others(self) -> None:
        """Let nobody be served until `look` was called: other gateways may hold what this one would show."""
        self._informed.clear()

    @property
    def are_known(self) -> bool:
        return self._informed.is_set()

    async def known(self) -> None:
        """Wait until the ceilings are known; that takes some seconds at most."""
        await self._informed.wait()

    def of(self, database: str, address: str = "") -> int | None:
        """The highest version of a database that a client is shown; None if that isn't limited. Quick.

        Args:
            address: the client's; empty for any client that isn't a canary.
        """
        self._notice_at_once()
        if not self._holds.in_force and not self._settings.delay:
            return None
        found = self.explain(database, address)
        return None if found is None else found.version

    def explain(self, database: str, address: str = "") -> Ceiling | None:
        """The same with the reason."""
        held = self._holds.in_force.get(database)
        delay = self._settings.delay.get(database, 0.0)
        if delay and self._settings.is_canary(address):
            delay = 0.0
        return ceiling(
            None if held is None else held.version,
            self._seen.get(database, {}),
            delay,
            self._clock.time(),
            lambda version: self._store.newest_version(database, version) is not None,
        )

    @property
    def holds(self) -> Holds:
        """What is held, as far as it has been noticed."""
        return self._holds

    def in_force(self) -> dict[str, int]:
        """The ceilings of all databases that have one for clients in general."""
        databases = {*self._holds.in_force, *self._settings.delay}
        found = {database: self.of(database) for database in databases}
        return {database: version for database, version in found.items() if version is not None}

    def _notice_at_once(self) -> None:
        """Notice a changed file of holds: all processes must show the same versions at any moment."""
        now = time.monotonic()
        if now - self._looked_at < NOTICED_WITHIN:
            return
        self._looked_at = now
        mark = stamp_of(self._path)
        if mark is not None and mark != self._seen_mark:
            self._seen_mark = mark
            with suppress(HoldsError):  # `_notice_holds` deals with that
                self._holds = read_holds(self._directory)
            self._is_changed.set()

    def learn(self, database: str, version: int, at_origin: int = 0) -> None:
        """Note that a version is advertised. Quick.

        Args:
            at_origin: the version in the origin's header, as far as it is known.
        """
        self._hear_others()
        self._note(database, version, without_errors(self._own_seen.get(database, {}), version, at_origin))

    def sight(self, database: str, version: int) -> None:
        """Note a version that the origin's header gives, beside DNS. Quick."""
        self._hear_others()
        self._note(database, version, self._own_seen.get(database, {}))

    def _note(self, database: str, version: int, known: FirstSeen) -> None:
        if version not in known:
            others = self._seen_by_others.get(database, NOTHING_SEEN)
            known = with_version(known, version, self._clock.time(), others)
        self._replace(database, known)

    def _replace(self, database: str, seen: FirstSeen) -> None:
        if seen != self._own_seen.get(database, {}):
            self._own_seen[database] = seen
            self._save(database)
            self._combine(database)

    def _save(self, database: str) -> None:
        for notes in (self._notes, self._workers):
            notes.save(database, {str(one): at for one, at in self._own_seen[database].items()})

    def _correct_times(self) -> None:
        now = self._clock.time()
        for database, seen in list(self._own_seen.items()):
            self._replace(database, without_wrong_times(seen, now))

    def _hear_others(self) -> None:
        for database, seen in self._workers.news(parse_seen).items():
            if seen is not None:
                own = self._own_seen.get(database, NOTHING_SEEN)
                # Two processes may have seen a version at the same time.
                self._own_seen[database] = {one: min(at, own.get(one, at)) for one, at in seen.items()}
                if self._own_seen[database] != seen:
                    self._save(database)
                self._combine(database)
        for database, seen in self._others.news(parse_seen, _of_others).items():
            self._seen_by_others[database] = NOTHING_SEEN if seen is None else seen
            self._combine(database)
            own = self._own_seen.get(database, NOTHING_SEEN)
            self._replace(database, corrected(own, self._seen[database]))

    def _combine(self, database: str) -> None:
        others = self._seen_by_others.get(database, NOTHING_SEEN)
        self._seen[database] = earliest(self._own_seen.get(database, NOTHING_SEEN), [others])

    # Noticing changes

    async def _run(self) -> None:
        await self._informed.wait()
        while True:
            try:
                await self.look()
                if await self._has_the_word():
                    self._notice_delays()
                    self._warn_of_forgotten()
            except Exception:
                logger.exception("Looking for holds failed.")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._is_changed.wait()
            self._is_changed.clear()

    async def look(self) -> None:
        """Notice at once what has been held or released, and what others have seen."""
        await self._notice_holds()
        self._hear_others()
        self._correct_times()
        self._informed.set()

    async def _notice_holds(self) -> None:
        if (mark := stamp_of(self._path)) == self._mark and not self._is_lost:
            return
        before = self._holds
        self._mark = mark
        self._holds = await in_thread("clamproxy-holds", lambda: self._read(before))
        has_the_word = await self._has_the_word()
        for change in self._holds.changes:
            if change not in self._told and has_the_word:
                _tell_of(change)
        self._told = set(self._holds.changes)

    async def _has_the_word(self) -> bool:
        """Whether this process is the one that writes to the log."""
        return not self._is_retired and await self._log_duty.is_ours()

    def _notice_delays(self) -> None:
        for database, delay in self._settings.delay.items():
            found, newest = self.explain(database), max(self._seen.get(database, {}), default=0)
            is_delayed = found is not None and found.cause is Cause.DELAY and found.version < newest
            now = (found.version, newest) if found is not None and is_delayed else None
            before, self._delayed[database] = self._delayed.get(database), now
            if now is not None and now != before:
                left = self._seen[database][newest] + delay - self._clock.time()
                logger.info(
                    "%s version %d is held back for %s (releases.delay): machines get %d.",
                    database,
                    newest,
                    shown_span(left),
                    now[0],
                )
            elif before is not None and now is None and (found is None or found.version >= newest):
                logger.info("Machines get %s version %d from now on (releases.delay).", database, newest)

    def _warn_of_forgotten(self) -> None:
        now = self._clock.time()
        for database, one in self._holds.in_force.items():
            age = now - one.since
            if age < self._settings.longest_hold or now - self._warned_at.get(database, 0.0) < WARN_EVERY:
                continue
            self._warned_at[database] = now
            logger.warning(
                "%s has been held at version %d for %s, %s. `clamproxy release %s` lifts the hold.",
                database,
                one.version,
                shown_span(age),
                one.explain(),
                database,
            )

    def _read(self, before: Holds) -> Holds:
        """The holds in the file. If it is lost, those in force stay, and it is written anew.

        They are the emergency brake, and commands must know of it, too.
        """
        was_lost, self._is_lost = self._is_lost, False
        reason = f"{self._path} has disappeared"
        try:
            found = read_holds(self._directory)
            if self._mark is not None or not before.in_force:
                return found
        except HoldsError as error:
            reason = str(error).partition(";")[0]
        try:
            restored = restore(self._directory, before)
        except HoldsError as error:
            self._is_lost = True
            if not was_lost:
                logger.warning(
                    "What was held before stays held until the gateway stops: %s, and can't be written: %s.",
                    reason,
                    error,
                )
            return before
        logger.warning("What was held before stays held: %s, and was written anew.", reason)
        return restored


def _tell_of(change: HoldChange) -> None:
    database, hold = change.database, Hold(change.version or 0, change.at, change.by, change.why)
    if change.version is None:
        logger.warning("%s is no longer held, %s.", database, hold.explain())
    else:
        logger.warning("%s is held at version %d, %s.", database, hold.version, hold.explain())


def parse_seen(saved: Any) -> FirstSeen:
    """The versions of a database with the times when they were first seen."""
    seen = {int(version): float(at) for version, at in saved.items()}
    if not all(0 < version <= MAX_VERSION for version in seen):
        raise ValueError("no versions")
    return seen


def merge_seen(own: FirstSeen | None, others: Sequence[FirstSeen]) -> FirstSeen:
    """What the gateways of a site have seen together, as notes are merged."""
    return earliest(own or NOTHING_SEEN, others)


def _of_others(own: FirstSeen | None, others: Sequence[FirstSeen]) -> FirstSeen:
    return earliest(NOTHING_SEEN, others)
