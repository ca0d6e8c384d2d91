"""Clones: several machines with one UUID, because freshclam.dat was copied with a disk image.

A machine that moves has several addresses as well, and one with two networks uses both by turns. But a
machine fetches each release only once, wherever it is. Clones each fetch it: one after the other, and the
next release again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from clamproxy.fleet.story import VersionChange

ROUNDS = 3
"""Releases that were fetched at several addresses, one release after the other. Fewer can have other causes:
a disk that was restored from a backup, or a laptop that was carried away while it fetched."""
WINDOW = 10 * 86400.0
"""Seconds into the past that count."""

type _Fetches = Mapping[int, int]
"""By version, when it was fetched."""


def last_round(addresses: Sequence[Sequence[VersionChange]], now: float) -> float | None:
    """When the last of the releases that clones have fetched was fetched; None if they are no clones.

    Args:
        addresses: what has changed on the machines with one UUID, at each of their addresses.
        now: Unix seconds.
    """
    names = {change.what for changes in addresses for change in changes if change.is_fetched}
    rounds = [_last_round([_fetches(changes, name, now) for changes in addresses]) for name in names]
    return max(filter(None, rounds), default=None)


def _fetches(changes: Sequence[VersionChange], database: str, now: float) -> _Fetches:
    """The releases fetched at one address. A container that is made anew each day fetches one at each."""
    fetched = {
        one.version: one.at
        for one in changes
        if one.what == database and one.is_fetched and isinstance(one.version, int) and one.at > now - WINDOW
    }
    return fetched if len(fetched) > 1 else {}


def _last_round(addresses: Sequence[_Fetches]) -> float | None:
    times: defaultdict[int, list[int]] = defaultdict(list)
    for fetches in addresses:
        for version, at in fetches.items():
            times[version].append(at)
    rounds, end = 0, 0
    # A machine that goes back to its image each day fetches the same releases again and again: they overlap.
    for last, first in sorted((max(at), min(at)) for at in times.values() if len(at) > 1):
        if first > end:
            rounds, end = rounds + 1, last
    return float(end) if rounds >= ROUNDS else None
