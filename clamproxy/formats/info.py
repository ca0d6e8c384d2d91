"""The ``.info`` member of a CVD or CLD: a signed list of what its files must be.

Line 1 is the header of a CLD. Lines ``<name>:<size>:<SHA-256>`` follow, then ``DSIG:`` and a signature of
everything before it (docs/protocol.md 4.4, libclamav/readdb.c:cli_loadinfo).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.members import COPYING, belongs_to
from clamproxy.formats.signatures import InvalidObject, TrustedKeys

INFO_LIMIT = 16 * 2**20
"""The most bytes that an ``.info`` member may have."""

_LISTED = re.compile(rb"([A-Za-z0-9][A-Za-z0-9._-]{0,98}):([0-9]{1,12}):([0-9a-f]{64})")
_DSIG = b"DSIG:"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """What ``.info`` says about one file."""

    size: int
    """Size in bytes."""
    sha256: str
    """64 lower-case hex digits."""


@dataclass(frozen=True, slots=True)
class Info:
    raw: bytes
    """The whole member, unchanged."""
    header: CvdHeader
    """The header of the CLD that the member belongs to; a CVD's has a hash and a signature as well."""
    files: Mapping[str, ListedFile]
    """The files of the database by name, without COPYING and the ``.info`` itself."""
    dsig: bytes
    """The signature in ClamAV's own base-64 digits."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an ``.info`` member without verifying its signature; `verify_info` does both.

        Raises:
            InvalidObject: this is not an ``.info`` member.
        """
        *lines, signature, rest = [b"", b"", *data.split(b"\n")]
        if not signature.startswith(_DSIG) or rest:
            raise InvalidObject(".info does not end with a signature")
        first, *listed = lines[2:] or [b""]
        header = CvdHeader.parse(first.ljust(HEADER_SIZE))
        if header.info_line.encode("ascii") != first:
            raise InvalidObject("malformed first line of .info")
        return cls(data, header, _parse_listed(listed), signature.removeprefix(_DSIG))


def verify_info(data: bytes, database: str, keys: TrustedKeys) -> Info:
    """Prove that the vendor signed an ``.info`` member, and that it belongs to this database.

    Args:
        data: the whole member.
        database: the database whose files it must list.
        keys: the keys that the signature must verify with.

    Raises:
        InvalidObject: it is something else, or damaged.
    """
    info = Info.parse(data)
    signed = data[: -len(_DSIG) - len(info.dsig) - 1]  # including the newline before DSIG:
    if not keys.info.verifies_sha256(hashlib.sha256(signed).digest(), info.dsig):
        raise InvalidObject("wrong signature of .info")
    for name in info.files:
        if not belongs_to(name, database) or name in (COPYING, f"{database}.info"):
            raise InvalidObject(f".info lists {name}, which is not a file of {database}")
    return info


def _parse_listed(lines: list[bytes]) -> dict[str, ListedFile]:
    files: dict[str, ListedFile] = {}
    for line in lines:
        match = _LISTED.fullmatch(line)
        if match is None or (name := match[1].decode("ascii")) in files:
            raise InvalidObject("malformed line in .info")
        files[name] = ListedFile(int(match[2]), match[3].decode("ascii"))
    return files
