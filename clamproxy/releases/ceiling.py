"""The ceiling of a database: the highest version that a client is shown. Pure.

It comes from a hold, which an administrator puts on a database in an emergency, or from `releases.delay`,
which holds every release back for a while. The gateway itself goes on fetching and verifying what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from clamproxy.config.settings import LONGEST_DELAY
from clamproxy.policy import PLAUSIBLE_LEAD

KNOWN_BEFORE = 0.0
"""When the first version that a gateway hears of counts as first seen. Machines may have it already."""
MOST_REMEMBERED = 1000
"""How many versions of a database are remembered at most: 33 a day within the longest delay."""
CLOCK_DIFFERENCE = 3600.0
"""By how many seconds a clock may be set back without having been wrong."""

NOTED_DIFFERENCE = 10.0
"""By how many seconds another gateway of the site must have seen a version earlier to be remembered."""

type FirstSeen = Mapping[int, float]
"""When each version was first seen advertised, in Unix seconds."""


NOTHING_SEEN: FirstSeen = {}


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


def with_version(seen: FirstSeen, version: int, now: float, others: FirstSeen = NOTHING_SEEN) -> FirstSeen:
    """What was seen, with a version that is advertised now, and without what no delay needs any more.

    Args:
        others: what other gateways of the site have seen.
    """
    known = dict(seen or others)
    if version not in known:
        known[version] = others.get(version) or (now if known else KNOWN_BEFORE)
    oldest = newest_released(known, LONGEST_DELAY, now) or 0
    *former, last = sorted(one for one in known.items() if one[0] >= oldest)
    # The oldest ones stay: if none had been released, the newest would be shown at once.
    return dict([*former[: MOST_REMEMBERED - 1], last])


def earliest(own: FirstSeen, others: Iterable[FirstSeen]) -> FirstSeen:
    """What the gateways of a site have seen together: each version when the first of them saw it.

    A gateway that has known a version from the start can't tell when it came out, but another one may.
    """
    found = dict(own)
    for seen in others:
        for version, at in seen.items():
            known = found.get(version)
            if at == KNOWN_BEFORE:
                if version < min(own, default=version + 1):
                    found.setdefault(version, at)
            elif known is None or known == KNOWN_BEFORE or at < known:
                found[version] = at
    return found


def corrected(own: FirstSeen, together: FirstSeen) -> FirstSeen:
    """What a gateway should remember, so that it lifts a delay at the same time even without the others.

    Small differences stay: clocks are never known exactly, and two gateways would correct each other forever.

    Args:
        together: from `earliest`.
    """
    return {
        version: together[version] if at - together[version] >= NOTED_DIFFERENCE or at == KNOWN_BEFORE else at
        for version, at in own.items()
    }


def without_errors(seen: FirstSeen, version: int, at_origin: int) -> FirstSeen:
    """What was seen, without what is implausibly far above what is advertised now: that was an error of DNS.

    It would count as released when its delay is over, and let everything pass.

    Args:
        version: what DNS says now.
        at_origin: the version in the origin's own header; 0 if unknown. DNS may be the one that is behind.
    """
    highest = max(version, at_origin) + PLAUSIBLE_LEAD
    return {one: at for one, at in seen.items() if one <= highest}


def without_wrong_times(seen: FirstSeen, now: float) -> FirstSeen:
    """What was seen, where a time in the future, which a wrong clock noted, is replaced by "long ago"."""
    return {one: KNOWN_BEFORE if at > now + CLOCK_DIFFERENCE else at for one, at in seen.items()}
