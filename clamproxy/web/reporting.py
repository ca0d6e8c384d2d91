"""This gateway's report for the others of its site."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from clamproxy.peers.site_gateways import compose
from clamproxy.sharing.reports import packed
from clamproxy.threads import in_thread
from clamproxy.web.status import GatewayStatus


class Reporting:
    """Makes the report from the gateway's status. Event loop only.

    Args:
        status: gives the present one.
    """

    def __init__(self, status: Callable[[], Awaitable[GatewayStatus]]) -> None:
        self._status = status
        self._last: int | None = None

    async def make(self) -> bytes | None:
        """The report; None if it is the same as the last one. Takes some 100 ms, in a thread."""
        status = await self._status()

        def pack() -> bytes | None:
            lines = tuple(compose(status.values, status.machines))
            before, self._last = self._last, hash(lines)
            return packed(lines) if self._last != before else None

        return await in_thread("clamproxy-report", pack)
