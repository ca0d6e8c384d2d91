"""Version records: the TXT records in DNS that tell the versions of databases (docs/protocol.md 3).

The primary record, ``current.cvd.clamav.net``, has those of four databases::

    release:main:daily:time:warn:flevel:safebrowsing:bytecode

Every other database has a record of its own: ``version:time``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from clamproxy.objects import MAX_VERSION

_PLACES: Mapping[str, int] = {"main": 1, "daily": 2, "safebrowsing": 6, "bytecode": 7}
"""Where the primary record has the version of a database."""
_TIME_PLACE = 3
_LEAST_FIELDS = 8
IN_PRIMARY = _PLACES.keys()
"""The databases that have a place in the primary record."""

OLDEST_RECORD = 12 * 3600
"""Seconds after which freshclam, and so the gateway, takes a record for stale."""
LONGEST_RECORD = 255
"""Bytes of a character-string (RFC 1035 3.3); freshclam reads the first one only."""
_LONGEST_NUMBER = 12
"""Digits that are looked at."""

# Old and without the flag, so that no client warns of a release that nobody has told of.
_TEMPLATE = ("0.103.0", "-", "-", "0", "0", "90", "-", "-")
_UNKNOWN = "-"
"""No number: freshclam then asks the record of that database, then HTTP. Not empty: freshclam
takes two colons for one (cli_strtok), and all fields behind would move."""


def record_name(database: str, domain: str) -> str:
    """Where a database's version is announced, if the primary record is at ``domain``."""
    return domain if database in IN_PRIMARY else single_name(database, domain)


def single_name(database: str, domain: str) -> str:
    """The name of one database's own record: freshclam asks ``<db>.cvd.clamav.net`` for it."""
    return f"{database}.{domain.partition('.')[2]}"


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """What a record says."""

    versions: Mapping[str, int]
    """Of databases. In the primary record, a field that is no version is left out, as freshclam does."""
    recorded_at: int
    """Unix seconds."""

    @classmethod
    def parse(cls, text: str, database: str = "daily") -> Self:
        """Read the record at the `record_name` of a database, however old it is.

        Raises:
            ValueError: it is no such record.
        """
        fields = text.split(":")
        if database in IN_PRIMARY:
            is_complete, places, time_place = len(fields) >= _LEAST_FIELDS, _PLACES, _TIME_PLACE
        else:
            is_complete, places, time_place = len(fields) >= 2, {database: 0}, 1
        found = {name: _version(fields[place]) for name, place in places.items()} if is_complete else {}
        versions = {name: version for name, version in found.items() if version is not None}
        if not is_complete or (database not in IN_PRIMARY and not versions):
            raise ValueError(f"not a version record: {text[:80]!r}")
        recorded_at = _number(fields[time_place])
        if recorded_at is None:
            raise ValueError(f"not a record time: {fields[time_place][:40]!r}")
        return cls(versions, recorded_at)

    def versions_at(self, now: float) -> Mapping[str, int]:
        """The versions, as long as the record counts.

        Args:
            now: Unix seconds.

        Raises:
            ValueError: it is too old.
        """
        if now - self.recorded_at > OLDEST_RECORD:
            raise ValueError("the record is older than 12 hours")
        return self.versions


def compose(versions: Mapping[str, int], template: str | None, now: float) -> str:
    """The primary record.

    Args:
        versions: of databases; those without a place in the record are left out.
        template: the origin's last good record, from which all other fields are taken.
        now: Unix seconds, the time of the record. Clients distrust an old one (trap 36).

    Returns:
        ASCII, at most `LONGEST_RECORD` long.
    """
    for fields in (_fields_of(template), list(_TEMPLATE)):
        fields[_TIME_PLACE] = str(int(now))
        for database, place in _PLACES.items():
            fields[place] = str(versions.get(database, _UNKNOWN))
        record = ":".join(fields)
        if len(record) <= LONGEST_RECORD:
            break
    return record


def compose_single(version: int, now: float) -> str:
    """The record of one database."""
    return f"{version}:{int(now)}"


def with_versions(record: str, versions: Mapping[str, int]) -> str:
    """A primary record with other versions of some databases."""
    fields = record.split(":")
    for database in versions.keys() & IN_PRIMARY:
        fields[_PLACES[database]] = str(versions[database])
    return ":".join(fields)


def _number(field: str) -> int | None:
    is_number = field.isascii() and field.isdecimal() and len(field) <= _LONGEST_NUMBER
    return int(field) if is_number else None


def _version(field: str) -> int | None:
    version = _number(field)
    return version if version is not None and 0 < version <= MAX_VERSION else None


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
