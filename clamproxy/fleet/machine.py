"""Machines: what the fleet knows about each client, and about all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from clamproxy.config.labels import NO_GROUP
from clamproxy.fleet.observer import Failure


class MachineState(StrEnum):
    """How up to date a machine is; the values are the keys of `summary`."""

    BEHIND = "behind"
    UNKNOWN = "unknown"
    UP_TO_DATE = "up_to_date"


@dataclass(frozen=True, slots=True)
class Database:
    """What is known about a database on a machine. Times are in Unix seconds."""

    version: int
    """The last known version; the machine may have got a newer one elsewhere."""
    behind: int | None
    """How many releases it is behind the advertised version; None while no version is advertised."""
    behind_since: float | None
    """When the first release that it lacks came out (`reading.ReleaseHistory`); None if unknown."""
    seen_at: float
    """When the gateway learned that the machine has this version."""

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "behind": self.behind,
            "behind_since": self.behind_since,
            "seen_at": self.seen_at,
        }

    def is_behind(self, releases: int, seconds: float, now: float) -> bool:
        """Whether it is at least `releases` releases behind, and has been for at least `seconds`.

        If it is unknown since when, it counts as behind: one warning too many is better than silence.
        """
        if (self.behind or 0) < max(releases, 1):
            return False
        return self.behind_since is None or now - self.behind_since >= seconds


@dataclass(frozen=True, slots=True)
class Machine:
    """A client: an installation of freshclam at an address. Times are in Unix seconds."""

    uuid: str
    address: str
    freshclam: str | None
    os: str | None
    arch: str | None
    first_seen: float
    last_seen: float
    """The time of its last request. In DNS mode it makes none while it is up to date."""
    end_of_life: bool
    """Whether ClamAV no longer supports its freshclam."""
    databases: Mapping[str, Database]
    """By name; only databases with a known version."""
    last_error: Failure | None
    name: str | None = None
    """From the file of labels, else from reverse DNS; None if neither has one."""
    group: str | None = None
    """From the file of labels."""
    cloned: bool = False
    """Whether several machines have its UUID (see `clones`)."""

    @property
    def behind(self) -> int:
        """How many releases it is known to be behind, in the database that is furthest behind."""
        return max((database.behind or 0 for database in self.databases.values()), default=0)

    def is_behind(self, now: float, *, releases: int = 1, seconds: float = 0.0) -> bool:
        """Whether one of its databases is that far behind, as `Database.is_behind` counts it."""
        return any(database.is_behind(releases, seconds, now) for database in self.databases.values())

    def is_in(self, group: str) -> bool:
        """Whether it is in a group; `NO_GROUP` stands for none."""
        return self.group == (None if group == NO_GROUP else group)

    @property
    def state(self) -> MachineState:
        if self.behind:
            return MachineState.BEHIND
        known = [database.behind is not None for database in self.databases.values()]
        return MachineState.UP_TO_DATE if known and all(known) else MachineState.UNKNOWN

    @property
    def trouble(self) -> Failure | None:
        """Its last error, unless something has been learned about its databases since."""
        last = max((database.seen_at for database in self.databases.values()), default=0.0)
        return self.last_error if self.last_error is not None and self.last_error.at >= last else None

    def to_json(self) -> dict[str, Any]:
        """For programs: times are in Unix seconds, and None means unknown."""
        error = self.last_error
        return {
            "uuid": self.uuid,
            "address": self.address,
            "name": self.name,
            "group": self.group,
            "cloned": self.cloned,
            "freshclam": self.freshclam,
            "os": self.os,
            "arch": self.arch,
            "last_seen": self.last_seen,
            "first_seen": self.first_seen,
            "end_of_life": self.end_of_life,
            "databases": {name: database.to_json() for name, database in sorted(self.databases.items())},
            "last_error": None if error is None else {"at": error.at, "what": error.what},
        }


def worst_first[M: Machine](machines: Iterable[M]) -> list[M]:
    """Machines in the order in which they need attention; among equals, the longest silent first."""
    return sorted(
        machines,
        key=lambda machine: (
            -machine.behind,
            not machine.end_of_life,
            machine.state is MachineState.UP_TO_DATE,
            machine.last_seen,
        ),
    )


class Spread(NamedTuple):
    """How many machines have which versions of a database."""

    older: int
    same: int
    newer: int


def spread(machines: Iterable[Machine], database: str, version: int) -> Spread:
    """How many machines have an older version of a database than this one, the same, or a newer one."""
    known = [machine.databases[database].version for machine in machines if database in machine.databases]
    older, newer = sum(one < version for one in known), sum(one > version for one in known)
    return Spread(older, len(known) - older - newer, newer)


def summary(machines: Iterable[Machine]) -> dict[str, int]:
    """The number of machines: in total, in each state, and with a freshclam past its end of life."""
    counts = {
        "total": 0,
        **{state.value: 0 for state in (MachineState.UP_TO_DATE, MachineState.BEHIND, MachineState.UNKNOWN)},
    }
    counts["end_of_life"] = 0
    for machine in machines:
        counts["total"] += 1
        counts[machine.state.value] += 1
        counts["end_of_life"] += machine.end_of_life
    return counts
