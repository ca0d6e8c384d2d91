"""freshclam.dat, where freshclam keeps its UUID and its cool-down (docs/protocol.md 2.4)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Self

from clamproxy.formats.signatures import InvalidObject

LARGEST = 4096
"""How many bytes to read at most; a real file has no more than 90."""

_MAGIC = b"FreshClamData"
_RECORD = struct.Struct("<I37s7xq")
"""The layout on a 64-bit little-endian machine: version, UUID with its NUL, padding, time_t."""
_SIZES = (len(_MAGIC) + _RECORD.size, len(_MAGIC) + _RECORD.size + 21)
"""Sizes in bytes: before 1.4.0, and since then, with the last cf-ray at the end."""
_VERSION = 1
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\0")


@dataclass(frozen=True, slots=True)
class FreshclamDat:
    uuid: str
    """The identity of this installation, by which the fleet knows it."""
    retry_after: int
    """Unix time until which freshclam asks no server; 0 if it is not on a cool-down."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the contents of a freshclam.dat.

        Raises:
            InvalidObject: it is damaged, or comes from a machine with another byte order or other sizes.
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
