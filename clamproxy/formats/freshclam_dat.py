"""freshclam.dat, in which a freshclam keeps its UUID and its cool-down (protocol.md 2.4)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Self

from clamproxy.formats.signatures import InvalidObject

LARGEST = 4096
"""Bytes that are worth reading; a real one has 90 at most."""

_MAGIC = b"FreshClamData"
_RECORD = struct.Struct("<I37s7xq")
"""As a 64-bit little-endian machine writes it: version, UUID with its NUL, padding, time_t."""
_SIZES = (len(_MAGIC) + _RECORD.size, len(_MAGIC) + _RECORD.size + 21)
"""Bytes: before 1.4.0, and since then, with the last cf-ray at the end."""
_VERSION = 1
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\0")


@dataclass(frozen=True, slots=True)
class FreshclamDat:
    """What the file says."""

    uuid: str
    """The name of this installation, by which the fleet knows it."""
    retry_after: int
    """Unix seconds until which freshclam asks nobody; 0: it is on no cool-down."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one.

        Raises:
            InvalidObject: it is damaged, or was written by a machine with other sizes or byte order.
        """
        if not data.startswith(_MAGIC):
            raise InvalidObject(f"does not begin with {_MAGIC.decode()}")
        if len(data) not in _SIZES:
            raise InvalidObject(f"has {len(data)} bytes, not {_SIZES[0]} or {_SIZES[1]}")
        version, uuid, retry_after = _RECORD.unpack_from(data, len(_MAGIC))
        if version != _VERSION:
            raise InvalidObject(f"has version {version}, not {_VERSION}")
        if not _UUID.fullmatch(uuid):
            raise InvalidObject("has no UUID")
        return cls(uuid[:-1].decode("ascii").lower(), retry_after)
