"""Stories: what has happened to one machine at one address, within bounds.

To add to a story must not need to read it: it is kept as lines of text, the newest first, and cut at its end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from clamproxy.fleet.agent import Agent
from clamproxy.fleet.observer import Failure, FindBuild, Knowledge, asked, received
from clamproxy.fleet.visit import Visit

PROGRAM = "freshclam"
"""What is said to change with another version of freshclam. No database is called that."""
NOTHING = "-"
"""Instead of a file, for a path that no database has."""


class VersionChange(NamedTuple):
    """Another version of a database, or of freshclam."""

    what: str
    """A database, or `PROGRAM`."""
    version: int | str | None
    """None: the machine asked as if it had none."""
    at: int
    """When the gateway learned of it, in Unix seconds."""
    is_fetched: bool = False
    """Whether the gateway has sent the version; otherwise a later request has shown it."""
    seen_before: int = 0
    """When the earlier version was last seen, in Unix seconds; 0 if there was none."""


class Asked(NamedTuple):
    """A request."""

    at: int
    what: str
    """The file, or `NOTHING`."""
    status: int
    length: int
    """Bytes of content sent."""


class StoryError(NamedTuple):
    """The last error of a kind."""

    kind: str
    at: float
    what: str
    times: int
    """How many there have been of this kind."""


@dataclass(slots=True)
class Addition:
    """What some visits add to a story; the oldest comes first."""

    requests: list[Asked] = field(default_factory=list)
    changes: list[VersionChange] = field(default_factory=list)
    errors: list[Failure] = field(default_factory=list)

    @property
    def has_fetched(self) -> bool:
        return any(change.is_fetched for change in self.changes)

    def meet(self, agent: Agent, known_as: Agent | None, at: float) -> None:
        """Add what a User-Agent tells; `known_as` is the one before."""
        if known_as is None or known_as.freshclam != agent.freshclam:
            self.changes.append(VersionChange(PROGRAM, agent.freshclam, int(at)))

    def note(self, visit: Visit, known: Knowledge, find_build: FindBuild) -> Knowledge:
        """Add a request and its response.

        Args:
            known: what was known before.

        Returns:
            What is known now, as from `observe`.
        """
        target = visit.target
        what = target.upstream_path[1:] if target is not None else NOTHING
        self.requests.append(Asked(int(visit.at), what, visit.status, visit.length))
        shown = asked(visit, known, find_build)
        self._compare(known, shown, visit, is_fetched=False)
        after = received(visit, shown)
        self._compare(shown, after, visit, is_fetched=True)
        return after

    def _compare(self, before: Knowledge, after: Knowledge, visit: Visit, *, is_fetched: bool) -> None:
        if after is before or visit.target is None:
            return
        if after.last_error is not None and after.last_error is not before.last_error:
            self.errors.append(after.last_error)
        name = visit.target.database
        old, new = before.holdings.get(name), after.holdings.get(name)
        version = None if new is None else new.version
        if version != (None if old is None else old.version):
            seen = 0 if old is None else int(old.seen_at)
            self.changes.append(VersionChange(name, version, int(visit.at), is_fetched, seen))


@dataclass(frozen=True, slots=True)
class Story:
    """What is remembered of a machine at an address; the newest comes first."""

    address: str
    since: float
    """When the story begins, in Unix seconds: with the machine, or with the first version of clamproxy that
    told any."""
    request_count: int
    """How many requests there have been since."""
    requests: Sequence[Asked]
    changes: Sequence[VersionChange]
    errors: Sequence[StoryError] = ()


def request_lines(requests: Sequence[Asked]) -> str:
    """Requests as they are stored, the newest first; in `requests` the oldest comes first."""
    return "".join([f"{at} {what} {status} {length}\n" for at, what, status, length in reversed(requests)])


def change_lines(changes: Sequence[VersionChange]) -> str:
    """The same for changes."""
    return "".join([_change_line(change) for change in reversed(changes)])


def _change_line(change: VersionChange) -> str:
    version = NOTHING if change.version is None else change.version
    return f"{change.what} {version} {change.at} {change.is_fetched:d} {change.seen_before}\n"


def parse_requests(text: str) -> list[Asked]:
    """The newest first, even if several processes have written them."""
    return sorted(_parsed(text, _asked), key=lambda asked: -asked.at)


def parse_changes(text: str) -> list[VersionChange]:
    """The changes as they turned out to be: what was sent, but never installed, is left out."""
    lasting: defaultdict[str, list[VersionChange]] = defaultdict(list)
    for change in reversed(list(_parsed(text, _change))):
        earlier = lasting[change.what]
        if earlier and _was_in_vain(earlier[-1], change):
            earlier.pop()
            if earlier and earlier[-1].version == change.version:
                continue
        earlier.append(change)
    known = (change for changes in lasting.values() for change in changes)
    return sorted(known, key=lambda change: change.at)[::-1]


def _was_in_vain(fetched: VersionChange, shown: VersionChange) -> bool:
    """Whether a request shows that the machine has not installed what it fetched: its disk may be full.

    A later request that showed it proves the opposite; then the machine has been taken back to an older disk.
    """
    if not fetched.is_fetched or shown.is_fetched or shown.seen_before > fetched.at:
        return False
    return shown.version is None or _number(shown) < _number(fetched)


def _number(change: VersionChange) -> int:
    return change.version if isinstance(change.version, int) else 0


def _asked(at: str, what: str, status: str, length: str) -> Asked:
    return Asked(int(at), what, int(status), int(length))


def _change(what: str, version: str, at: str, is_fetched: str, seen_before: str) -> VersionChange:
    known = None if version == NOTHING else version if what == PROGRAM else int(version)
    return VersionChange(what, known, int(at), is_fetched == "1", int(seen_before))


def _parsed[T](text: str, parse: Callable[..., T]) -> Iterator[T]:
    """The lines that are whole: the last one may be cut, and the disk may be bad."""
    for line in text.split("\n")[:-1]:
        with suppress(ValueError, TypeError):
            yield parse(*line.split(" "))
