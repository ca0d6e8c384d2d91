"""The ceiling of a database: the highest version that a client is shown. Pure.

It comes from a hold, which an administrator puts on a database in an emergency, or from `releases.delay`,
which holds every release back for a while. The gateway itself goes on fetching and verifying what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from clamproxy.policy import PLAUSIBLE_LEAD

KNOWN_BEFORE = 0.0
"""When the first version that a gateway hears of counts as first seen. Machines may have it already."""
REMEMBERED = 20
"""How many versions of a database are remembered with the time when they were first seen."""

type FirstSeen = Mapping[int, float]
"""When each version was first seen advertised, in Unix seconds."""


class Cause(StrEnum):
    """What limits the versions that clients are shown."""

    HOLD = "hold"
    DELAY = "delay"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The highest version that a client is shown, and why no higher one."""

    version: int
    cause: Cause


def ceiling(
    held: int | None, seen: FirstSeen, delay: float, now: float, is_servable: Callable[[int], bool]
) -> Ceiling | None:
    """The ceiling for a client; None if it is shown the newest version.

    Args:
        held: the version at which the database is held; None if it isn't.
        delay: seconds for which a release is held back from this client; 0 if it isn't.
        is_servable: whether the cache has something to serve under a ceiling. If not, a delay must not hide
            everything. A hold does: it is the emergency brake.
    """
    released = newest_released(seen, delay, now) if delay else None
    if released is not None and not is_servable(released):
        released = None
    if held is not None and (released is None or held <= released):
        return Ceiling(held, Cause.HOLD)
    return None if released is None else Ceiling(released, Cause.DELAY)


def newest_released(seen: FirstSeen, delay: float, now: float) -> int | None:
    """The newest version that was first seen at least `delay` seconds ago; None if there is none."""
    return max((version for version, at in seen.items() if now - at >= delay), default=None)


def with_version(seen: FirstSeen, version: int, now: float) -> FirstSeen:
    """What was seen, with a version that is advertised now.

    What is implausibly far above it was an error of DNS, and is forgotten: otherwise it would count as
    released when its delay is over, and let everything pass.
    """
    known = {one: at for one, at in seen.items() if one <= version + PLAUSIBLE_LEAD}
    if version not in known:
        known[version] = now if known else KNOWN_BEFORE
    return dict(sorted(known.items())[-REMEMBERED:])
