"""Leases: work that only one process of a site should do at a time is done under a lease named after it.

A lease is taken, kept while the work goes on, and released. If its holder is gone, it ends on its own, and
another process takes the work over. There are two engines with this contract: the cache directory, for the
processes of one machine, and an object store, for several machines.

A lease saves work; it is never what correctness depends on. Whoever loses one, or can't have one because
the engine has failed, may cost the origin one more request, and nothing else: what is published is
verified, and publishing the same object twice changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

type Learnt = dict[str, Any]
"""What the work under a lease has brought, in JSON, for those that waited: notes by their key."""


class WaitEnding(Enum):
    """How a wait for somebody else's lease ended."""

    RELEASED = "released"
    """The holder has ended its work, or died: look at what there is now, then try to take the lease."""
    HELD = "held"
    """It is still held; the time to wait was over."""
    FAILED = "failed"
    """Nobody knows: the engine has failed. Do the work as if this process were alone."""


@dataclass(frozen=True, slots=True)
class WaitOutcome:
    """What a wait for somebody else's lease has brought."""

    ending: WaitEnding
    learnt: Learnt = field(default_factory=dict)
    """What the holder left when it released the lease."""


class Lease(ABC):
    """The right to do one piece of work, until `release`. Kept without help while the process lives."""

    name: str

    @property
    @abstractmethod
    def is_lost(self) -> bool:
        """Whether another process may do the same work by now; always true if the engine failed. Quick."""

    @abstractmethod
    def release(self, learnt: Learnt | None = None) -> None:
        """Let others have it, once; never raises. Quick: what takes longer is done by a task of `Leases`.

        So it may be called from a task that is being cancelled.

        Args:
            learnt: for those that wait now; not kept for later ones.
        """


class Leases(ABC):
    """Gives leases. Owns the tasks that keep them. Event loop only."""

    @abstractmethod
    async def take(self, name: str) -> Lease | None:
        """Take a lease, unless another process or another task of this one holds it. Doesn't wait for it.

        If the engine has failed, this process gets the lease: it works as if it were alone.

        Args:
            name: what is to be done, such as ``follow`` or ``fetch daily-27800.cdiff``.
        """

    @abstractmethod
    async def wait(self, name: str, limit: float) -> WaitOutcome:
        """Wait until nobody holds a lease, but no longer than `limit` seconds.

        Returns at once if nobody holds it.
        """

    @abstractmethod
    def stop(self) -> None:
        """Give up all leases and end all tasks, within milliseconds. Others see that in time.

        From then on, nobody gets a lease here, and each wait fails at once.
        """


class UnkeptLease(Lease):
    """What everybody gets while no engine keeps others from having it.

    Args:
        is_alone: whether there is nobody else who could have it.
    """

    def __init__(self, name: str, *, is_alone: bool = False) -> None:
        self.name = name
        self._is_alone = is_alone

    @property
    def is_lost(self) -> bool:
        return not self._is_alone

    def release(self, learnt: Learnt | None = None) -> None:
        pass


class AloneLeases(Leases):
    """For a process that shares nothing with others, and does each work only once at a time anyway."""

    async def take(self, name: str) -> Lease | None:
        return UnkeptLease(name, is_alone=True)

    async def wait(self, name: str, limit: float) -> WaitOutcome:
        return WaitOutcome(WaitEnding.RELEASED)

    def stop(self) -> None:
        pass


ALONE = AloneLeases()
