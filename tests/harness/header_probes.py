"""Header probes at a fake CDN."""

from __future__ import annotations

from typing import Any

from clamproxy.messages import Requester
from clamproxy.notes import UNKEPT
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.header_probes import HeaderProbes
from tests.harness.transfers import connect
from tests.support.clock import Clock
from tests.support.notes import notes_in
from tests.support.origin import OriginServer
from tests.support.stored import NEW


class HeadsHarness:
    """Heads with their cool-downs and what they save."""

    def __init__(self, origin: OriginServer) -> None:
        self.clock = Clock()
        self.notes: dict[str, Any] = {}
        self.upstream = connect(origin)
        self.cooldowns = Cooldowns(UNKEPT, self.clock)
        self.heads = self.make()

    def make(self) -> HeaderProbes:
        return HeaderProbes(self.upstream, self.cooldowns, notes_in(self.notes), clock=self.clock)

    async def probe(self, database: str = "daily", requester: Requester = NEW, wanted: int = 5) -> int:
        """Probe; returns the version that is known afterwards."""
        await self.heads.probe(database, requester, wanted, wanted)
        head = self.heads.get(database)
        assert head is not None
        return head.header.version
