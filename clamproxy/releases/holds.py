"""Holds: the databases that an administrator holds at a version, in a file of the state directory.

`clamproxy hold` and `clamproxy release` write the file, every running gateway reads it, and writes it anew if
it is lost. It isn't part of the cache, so it survives `clamproxy purge`. The gateways of a site merge their
files (see `site_holds`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from clamproxy.files import open_lock, open_to_read, replacing, try_lock
from clamproxy.objects import MAX_VERSION
from clamproxy.untrusted import parse_json

FILE_NAME = "holds.json"
_LOCK_NAME = "holds.lock"
_KEPT_CHANGES = 100
_TICK = 0.001
"""Seconds by which a change is later than the one that it was made after, whatever the clocks say."""
_PATIENCE = 5.0
"""Seconds to wait for another command that changes the file; none takes that long."""
_LONGEST_FILE = 2**20
_REPAIRED_WITHIN = 2.0
"""Seconds within which a running gateway, if there is one, has written a damaged file anew."""


REPAIR = (
    "`clamproxy hold DATABASE VERSION` writes a new one with what should be held, "
    "or delete it if nothing should be"
)


class HoldsError(Exception):
    """The file can't be used; the text is one line."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A database is held at a version."""

    version: int
    since: float
    """Unix seconds."""
    by: str
    """The user who ran the command."""
    why: str = ""

    @classmethod
    def parse(cls, saved: Any) -> Self:
        """Read what was saved as JSON.

        Raises:
            ValueError: it is something else.
        """
        match saved:
            case {"version": int(version), "since": int() | float() as since, "by": str(by), "why": str(why)}:
                if 0 < version <= MAX_VERSION:
                    return cls(version, float(since), by, why)
        raise ValueError("no hold")

    def explain(self) -> str:
        """By whom and why, for a line of text."""
        return f"by {self.by}: {self.why}" if self.why else f"by {self.by}"


@dataclass(frozen=True, slots=True)
class HoldChange:
    """Something that was done to the hold of a database."""

    database: str
    at: float
    """Unix seconds; later than the change before, even if that was made where a clock is fast."""
    by: str
    version: int | None
    """The version at which the database is held since then; None: it was released."""
    why: str = ""

    @classmethod
    def parse(cls, saved: Any) -> Self:
        """Read what was saved as JSON.

        Raises:
            ValueError: it is something else.
        """
        match saved:
            case {"database": str(database), "at": int() | float() as at, "by": str(by), "why": str(why)}:
                version = saved.get("version")
                if version is None or isinstance(version, int):
                    return cls(database, float(at), by, version, why)
        raise ValueError("no change of a hold")


@dataclass(frozen=True, slots=True)
class Holds:
    """All holds in force, by database, and what was done to them."""

    in_force: Mapping[str, Hold]
    changes: tuple[HoldChange, ...] = ()
    """The latest ones, oldest first."""


NOTHING_HELD = Holds({})


def read_holds(directory: Path) -> Holds:
    """The holds as they are now, none if there is no file. For the rest, see `find_holds`."""
    return find_holds(directory) or NOTHING_HELD


def read_all_holds(directory: Path, cache: Path) -> Holds:
    """The holds, with those that the next start moves from the cache to the state directory. Blocks.

    Raises:
        HoldsError: see `find_holds`.
    """
    holds, others = read_holds(directory), find_holds(cache) if cache != directory else None
    return holds if others is None else merged(holds, others)


