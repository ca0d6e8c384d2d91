"""Version records that the gateway itself announces, by DNS and as dns.txt (docs/protocol.md 3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from clamproxy.formats.version_record import IN_PRIMARY, compose, compose_single

PATIENCE = 0.8
"""Seconds that a caller waits for a fresh record. The whole answer must take less than a second, as
resolvers repeat their question after a second or more."""


class Announcer:
    """Composes the records for the present moment.

    Args:
        announced: the version of a database that the client with this address is told; None if there is none.
        template: the origin's last good primary record.
        look: refreshes what is known about a database for that client. It may take long, but is cancelled
            after `PATIENCE`.
    """

    def __init__(
        self,
        announced: Callable[[str, str], int | None],
        template: Callable[[], str | None],
        look: Callable[[str, str], Awaitable[object]],
    ) -> None:
        self._announced = announced
        self._template = template
        self._look = look

    async def primary(self, client: str = "") -> str | None:
        """The primary record; None if none of its versions is known.

        Args:
            client: the address of the client that asks.
        """
        await self._refresh(IN_PRIMARY, client)
        versions = {database: self._announced(database, client) for database in IN_PRIMARY}
        known = {database: version for database, version in versions.items() if version is not None}
        return compose(known, self._template(), time.time()) if known else None

    async def single(self, database: str, client: str = "") -> str | None:
        """The record of one database; None if its version is unknown."""
        await self._refresh([database], client)
        version = self._announced(database, client)
        return None if version is None else compose_single(version, time.time())

    async def _refresh(self, databases: Iterable[str], client: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(self._look(database, client) for database in databases))
