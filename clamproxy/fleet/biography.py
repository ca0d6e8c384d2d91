"""One machine's story, put together from all its addresses: for commands, pages and programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from clamproxy.config.labels import NO_LABELS, Labels
from clamproxy.fleet.agent import shown_address
from clamproxy.fleet.machine import Machine
from clamproxy.fleet.reading import ReleaseHistory, read_machine
from clamproxy.fleet.story import PROGRAM, Asked, Story, StoryError


@dataclass(frozen=True, slots=True)
class Step:
    """A version that a machine has had. Times are in Unix seconds."""

    database: str
    version: int | None
    """None: the machine asked as if it had none."""
    at: float
    """When the gateway learned of it."""
    address: str
    fetched: bool
    """Whether it was fetched from this gateway; otherwise a later request has shown it."""
    came_out: float | None
    """When ClamAV built it, as far as that is known."""

    @property
    def took(self) -> float | None:
        """Seconds from the release until the machine had it; None if that is unknown."""
        return max(0.0, self.at - self.came_out) if self.fetched and self.came_out is not None else None


@dataclass(frozen=True, slots=True)
class Biography:
    """What is known about a machine. Lists begin with the newest."""

    machines: Sequence[Machine]
    """The machine at each of its addresses, the one of the latest request first; never empty."""
    steps: Sequence[Step]
    programs: Sequence[tuple[str | None, float]]
    """Versions of freshclam, and since when each is known, in Unix seconds."""
    errors: Sequence[StoryError]
    """The last one of each kind at each address."""
    requests: Sequence[tuple[str, Asked]]
    """The last requests, each with the address that it came from."""
    request_count: int
    since: float | None
    """Since when requests have been counted, in Unix seconds; None if none has been."""

    @property
    def latest(self) -> Machine:
        """The machine as its last request has shown it."""
        return self.machines[0]

    def to_json(self) -> dict[str, Any]:
        """For programs: times are in Unix seconds, durations in seconds, and None means unknown."""
        return {
            "uuid": self.latest.uuid,
            "name": self.latest.name,
            "group": self.latest.group,
            "cloned": self.latest.cloned,
            "machines": [machine.to_json() for machine in self.machines],
            "request_count": self.request_count,
            "since": self.since,
            "versions": [
                {
                    "database": step.database,
                    "version": step.version,
                    "at": step.at,
                    "address": step.address,
                    "fetched": step.fetched,
                    "came_out": step.came_out,
                    "took": step.took,
                }
                for step in self.steps
            ],
            "freshclam": [{"version": version, "at": at} for version, at in self.programs],
            "errors": [
                {"kind": one.kind, "at": one.at, "what": one.what, "count": one.times} for one in self.errors
            ],
            "requests": [
                {
                    "at": float(one.at),
                    "address": address,
                    "what": one.what,
                    "status": one.status,
                    "bytes": one.length,
                }
                for address, one in self.requests
            ],
        }


def read_biography(
    directory: Path, uuid: str, advertised: Mapping[str, int], now: float, labels: Labels = NO_LABELS
) -> Biography | None:
    """The story of the machine with a UUID; None if there is no such machine. Blocks for milliseconds.

    Args:
        directory, advertised, now, labels: as for `read_fleet`.

    Raises:
        UnreadableFleetError: the table can't be read.
    """
    machines, stories, history = read_machine(directory, uuid, advertised, now, labels)
    if not machines:
        return None
    machines = sorted(machines, key=lambda machine: machine.last_seen, reverse=True)
    errors = chain.from_iterable(story.errors for story in stories)
    requests = [(story.address, one) for story in stories for one in story.requests]
    return Biography(
        machines=machines,
        steps=_steps(stories, history),
        programs=_programs(stories),
        errors=sorted(errors, key=lambda error: error.at, reverse=True),
        requests=sorted(requests, key=lambda pair: pair[1].at, reverse=True),
        request_count=sum(story.request_count for story in stories),
        since=min((story.since for story in stories), default=None),
    )


def find_machines(machines: Iterable[Machine], text: str) -> list[str]:
    """The UUIDs of the machines that a text may mean: a UUID, an address, a name, or the name's first label.

    The first of these that fits any machine decides.
    """
    wanted = text.lower()
    fits: tuple[Callable[[Machine], bool], ...] = (
        lambda machine: machine.uuid == wanted,
        lambda machine: machine.address == shown_address(text),
        lambda machine: (machine.name or "").lower() == wanted,
        lambda machine: (machine.name or "").lower().partition(".")[0] == wanted,
    )
    everything = list(machines)
    for fit in fits:
        if found := list(dict.fromkeys(machine.uuid for machine in everything if fit(machine))):
            return found
    return []


def _steps(stories: Sequence[Story], history: ReleaseHistory) -> list[Step]:
    steps = [
        Step(
            database=one.what,
            version=one.version,
            at=float(one.at),
            address=story.address,
            fetched=one.is_fetched,
            came_out=None if one.version is None else history.came_out(one.what, one.version),
        )
        for story in stories
        for one in story.changes
        if not isinstance(one.version, str) and one.what != PROGRAM
    ]
    return sorted(steps, key=lambda step: step.at, reverse=True)


def _programs(stories: Sequence[Story]) -> list[tuple[str | None, float]]:
    """Each change of freshclam's version, once though it was noticed at several addresses."""
    seen = sorted(
        ((float(one.at), one.version) for story in stories for one in story.changes if one.what == PROGRAM),
        key=lambda pair: pair[0],
    )
    changes: list[tuple[str | None, float]] = []
    for at, version in seen:
        shown = None if version is None else str(version)
        if not changes or changes[-1][0] != shown:
            changes.append((shown, at))
    return changes[::-1]
