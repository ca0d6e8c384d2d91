"""Leases of a machine and of its site, together: first among the workers, then among the gateways."""

from __future__ import annotations

import time
from collections.abc import Callable

from clamproxy.leases.leases import Learnt, Lease, Leases, WaitEnding, WaitOutcome

SITE_WIDE = frozenset({"follow", "probe", "fetch", "build", "tend"})
"""The first words of leases that only one gateway of a site should have: their work costs the origin
requests, or others minutes of a processor, or changes what the site shares. Any other work is a machine's
own."""


class SiteLeases(Leases):
    """Takes a lease among the workers of this machine, and then, if the work is the site's, in the site.

    Args:
        machine: gives the machine's.
        site: gives the site's.
        is_alone: tells whether the site can't be reached. Then the machine's leases count alone.
    """

    def __init__(self, machine: Leases, site: Leases, is_alone: Callable[[], bool]) -> None:
        self._machine = machine
        self._site = site
        self._is_alone = is_alone

    async def take(self, name: str) -> Lease | None:
        machine = await self._machine.take(name)
        if machine is None or not _is_site_wide(name):
            return machine
        site: Lease | None = None
        try:
            site = await self._site.take(name)
        finally:
            if site is None:
                machine.release()
        return None if site is None else _SiteLease(name, machine, site, self._is_alone)

    async def wait(self, name: str, limit: float) -> WaitOutcome:
        deadline = time.monotonic() + limit
        here = await self._machine.wait(name, limit)
        if here.ending is not WaitEnding.RELEASED or not _is_site_wide(name):
            return here
        there = await self._site.wait(name, deadline - time.monotonic())
        ending = WaitEnding.RELEASED if there.ending is WaitEnding.FAILED else there.ending
        return WaitOutcome(ending, here.learnt | there.learnt)

    def stop(self) -> None:
        self._site.stop()
        self._machine.stop()


class _SiteLease(Lease):
    def __init__(self, name: str, machine: Lease, site: Lease, is_alone: Callable[[], bool]) -> None:
        self.name = name
        self._machine = machine
        self._site = site
        self._is_alone = is_alone

    @property
    def is_lost(self) -> bool:
        """While the site can't be reached, nobody else of this machine can have it; that has to do."""
        return self._machine.is_lost or (self._site.is_lost and not self._is_alone())

    def release(self, learnt: Learnt | None = None) -> None:
        self._site.release(learnt)
        self._machine.release(learnt)


def _is_site_wide(name: str) -> bool:
    return name.partition(" ")[0] in SITE_WIDE
