"""The 512-byte header that begins every CVD and CLD (docs/protocol.md 4.1, libclamav/cvd.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import MAX_VERSION

HEADER_SIZE = 512
"""Size of a CVD's or CLD's header in bytes, padding included."""

CVD_MAGIC = b"ClamAV-VDB:"
"""The first bytes of every CVD and CLD."""

_PRINTABLE = re.compile(rb"[ -~]*")
_NUMBER = re.compile(r"[0-9]{1,10}")
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class CvdHeader:
    """The header of a CVD or CLD."""

    raw: bytes
    """The 512 bytes, unchanged."""
    build_time: str
    """When the database was built, for people to read: ``22 Jun 2021 21-34 -0400``."""
    version: int
    signatures: int
    """How many virus signatures the database holds."""
    functionality_level: int
    """The lowest functionality level of an engine that can load the database."""
    md5: str
    """MD5 of everything after the header, 32 lower-case hex digits; ``X`` in a CLD."""
    dsig: str
    """Signature of that MD5 in ClamAV's own base-64 digits; ``X`` in a CLD."""
    builder: str
    stime: int
    """When the database was built, in Unix seconds; 0 in ancient files, which do not say."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the header at the beginning of a file.

        This is as strict as freshclam's header probe and libclamav's C and Rust parsers together: what
        any of them would refuse or read differently is refused.

        Args:
            data: the beginning of the file, 512 bytes or more.

        Raises:
            InvalidObject: this is not a header.
        """
        raw = bytes(data[:HEADER_SIZE])
        if not raw.startswith(CVD_MAGIC):
            raise InvalidObject(f"does not begin with {CVD_MAGIC.decode()}")
        if len(raw) < HEADER_SIZE:
            raise InvalidObject(f"header cut off after {len(raw)} bytes")
        if not _PRINTABLE.fullmatch(raw):
            raise InvalidObject("unprintable bytes in the header")
        # The C parser skips an empty field and so shifts all later ones; therefore none may be empty.
        _, *fields = raw.decode("ascii").rstrip(" ").split(":")
        if len(fields) not in (7, 8) or "" in fields:
            raise InvalidObject("header with missing, empty or extra fields")
        build_time, version, signatures, level, md5, dsig, builder, stime = [*fields, "0"][:8]
        if md5 != "X" and not _MD5.fullmatch(md5):
            raise InvalidObject("header with a malformed MD5")
        header = cls(
            raw=raw,
            build_time=build_time,
            version=_number(version, "version"),
            signatures=_number(signatures, "number of signatures"),
            functionality_level=_number(level, "functionality level"),
            md5=md5,
            dsig=dsig,
            builder=builder,
            stime=_number(stime, "build time"),
        )
        if header.version == 0:
            raise InvalidObject("header with version 0")
        return header

    @property
    def info_line(self) -> str:
        """The first line of the ``.info`` member that belongs to this header."""
        fields = self.raw.decode("ascii").rstrip(" ").split(":")
        return ":".join([*fields[:5], "X", "X", *fields[7:]])


def _number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MAX_VERSION:
        raise InvalidObject(f"header with a malformed {what}")
    return int(text)


def parse_cvd_header(data: bytes) -> CvdHeader:
    """Read the header of a CVD, which has an MD5, unlike that of a CLD.

    Raises:
        InvalidObject: this is not the header of a CVD.
    """
    header = CvdHeader.parse(data)
    if header.md5 == "X":
        raise InvalidObject("header without an MD5")
    return header
