"""Header probes at a fake CDN."""

from __future__ import annotations

from typing import Any

from clamproxy.messages import Requester
from clamproxy.notes import UNKEPT
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.header_probes import HeaderProbes
from tests.support.notes import notes_in
from tests.support.origin import OriginServer
from tests.unit.conftest import NEW, connect


class Bench:
    """Heads with their cool-downs and what they save."""

    def __init__(self, origin: OriginServer) -> None:
        self.notes: dict[str, Any] = {}
        self.upstream = connect(origin)
        self.cooldowns = Cooldowns(UNKEPT)
        self.heads = self.make()

    def make(self) -> HeaderProbes:
        return HeaderProbes(self.upstream, self.cooldowns, notes_in(self.notes))

    async def probe(self, database: str = "daily", requester: Requester = NEW, wanted: int = 5) -> int:
        """Probe; gives the version that is known then."""
        await self.heads.probe(database, requester, wanted, wanted)
        head = self.heads.get(database)
        assert head is not None
        return head.header.version
