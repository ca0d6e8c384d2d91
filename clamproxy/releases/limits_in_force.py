"""What holds and delays limit at this moment, for commands and pages. Blocks for some milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.config.settings import ReleasesSection
from clamproxy.notes import Notes
from clamproxy.readable import shown_span, shown_time
from clamproxy.releases.ceiling import Cause, ceiling, newest_released, without_wrong_times
from clamproxy.releases.first_seen import TOPIC, load_seen
from clamproxy.releases.holds import NOTHING_HELD, Hold, HoldsError, read_all_holds


@dataclass(frozen=True, slots=True)
class Limit:
    """A database of which clients in general aren't shown every version. Times are in Unix seconds."""

    database: str
    version: int
    """The highest version that they are shown."""
    cause: Cause
    hold: Hold | None
    """The hold; None if it is only a delay."""
    until: float | None
    """When the delay of the next version ends; None if there is a hold, which has no end."""
    is_forgotten: bool
    """Whether the hold is older than `releases.longest_hold`."""

    def to_json(self) -> dict[str, Any]:
        hold = self.hold
        return {
            "database": self.database,
            "version": self.version,
            "cause": str(self.cause),
            "since": None if hold is None else hold.since,
            "by": None if hold is None else hold.by,
            "why": None if hold is None else hold.why,
            "until": self.until,
            "forgotten": self.is_forgotten,
        }

    def describe(self, now: float) -> str:
        """The limit in one line, for people."""
        if self.hold is not None:
            what = f"held at version {self.hold.version} since {shown_time(self.hold.since)}"
            return f"{self.database}: {what}, {self.hold.explain()}"
        rest = "" if self.until is None else f" for {shown_span(self.until - now)}"
        return f"{self.database}: machines get version {self.version}; newer ones are held back{rest}"

    def warning(self, now: float) -> str | None:
        """A line about a hold that seems forgotten."""
        if self.hold is None or not self.is_forgotten:
            return None
        age = shown_span(now - self.hold.since)
        return (
            f"{self.database} has been held at version {self.hold.version} for {age}, {self.hold.explain()}; "
            f"`clamproxy release {self.database}` lifts the hold"
        )


def read_limits(store: Store, settings: ReleasesSection, now: float) -> list[Limit]:
    """All limits in force, by database, for people. What can't be read isn't listed; see `hold_problem`.

    Args:
        store: the cache, with its records.
    """
    try:
        holds = read_all_holds(store.records.directory, store.directory)
    except HoldsError:
        holds = NOTHING_HELD
    return _limits(store, settings, now, holds.in_force)


def _limits(store: Store, settings: ReleasesSection, now: float, holds: Mapping[str, Hold]) -> list[Limit]:
    kept = Notes(store.records, None, TOPIC, read_only=True)
    told = Notes(store, None, TOPIC, read_only=True, shared=store.noted)
    seen = load_seen(kept, told)
    found = []
    for database in sorted({*holds, *settings.delay}):
        hold, delay = holds.get(database), settings.delay.get(database, 0.0)
        known = without_wrong_times(seen.get(database, {}), now)

        def is_servable(version: int, database: str = database) -> bool:
            return store.newest_version(database, version) is not None

        limit = ceiling(None if hold is None else hold.version, known, delay, now, is_servable)
        if limit is None:
            continue
        coming = min((at for at in known.values() if now - at < delay), default=None)
        if hold is None and (coming is None or newest_released(known, delay, now) == max(known)):
            continue  # the newest version has been released
        is_forgotten = hold is not None and now - hold.since >= settings.longest_hold
        until = None if hold is not None or coming is None else coming + delay
        found.append(Limit(database, limit.version, limit.cause, hold, until, is_forgotten))
    return found


def ceilings_of(store: Store, settings: ReleasesSection, now: float) -> dict[str, int]:
    """The highest version of each limited database that clients in general are shown.

    Raises:
        HoldsError: what is held can't be read.
    """
    holds = read_all_holds(store.records.directory, store.directory).in_force
    return {limit.database: limit.version for limit in _limits(store, settings, now, holds)}


def hold_problem(store: Store) -> str | None:
    """Why the file of holds can't be read, in one line; None if it can."""
    try:
        read_all_holds(store.records.directory, store.directory)
    except HoldsError as error:
        return f"what is held can't be read: {error}"
    return None
