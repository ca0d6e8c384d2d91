"""Limits on the number of connections: of all clients together, and of each."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from contextlib import suppress
from typing import Protocol

from clamproxy.config.loading import ConfigurationError

DESCRIPTORS_PER_CONNECTION = 2
"""File descriptors for a connection: the socket, and the file that is being sent."""
OTHER_DESCRIPTORS = 256
"""File descriptors for the cache's index, connections to the origin and the log."""
LEAST_CONNECTIONS = 16
"""With room for fewer than this and fewer than are wanted, a gateway is of no use."""


class Elsewhere(Protocol):
    """The connections that other processes of this machine have, and what they know of this one's."""

    def total(self) -> int:
        """How many the others have."""

    def of(self, address: str) -> int:
        """How many of them are a client's."""

    def came(self, address: str) -> None:
        """This process has one more."""

    def left(self, address: str) -> None:
        """This process has one less."""


class ConnectionLimits:
    """Counts connections. Not safe to share between threads.

    Args:
        in_all: how many connections may be open at a time.
        per_client: the same for one address.
    """

    def __init__(self, in_all: int, per_client: int) -> None:
        self.in_all = in_all
        self.per_client = per_client
        self.room = sys.maxsize
        """For how many this process has descriptors. Those of other processes don't count."""
        self.elsewhere: Elsewhere | None = None
        """None if this process alone serves clients."""
        self._open: Counter[str] = Counter()
        self._total = 0

    @property
    def is_full(self) -> bool:
        """Whether as many connections are open as allowed."""
        return self.reached is not None

    @property
    def reached(self) -> str | None:
        """The limit on all connections that has been reached, as `take` names it."""
        others = self.elsewhere.total() if self.elsewhere is not None else 0
        if self._total + others >= self.in_all:
            return "access.max_connections"
        return "The limit of open files" if self._total >= self.room else None

    def take(self, address: str, *, is_shared: bool = False) -> str | None:
        """Count a new connection, if the limits allow it.

        Args:
            is_shared: whether many clients use the address, so that the limit for one doesn't apply.

        Returns:
            The limit that has been reached, by the name of its setting if it has one; then the
            connection isn't counted.
        """
        if (reached := self.reached) is not None:
            return reached
        others = self.elsewhere.of(address) if self.elsewhere is not None else 0
        if not is_shared and self._open[address] + others >= self.per_client:
            return "access.max_connections_per_client"
        if self.elsewhere is not None:
            self.elsewhere.came(address)
        self._open[address] += 1
        self._total += 1
        return None

    def leave(self, address: str) -> None:
        """A connection that was counted has been closed."""
        if self.elsewhere is not None:
            self.elsewhere.left(address)
        self._total -= 1
        self._open[address] -= 1
        if self._open[address] <= 0:
            del self._open[address]


def descriptors_for(connections: int) -> int:
    """How many files the process must be allowed to open for so many connections."""
    return connections * DESCRIPTORS_PER_CONNECTION + OTHER_DESCRIPTORS


def provide_descriptors(connections: int) -> int:
    """Raise the process's own limit on open files, as far as needed and allowed.

    Args:
        connections: how many shall be open at a time.

    Returns:
        How many connections the limit leaves room for; fewer than `connections` if the hard limit is too
        low, and less than 0 if it isn't enough for anything else either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors_for(connections)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        # The system may refuse what its own limit seems to allow (fs.nr_open).
        with suppress(OSError, ValueError, OverflowError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, (soft - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION)


def require_descriptors(connections: int) -> None:
    """Check that at least a few clients can be served beside all else that needs open files.

    Args:
        connections: how many are wanted.

    Raises:
        ConfigurationError: the limit of open files is too low for that.
    """
    least = min(connections, LEAST_CONNECTIONS)
    if provide_descriptors(connections) < least:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise ConfigurationError(
            f"the limit of open files (ulimit -n, or LimitNOFILE of systemd) is {allowed}: at least "
            f"{descriptors_for(least)} are needed, and {descriptors_for(connections)} for "
            f"access.max_connections: {connections}"
        )
