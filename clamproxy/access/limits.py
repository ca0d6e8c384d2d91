"""Limits: how many connections there are, of all clients and of each."""

from __future__ import annotations

import resource
from collections import Counter
from contextlib import suppress

DESCRIPTORS_PER_CONNECTION = 2
"""The socket, and the file that is sent."""
OTHER_DESCRIPTORS = 256
"""Of the cache's index, the origin's connections, the log."""


class ConnectionLimits:
    """Counts connections. Not safe to share between threads."""

    def __init__(self, in_all: int, per_client: int) -> None:
        """Start without any.

        Args:
            in_all: connections that may be open at a time.
            per_client: the same for one address.
        """
        self.in_all = in_all
        self.per_client = per_client
        self._open: Counter[str] = Counter()
        self._total = 0

    @property
    def is_full(self) -> bool:
        """Whether as many connections are open as may be."""
        return self._total >= self.in_all

    def take(self, address: str) -> str | None:
        """A client has connected: count it, if the limits admit it.

        Returns:
            The limit that is reached, by the name of its setting; then it isn't counted.
        """
        if self.is_full:
            return "access.max_connections"
        if self._open[address] >= self.per_client:
            return "access.max_connections_per_client"
        self._open[address] += 1
        self._total += 1
        return None

    def leave(self, address: str) -> None:
        """One that was counted is gone."""
        self._total -= 1
        self._open[address] -= 1
        if self._open[address] <= 0:
            del self._open[address]


def provide_descriptors(connections: int) -> int:
    """Raise the process's own limit of open files as far as is needed and allowed.

    Args:
        connections: that are to be open at a time.

    Returns:
        How many connections the limit leaves room for; less than `connections` where the hard
        limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections * DESCRIPTORS_PER_CONNECTION + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        # The system may refuse what its own limit seems to allow (fs.nr_open).
        with suppress(OSError, ValueError, OverflowError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, (soft - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION)
