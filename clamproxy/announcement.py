"""Version records as the gateway itself announces them, by DNS and as dns.txt (protocol.md 3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

FIELDS: Mapping[str, int] = {"main": 1, "daily": 2, "safebrowsing": 6, "bytecode": 7}
"""Position of each database's version in the primary record."""
RECORD_TIME_FIELD = 3
LONGEST_RECORD = 255
"""Size limit of a character-string in bytes (RFC 1035 3.3); freshclam reads only the first one."""
PATIENCE = 0.8
"""How long a caller waits for a fresh record, in seconds. The whole answer must take less than a second, as
resolvers repeat their question after a second or more."""

# An old release without the warning flag: no client shall warn of a release that was never announced.
_TEMPLATE = ("0.103.0", "-", "-", "0", "0", "90", "-", "-")
_UNKNOWN = "-"
"""Stands for an unknown version. As it is not a number, freshclam asks for that database's own record, then
falls back to HTTP. It must not be empty: freshclam reads two colons as one (cli_strtok), which would
shift all later fields."""


def compose(versions: Mapping[str, int], template: str | None, now: float) -> str:
    """The primary record: ``release:main:daily:time:warn:flevel:safebrowsing:bytecode``.

    Args:
        versions: by database; databases without a place in the record are left out.
        template: the origin's last good record, from which all other fields are taken.
        now: Unix seconds, the time of the record. Clients distrust an old one (trap 36).

    Returns:
        ASCII, at most `LONGEST_RECORD` bytes.
    """
    # The origin's other fields might make the record too long; the default ones never do.
    for fields in (_fields_of(template), list(_TEMPLATE)):
        fields[RECORD_TIME_FIELD] = str(int(now))
        for database, position in FIELDS.items():
            fields[position] = str(versions.get(database, _UNKNOWN))
        record = ":".join(fields)
        if len(record) <= LONGEST_RECORD:
            break
    return record


def compose_single(version: int, now: float) -> str:
    """The record of one database, ``<database>.cvd.clamav.net``: ``version:time``."""
    return f"{version}:{int(now)}"


def _fields_of(template: str | None) -> list[str]:
    """The fields of a record, with defaults for those that are missing or not printable ASCII."""
    given = template.split(":") if template else []
    fields = list(_TEMPLATE)
    for position, field in enumerate(given):
        usable = field if field and all("!" <= character <= "~" for character in field) else None
        if position < len(_TEMPLATE):
            fields[position] = usable or _TEMPLATE[position]
        else:
            fields.append(usable or _UNKNOWN)
    return fields


class Announcer:
    """Composes the records for the present moment.

    Args:
        announced: the version of a database that clients shall know of; None if there is none.
        template: the origin's last good primary record.
        look: refreshes what is known of a database. It may take long, but is cancelled after `PATIENCE`.
    """

    def __init__(
        self,
        announced: Callable[[str], int | None],
        template: Callable[[], str | None],
        look: Callable[[str], Awaitable[object]],
    ) -> None:
        self._announced = announced
        self._template = template
        self._look = look

    async def primary(self) -> str | None:
        """The primary record; None while none of its versions is known."""
        await self._refresh("daily")
        versions = {database: self._announced(database) for database in FIELDS}
        known = {database: version for database, version in versions.items() if version is not None}
        return compose(known, self._template(), time.time()) if known else None

    async def single(self, database: str) -> str | None:
        """The record of one database; None while its version is unknown."""
        await self._refresh(database)
        version = self._announced(database)
        return None if version is None else compose_single(version, time.time())

    async def _refresh(self, database: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._look(database)
