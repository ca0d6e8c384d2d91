"""CVD files: the 512-byte header and the proof that a file is the named database and version.

The header itself is not covered by the signature over the payload, and the payload names its
database only in the names of its members. What binds them is the ``.info`` member, whose first
line repeats the header (protocol.md 4.1 and 4.4, trap 18).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Self

from clamproxy.formats.signatures import FilePart, InvalidObject, TrustedKeys
from clamproxy.objects import MAX_VERSION, ObjectId

HEADER_SIZE = 512
"""Bytes of a CVD's or CLD's header, padding included."""

CVD_MAGIC = b"ClamAV-VDB:"
"""How every CVD and CLD begins."""

INFLATED_LIMIT = 64 * 2**20
"""Bytes of the inflated payload in which ``.info`` must be found; writers put it second."""

INFO_LIMIT = 16 * 2**20
"""Bytes that an ``.info`` member may take."""

_TAR_BLOCK = 512
_PIECE = 64 * 2**10
_PRINTABLE = re.compile(rb"[ -~]*")
_NUMBER = re.compile(r"[0-9]{1,10}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_TAR_SIZE = re.compile(rb" *([0-7]{1,12})[ \0]*")


@dataclass(frozen=True, slots=True)
class CvdHeader:
    """The header of a CVD or CLD."""

    raw: bytes
    """The 512 bytes as they were."""
    build_time: str
    """When it was built, for people: ``22 Jun 2021 21-34 -0400``."""
    version: int
    signatures: int
    """How many signatures the database holds."""
    functionality_level: int
    """The least functionality level of an engine that can load it."""
    md5: str
    """MD5 of everything behind the header, 32 lower-case hex digits; ``X`` in a CLD."""
    dsig: str
    """Signature of that MD5 in ClamAV's digits; ``X`` in a CLD."""
    builder: str
    stime: int
    """When it was built, seconds since 1970 UTC; 0 in ancient files that do not say."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the header at the beginning of a file.

        As strict as freshclam's header probe and libclamav's C and Rust parsers are together:
        what one of them would refuse or read otherwise is refused.

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
        # An empty field shifts the fields behind it in the C parser, so none may be empty.
        _, *fields = raw.decode("ascii").rstrip(" ").split(":")
        if len(fields) not in (7, 8) or "" in fields:
            raise InvalidObject("header with missing, empty or surplus fields")
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
    """Read the header of a CVD, which unlike a CLD's has a hash.

    Raises:
        InvalidObject: this is not a CVD's header.
    """
    header = CvdHeader.parse(data)
    if header.md5 == "X":
        raise InvalidObject("header without an MD5")
    return header


def verify_cvd(file: BinaryIO, expected: ObjectId, keys: TrustedKeys) -> None:
    """Prove that a file is the CVD of the expected database and version.

    Memory stays small whatever the file holds; the file is read once, and its beginning twice.

    Args:
        file: the whole file, seekable; its position is moved.
        expected: the database and version that it must have.
        keys: whose signatures count.

    Raises:
        InvalidObject: it is something else, or damaged.
    """
    file.seek(0)
    header = parse_cvd_header(file.read(HEADER_SIZE))
    if header.version != expected.version:
        raise InvalidObject(f"header names version {header.version}, not {expected.version}")
    end = file.seek(0, os.SEEK_END)
    digest = hashlib.file_digest(FilePart(file, HEADER_SIZE, end), _md5).digest()
    if digest.hex() != header.md5:
        raise InvalidObject("payload does not match the MD5 in the header")
    if not keys.cvd.verifies_md5(digest, header.dsig.encode("ascii")):
        raise InvalidObject("wrong RSA signature of the payload")
    info = _read_info(FilePart(file, HEADER_SIZE, end), expected.database)
    _verify_info(info, header, keys)


def _md5() -> hashlib._Hash:
    # The format demands MD5; an OpenSSL in FIPS mode refuses it for anything called security.
    return hashlib.md5(usedforsecurity=False)


def _verify_info(info: bytes, header: CvdHeader, keys: TrustedKeys) -> None:
    # libclamav/readdb.c:cli_loadinfo: the hash includes the newline in front of "DSIG:".
    listing, _, signature = info.partition(b"\nDSIG:")
    if listing.partition(b"\n")[0] != header.info_line.encode("ascii"):
        raise InvalidObject("header differs from the first line of .info")
    digest = hashlib.sha256(listing + b"\n").digest()
    if not keys.info.verifies_sha256(digest, signature.partition(b"\n")[0]):
        raise InvalidObject("wrong signature of .info")


def _read_info(payload: FilePart, database: str) -> bytes:
    """The ``.info`` member of a payload, found without unpacking more than leads to it."""
    try:
        with gzip.GzipFile(fileobj=payload, mode="rb") as stream:
            return _find_info(stream, f"{database}.info")
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise InvalidObject("payload is not a whole gzip stream") from None


def _find_info(stream: gzip.GzipFile, wanted: str) -> bytes:
    while stream.tell() < INFLATED_LIMIT:
        block = stream.read(_TAR_BLOCK)
        if len(block) < _TAR_BLOCK or block[0] == 0:
            raise InvalidObject(f"no {wanted} in the payload")
        name, size = _parse_member(block)
        if name == wanted:
            return _read_member(stream, size)
        if name.endswith(".info"):
            raise InvalidObject(f"holds {name}, not {wanted}")
        _skip(stream, -(-size // _TAR_BLOCK) * _TAR_BLOCK)
    raise InvalidObject(f"no {wanted} in the first {INFLATED_LIMIT} bytes of the payload")


def _parse_member(block: bytes) -> tuple[str, int]:
    """Name and size of a tar member, by the rules of libclamav/cvd.c:cli_tgzload."""
    name = block[:100].partition(b"\0")[0]
    size = _TAR_SIZE.fullmatch(block[124:136])
    if b"/" in name or not _PRINTABLE.fullmatch(name) or block[156] not in b"0\0" or size is None:
        raise InvalidObject("malformed member in the payload")
    return name.decode("ascii"), int(size[1], 8)


def _read_member(stream: gzip.GzipFile, size: int) -> bytes:
    if size > INFO_LIMIT:
        raise InvalidObject(f".info of {size} bytes")
    data = stream.read(size)
    if len(data) < size:
        raise InvalidObject("payload ends inside .info")
    return data


def _skip(stream: gzip.GzipFile, size: int) -> None:
    if size > INFLATED_LIMIT:
        raise InvalidObject(f"a member of {size} bytes in front of .info")
    while size > 0 and (piece := stream.read(min(size, _PIECE))):
        size -= len(piece)
