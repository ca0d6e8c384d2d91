"""Version records as the gateway announces them itself, by DNS and as dns.txt (protocol.md 3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

FIELDS: Mapping[str, int] = {"main": 1, "daily": 2, "safebrowsing": 6, "bytecode": 7}
"""Where the primary record has each database's version."""
RECORD_TIME_FIELD = 3
LONGEST_RECORD = 255
"""Bytes of a character-string (RFC 1035 3.3); freshclam reads the first one only."""
PATIENCE = 0.8
"""Seconds that who asks for a record may wait for news from the origin's DNS: in all, an answer
takes less than a second, and resolvers ask again after one or more."""

# Old and without the flag, so that no client warns of a release that nobody has told of.
_TEMPLATE = ("0.103.0", "-", "-", "0", "0", "90", "-", "-")
_UNKNOWN = "-"
"""No number: freshclam then asks the record of that database, then HTTP. Not empty: freshclam
takes two colons for one (cli_strtok), and all fields behind would move."""


def compose(versions: Mapping[str, int], template: str | None, now: float) -> str:
    """The primary record: ``release:main:daily:time:warn:flevel:safebrowsing:bytecode``.

    Args:
        versions: of databases; those without a place in the record are left out.
        template: the origin's last good record, from which all other fields are taken.
        now: Unix seconds, the time of the record. Clients distrust an old one (trap 36).

    Returns:
        ASCII, at most `LONGEST_RECORD` long.
    """
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
    """The fields of a record; those that are missing or no printable ASCII have the default."""
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
    """Composes the records of this moment."""

    def __init__(
        self,
        announced: Callable[[str], int | None],
        template: Callable[[], str | None],
        look: Callable[[str], Awaitable[object]],
    ) -> None:
        """Announce what the given functions say.

        Args:
            announced: the version of a database that clients shall know of; None if there is none.
            template: the origin's last good primary record.
            look: refreshes what is known of a database. It may take long: it is not waited for
                to its end, and must bear that.
        """
        self._announced = announced
        self._template = template
        self._look = look

    async def primary(self) -> str | None:
        """The primary record; None while no version in it is known."""
        await self._refresh("daily")
        versions = {database: self._announced(database) for database in FIELDS}
        known = {database: version for database, version in versions.items() if version is not None}
        return compose(known, self._template(), time.time()) if known else None

    async def single(self, database: str) -> str | None:
        """The record of one database; None while its version is not known."""
        await self._refresh(database)
        version = self._announced(database)
        return None if version is None else compose_single(version, time.time())

    async def _refresh(self, database: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._look(database)
