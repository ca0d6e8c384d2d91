"""The ``.info`` member of a CVD or CLD: what its files must be, signed.

Line 1 is the header of a CLD; then come lines ``<name>:<size>:<SHA-256>``, then ``DSIG:`` and a
signature of all in front of it (protocol.md 4.4, libclamav/readdb.c:cli_loadinfo).
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
"""Bytes that an ``.info`` member may take."""

_LISTED = re.compile(rb"([A-Za-z0-9][A-Za-z0-9._-]{0,98}):([0-9]{1,12}):([0-9a-f]{64})")
_DSIG = b"DSIG:"


@dataclass(frozen=True, slots=True)
class ListedFile:
    """What ``.info`` says of one file."""

    size: int
    """In bytes."""
    sha256: str
    """64 lower-case hex digits."""


@dataclass(frozen=True, slots=True)
class Info:
    """An ``.info`` member."""

    raw: bytes
    """The whole member as it was."""
    header: CvdHeader
    """The header of the CLD that the member belongs in; a CVD's has a hash and a signature besides."""
    files: Mapping[str, ListedFile]
    """The files of the database, all but COPYING and the ``.info`` itself."""
    dsig: bytes
    """The signature in ClamAV's digits."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an ``.info`` member; `verify_info` proves it, too.

        Raises:
            InvalidObject: this is not one.
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
    """Prove that the vendor signed an ``.info`` member, and that it is one of this database.

    Args:
        data: the whole member.
        database: whose files it must list.
        keys: whose signatures count.

    Raises:
        InvalidObject: it is something else, or damaged.
    """
    info = Info.parse(data)
    signed = data[: -len(_DSIG) - len(info.dsig) - 1]  # with the newline in front of DSIG:
    if not keys.info.verifies_sha256(hashlib.sha256(signed).digest(), info.dsig):
        raise InvalidObject("wrong signature of .info")
    for name in info.files:
        if not belongs_to(name, database) or name in (COPYING, f"{database}.info"):
            raise InvalidObject(f".info lists {name}, no file of {database}")
    return info


def _parse_listed(lines: list[bytes]) -> dict[str, ListedFile]:
    files: dict[str, ListedFile] = {}
    for line in lines:
        match = _LISTED.fullmatch(line)
        if match is None or (name := match[1].decode("ascii")) in files:
            raise InvalidObject("malformed line in .info")
        files[name] = ListedFile(int(match[2]), match[3].decode("ascii"))
    return files
