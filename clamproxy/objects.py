"""Names: the immutable objects in the cache, and the URL paths that lead to them.

Every file that ClamAV's CDN serves is either an *object*, named by database, version and kind and never
changed once published (``/daily-27800.cdiff``), or the *latest* CVD or CLD of a database, a mutable URL
(``/daily.cvd``) that resolves to an object at request time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Self
from urllib.parse import parse_qs

MAX_VERSION = 2**31 - 1
"""freshclam keeps versions in C ints, so nothing greater is a version (docs/protocol.md 1.2)."""

STANDARD_DATABASES = ("main", "daily", "bytecode")
"""The databases that every freshclam wants (docs/protocol.md 1.2)."""


class Kind(StrEnum):
    """The kind of a file; the value is its file name extension."""

    CVD = "cvd"
    CLD = "cld"
    CDIFF = "cdiff"
    CVD_SIGN = "cvd.sign"
    CDIFF_SIGN = "cdiff.sign"

    @property
    def is_signature(self) -> bool:
        """Whether this is an external signature (``.sign``) of another object."""
        return self in (Kind.CVD_SIGN, Kind.CDIFF_SIGN)


@dataclass(frozen=True, slots=True, order=True)
class ObjectId:
    """The identity of one immutable object: its key in the cache."""

    database: str
    version: int
    kind: Kind

    @property
    def file_name(self) -> str:
        """Such as ``daily-27800.cdiff``: unique, and except for CVD and CLD also the name in the URL."""
        return f"{self.database}-{self.version}.{self.kind}"

    @property
    def upstream_path(self) -> str:
        """The URL path at the origin. A whole CVD or CLD has no version in its name there."""
        if self.kind in (Kind.CVD, Kind.CLD):
            return f"/{self.database}.{self.kind}"
        return f"/{self.file_name}"

    @property
    def signed(self) -> Self:
        """The object that this ``.sign`` file signs.

        Raises:
            ValueError: this is not a ``.sign``.
        """
        if not self.kind.is_signature:
            raise ValueError(f"{self.file_name} is not a signature")
        return type(self)(self.database, self.version, Kind(self.kind.removesuffix(".sign")))

    @property
    def signature(self) -> Self:
        """The ``.sign`` file of this object: the inverse of `signed`.

        Raises:
            ValueError: this is a CLD or a ``.sign``, for which there is none.
        """
        return type(self)(self.database, self.version, Kind(f"{self.kind}.sign"))

    @classmethod
    def parse(cls, file_name: str) -> Self:
        """The inverse of `file_name`.

        Raises:
            ValueError: the text is not the name of an object.
        """
        match = _OBJECT_NAME.fullmatch(file_name)
        if match is None or int(match["version"]) > MAX_VERSION:
            raise ValueError(f"not the name of an object: {file_name!r}")
        return cls(match["database"], int(match["version"]), Kind(match["kind"]))


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest CVD or CLD of a database: what ``/daily.cvd`` means at this moment."""

    database: str
    kind: Kind
    demanded: int | None = None
    """The lowest acceptable version: cvdupdate's ``?version=N`` (docs/protocol.md 9.5)."""

    @property
    def upstream_path(self) -> str:
        """The URL path at the origin."""
        return f"/{self.database}.{self.kind}"


type Target = ObjectId | Latest

# Versions are printed with %d, without leading zeros (docs/protocol.md 1.2). Names are taken
# literally: no percent-decoding, no other separators, no upper case (trap 25).
_VERSION = r"(?P<version>[1-9][0-9]{0,9})"
_OBJECT_NAME = re.compile(rf"(?P<database>[a-z]+)-{_VERSION}\.(?P<kind>cvd|cld|cdiff|(?:cvd|cdiff)\.sign)")
_LATEST_PATH = re.compile(r"/(?P<database>[a-z]+)\.(?P<kind>cvd|cld)")


_USUAL_LENGTH = 64
"""Longer paths are not cached, so that invented ones can't fill the memory; the longest file name has some
40 characters."""


def parse_path(path: str, databases: frozenset[str]) -> Target | None:
    """What a request path on a ClamAV host asks for.

    Args:
        path: the path of the request as received, with its query string.
        databases: the names of the databases that are served.

    Returns:
        None if it is nothing that ClamAV's CDN has: the response is a 404.
    """
    parse = _parse_path if len(path) <= _USUAL_LENGTH else _parse_path.__wrapped__
    return parse(path, databases)


@lru_cache(1024)
def _parse_path(path: str, databases: frozenset[str]) -> Target | None:
    name, query = plain_path(path), path.partition("?")[2]
    if match := _LATEST_PATH.fullmatch(name):
        latest = Latest(match["database"], Kind(match["kind"]), _demanded_version(query))
        return latest if latest.database in databases else None
    try:
        object_id = ObjectId.parse(name.removeprefix("/")) if name.startswith("/") else None
    except ValueError:
        return None
    # The CDN has no /daily-27800.cvd: whole files exist only under their mutable name.
    if object_id is None or object_id.kind in (Kind.CVD, Kind.CLD):
        return None
    return object_id if object_id.database in databases else None


def plain_path(target: str) -> str:
    """The path of a request target, without its query, and with a single slash at the beginning.

    freshclam asks for ``//daily.cvd`` if the URL of its mirror ends in a slash.
    """
    path = target.partition("?")[0]
    return f"/{path.lstrip('/')}" if path.startswith("/") else path


def _demanded_version(query: str) -> int | None:
    values = parse_qs(query).get("version", [])
    if len(values) != 1 or not re.fullmatch(r"[0-9]{1,10}", values[0]):
        return None
    version = int(values[0])
    return version if 0 < version <= MAX_VERSION else None