def find_holds(directory: Path) -> Holds | None:
    """The holds in the file; None if there is none. Blocks.

    Args:
        directory: the state directory.

    Raises:
        HoldsError: the file can't be read, or is damaged.
    """
    path = directory / FILE_NAME
    try:
        with open_to_read(path) as file:
            return decode(file.read(_LONGEST_FILE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HoldsError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise HoldsError(f"{path} is damaged; {REPAIR}") from error


def encode(holds: Holds) -> bytes:
    """The content of the file."""
    content = {
        "holds": {name: asdict(one) for name, one in sorted(holds.in_force.items())},
        "changes": [asdict(change) for change in _latest(holds.changes)],
    }
    return json.dumps(content, indent=1).encode()


def decode(content: bytes) -> Holds:
    """The inverse of `encode`.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = parse_json(content)
        held = {str(name): Hold.parse(one) for name, one in found["holds"].items()}
        return Holds(held, tuple(map(HoldChange.parse, found["changes"])))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("no holds") from error


def merged(ours: Holds, theirs: Holds) -> Holds:
    """What is held by two gateways of a site: of each database, the latest change counts. Pure."""
    changes = sorted({*_all_changes(ours), *_all_changes(theirs)}, key=_order)
    in_force = {}
    for database, change in {one.database: one for one in changes}.items():
        if change.version is not None:
            made = Hold(change.version, change.at, change.by, change.why)
            known = (holds.in_force.get(database) for holds in (ours, theirs))
            # If the same was done at both, each has its own time; they must come to the same result.
            fitting = (one for one in known if one is not None and _is_by(one, change))
            in_force[database] = max(fitting, key=lambda one: one.since, default=made)
    return Holds(in_force, _latest(changes))


def hold(directory: Path, database: str, new: Hold) -> Hold | None:
    """Hold a database at a version from now on. Blocks. A damaged file is replaced by one with this hold.

    Returns:
        The hold that this one replaces.

    Raises:
        HoldsError: the file can't be changed.
    """
    with _changing(directory):
        holds = _readable(directory)
        former = holds.in_force.get(database)
        change = HoldChange(database, _next(holds, database, new.since), new.by, new.version, new.why)
        _write(directory, Holds({**holds.in_force, database: new}, (*holds.changes, change)))
    return former


def release(directory: Path, database: str, by: str, now: float) -> Hold | None:
    """Lift the hold of a database. Blocks.

    Returns:
        That hold; None if the database wasn't held.

    Raises:
        HoldsError: the file can't be changed, or what is held can't be read.
    """
    with _changing(directory):
        holds = read_holds(directory)
        left = dict(holds.in_force)
        lifted = left.pop(database, None)
        if lifted is not None:
            change = HoldChange(database, _next(holds, database, now), by, None)
            _write(directory, Holds(left, (*holds.changes, change)))
    return lifted


def merge(directory: Path, theirs: Holds) -> Holds:
    """Merge what is held elsewhere into the file. Blocks.

    Returns:
        What is held now.

    Raises:
        HoldsError: the file can't be changed, or what is held can't be read.
    """
    with _changing(directory):
        ours = read_holds(directory)
        both = merged(ours, theirs)
        if both != ours:
            _write(directory, both)
    return both


def restore(directory: Path, known: Holds) -> Holds:
    """Write a file anew that was damaged or is gone, unless another process has done so. Blocks.

    Args:
        known: what it said before.

    Returns:
        What is held now.

    Raises:
        HoldsError: the file can't be changed.
    """
    with _changing(directory):
        with suppress(HoldsError):
            found = find_holds(directory)
            if found is not None:
                return found
        _write(directory, known)
    return known


def wait_for_repair(directory: Path) -> None:
    """Wait a moment while the file is damaged: a running gateway knows what was held. Blocks."""
    deadline = time.monotonic() + _REPAIRED_WITHIN
    while time.monotonic() < deadline:
        try:
            read_holds(directory)
        except HoldsError:
            time.sleep(0.05)
        else:
            return


@contextmanager
def _changing(directory: Path) -> Iterator[None]:
    """No other process can change the file inside this context."""
    try:
        with open_lock(directory / _LOCK_NAME) as lock:
            deadline = time.monotonic() + _PATIENCE
            while not try_lock(lock):
                if time.monotonic() > deadline:
                    raise HoldsError(f"{directory}: another command is changing the holds")
                time.sleep(0.05)
            yield
    except OSError as error:
        raise HoldsError(f"{error.filename or directory}: {error.strerror or error}") from error


def _readable(directory: Path) -> Holds:
    """The holds; a damaged file is as good as none for a command that replaces it."""
    try:
        return read_holds(directory)
    except HoldsError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return NOTHING_HELD


def _write(directory: Path, holds: Holds) -> None:
    with replacing(directory / FILE_NAME) as file:
        file.write(encode(holds))


def _next(holds: Holds, database: str, now: float) -> float:
    """The time of a change that is made now."""
    return max([now, *(one.at + _TICK for one in _all_changes(holds) if one.database == database)])


def _all_changes(holds: Holds) -> list[HoldChange]:
    """The changes, with those of which only the hold is left."""
    changed = {one.database for one in holds.changes}
    implied = [
        HoldChange(name, one.since, one.by, one.version, one.why)
        for name, one in holds.in_force.items()
        if name not in changed
    ]
    return [*implied, *holds.changes]


def _latest(changes: Sequence[HoldChange]) -> tuple[HoldChange, ...]:
    """As many changes as are kept: the latest ones, and the last one of each database."""
    last = {one.database: one for one in changes}.values()
    begin = len(changes) - _KEPT_CHANGES
    return tuple(one for number, one in enumerate(changes) if number >= begin or one in last)


def _order(change: HoldChange) -> tuple[float, int, str, str, str]:
    """The same everywhere, also for changes of the same moment."""
    return change.at, change.version or 0, change.database, change.by, change.why


def _is_by(hold: Hold, change: HoldChange) -> bool:
    return (hold.version, hold.by, hold.why) == (change.version, change.by, change.why)


def shortened(new: Hold, longest: int = 200) -> Hold:
    """The hold with a reason that fits into one line of a log."""
    text = " ".join("".join(c if c.isprintable() else " " for c in new.why).split())
    return replace(new, why=text[:longest])
