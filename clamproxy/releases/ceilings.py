"""Ceilings: which versions each client is shown at this moment, by holds and by `releases.delay`."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from clamproxy.cache.store import Store
from clamproxy.clock import Clock
from clamproxy.config.settings import ReleasesSection
from clamproxy.files import stamp_of
from clamproxy.leases.duties import Duty
from clamproxy.leases.leases import ALONE, Leases
from clamproxy.readable import shown_span
from clamproxy.releases.ceiling import Cause, Ceiling, ceiling
from clamproxy.releases.first_seen import SeenVersions
from clamproxy.releases.holds import (
    FILE_NAME,
    NOTHING_HELD,
    Hold,
    HoldChange,
    Holds,
    HoldsError,
    find_holds,
    read_holds,
    restore,
)
from clamproxy.threads import in_thread
from clamproxy.waiting import is_set_within

logger = logging.getLogger(__name__)

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
        seen: when each version was seen first.
        known: what an earlier object of this process held. It counts if the file is lost.
        leases: let one process write to the log.
    """

    def __init__(
        self,
        settings: ReleasesSection,
        store: Store,
        directory: Path,
        seen: SeenVersions,
        clock: Clock = time,
        known: Holds | None = None,
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
        self._clock = clock
        self.seen = seen
        self._log_duty = Duty(leases, "log of releases")
        self._mark = stamp_of(self._path)
        self._is_lost = False
        """Whether the file is lost, and couldn't be written anew yet."""
        self._is_retired = False
        self._informed = asyncio.Event()
        self._informed.set()
        self._holds = read_holds(directory) if known is None else self._read(known)
        self._looks, self._latest_look = count(1), 0
        """The numbers of looks at the file, and that of the one that found the holds in force."""
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
            self.seen.of(database),
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
            look = next(self._looks)
            with suppress(HoldsError):  # `_notice_holds` deals with that, and with a file that is gone again
                self._take(look, find_holds(self._directory) or self._holds)
            self._is_changed.set()

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
            await is_set_within(self._is_changed, LOOK_EVERY)
            self._is_changed.clear()

    async def look(self) -> None:
        """Notice at once what has been held or released, and what others have seen."""
        await self._notice_holds()
        self.seen.hear_others()
        self.seen.correct_times()
        self._informed.set()

    async def _notice_holds(self) -> None:
        mark = stamp_of(self._path)
        if mark == self._mark == self._seen_mark and not self._is_lost:
            return
        before, look = self._holds, next(self._looks)
        self._mark = self._seen_mark = mark
        self._take(look, await in_thread("clamproxy-holds", lambda: self._read(before)))
        has_the_word = await self._has_the_word()
        for change in self._holds.changes:
            if change not in self._told and has_the_word:
                _tell_of(change)
        self._told = set(self._holds.changes)

    def _take(self, look: int, found: Holds) -> None:
        """Go by what a look has found, unless a later one was faster."""
        if look > self._latest_look:
            self._holds, self._latest_look = found, look

    async def _has_the_word(self) -> bool:
        """Whether this process is the one that writes to the log."""
        return not self._is_retired and await self._log_duty.is_ours()

    def _notice_delays(self) -> None:
        for database, delay in self._settings.delay.items():
            found, newest = self.explain(database), max(self.seen.of(database), default=0)
            is_delayed = found is not None and found.cause is Cause.DELAY and found.version < newest
            now = (found.version, newest) if found is not None and is_delayed else None
            before, self._delayed[database] = self._delayed.get(database), now
            if now is not None and now != before:
                left = self.seen.of(database)[newest] + delay - self._clock.time()
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
            found = find_holds(self._directory)
            if found is not None or not before.in_force:
                return found or NOTHING_HELD
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
