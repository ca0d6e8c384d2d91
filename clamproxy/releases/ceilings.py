"""Ceilings: which versions each client is shown at this moment, by holds and by `releases.delay`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.clock import Clock
from clamproxy.config.settings import ReleasesSection
from clamproxy.notes import Notes
from clamproxy.objects import MAX_VERSION
from clamproxy.readable import shown_span
from clamproxy.releases.ceiling import Cause, Ceiling, FirstSeen, ceiling, with_version
from clamproxy.releases.holds import FILE_NAME, NOTHING_HELD, Change, Hold, Holds, HoldsError, read_holds
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

TOPIC = "first-seen"
"""The topic of the notes that say when each version was first seen."""
LOOK_EVERY = 0.5
"""Seconds between looks at the file of holds, and at delays that may be over."""
WARN_EVERY = 86400.0
"""Seconds between warnings about a hold that has been forgotten."""

type _Mark = tuple[int, int, int]


class Ceilings:
    """The ceiling of each database for each client. Event loop only.

    Args:
        store: tells what can be served under a ceiling.
        directory: the state directory, with the file of holds.
        notes: where the times at which versions were first seen are kept.
    """

    def __init__(
        self,
        settings: ReleasesSection,
        store: Store,
        directory: Path,
        notes: Notes,
        clock: Clock = time,
    ) -> None:
        """Read the holds. Blocks for a moment."""
        self._settings = settings
        self._store = store
        self._directory = directory
        self._path = directory / FILE_NAME
        self._notes = notes
        self._clock = clock
        # A time in the future was noted by a wrong clock: what was seen then has been seen by now.
        self._seen: dict[str, FirstSeen] = {
            database: {version: min(at, clock.time()) for version, at in seen.items()}
            for database, seen in notes.load(parse_seen).items()
        }
        self._mark = self._look()
        self._holds = self._read(NOTHING_HELD)
        self._delayed: dict[str, tuple[int, int] | None] = {}
        """By database: the version that machines get, and the newest one, which a delay holds back."""
        self._warned_at: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Notice changes from now on."""
        for database, one in self._holds.in_force.items():
            logger.warning("%s is held at version %d, %s.", database, one.version, one.explain())
        self._task = asyncio.create_task(self._run(), name="watch holds")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def of(self, database: str, address: str = "") -> int | None:
        """The highest version of a database that a client is shown; None if that isn't limited. Quick.

        Args:
            address: the client's; empty for any client that isn't a canary.
        """
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

    def in_force(self) -> dict[str, int]:
        """The ceilings of all databases that have one for clients in general."""
        databases = {*self._holds.in_force, *self._settings.delay}
        found = {database: self.of(database) for database in databases}
        return {database: version for database, version in found.items() if version is not None}

    def learn(self, database: str, version: int) -> None:
        """Note that a version is advertised. Quick."""
        before = self._seen.get(database, {})
        if version in before and max(before) == version:
            return
        seen = with_version(before, version, self._clock.time())
        if seen != before:
            self._seen[database] = seen
            self._notes.save(database, {str(one): at for one, at in seen.items()})

    # Noticing changes

    async def _run(self) -> None:
        while True:
            try:
                await self._notice_holds()
                self._notice_delays()
                self._warn_of_forgotten()
            except Exception:
                logger.exception("Looking for holds failed.")
            await asyncio.sleep(LOOK_EVERY)

    async def _notice_holds(self) -> None:
        if (mark := self._look()) == self._mark:
            return
        before = self._holds
        self._mark = mark
        self._holds = await in_thread("clamproxy-holds", lambda: self._read(before))
        known = set(before.changes)
        for change in self._holds.changes:
            if change not in known:
                _tell_of(change)

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

    def _look(self) -> _Mark | None:
        """Identifies the state of the file; None if there is none."""
        try:
            status = os.stat(self._path)  # noqa: PTH116 -- twice a second, for as long as the gateway runs
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self, before: Holds) -> Holds:
        """The holds in the file. If it can't be read, those in force stay: they are the emergency brake."""
        reason = f"{self._path} has disappeared"
        try:
            found = read_holds(self._directory)
        except HoldsError as error:
            found, reason = None, str(error)
        if found is None or (self._mark is None and before.in_force):
            logger.warning("The holds can't be read, so what was held before stays held: %s.", reason)
            return before
        return found


def _tell_of(change: Change) -> None:
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
