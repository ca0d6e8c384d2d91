"""CVD files: the proof that a file is the database and version that its name says.

The signature covers the payload but not the header, and the payload names its database only in the names
of its members. What binds them together is the ``.info`` member, whose first line repeats the header
(docs/protocol.md 4.1 and 4.4, trap 18).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from clamproxy.formats.header import HEADER_SIZE, parse_cvd_header
from clamproxy.formats.info import INFO_LIMIT, verify_info
from clamproxy.formats.members import BLOCK_SIZE, iter_members, open_payload
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.objects import ObjectId

INFLATED_LIMIT = 64 * 2**20
"""``.info`` must be within this many bytes of the inflated payload; ClamAV writes it second."""
_PIECE = 2**18


type Read = Callable[[int, int], bytes]
"""Reads at most that many bytes (first argument) of a file, from an offset (second) on."""


class PayloadDigest:
    """The MD5 of a CVD's payload, computed while the file grows so that nobody waits for it at the end."""

    def __init__(self) -> None:
        self._md5 = _md5()
        self.end = HEADER_SIZE
        """Offset after the last byte that the digest covers."""

    def follow(self, read: Read, end: int) -> None:
        """Digest what has been added to the file. What was digested before must not have changed.

        Args:
            end: offset after the last byte to digest.
        """
        while self.end < end and (piece := read(min(end - self.end, _PIECE), self.end)):
            self._md5.update(piece)
            self.end += len(piece)

    def digest(self) -> bytes:
        """The MD5 hash of all that has been digested so far."""
        return self._md5.digest()


def verify_cvd(
    file: BinaryIO, expected: ObjectId, keys: TrustedKeys, payload: PayloadDigest | None = None
) -> None:
    """Prove that a file is the CVD of the expected database and version.

    Memory use stays small whatever the file holds. The file is read once, its beginning twice.

    Args:
        file: the whole file, seekable; its position is moved.
        keys: the keys that the signatures must verify with.
        payload: a digest that has followed the file while it grew; then only what it lacks is read.

    Raises:
        InvalidObject: it is something else, or damaged.
    """
    file.seek(0)
    header = parse_cvd_header(file.read(HEADER_SIZE))
    if header.version != expected.version:
        raise InvalidObject(f"header names version {header.version}, not {expected.version}")
    payload = payload or PayloadDigest()
    payload.follow(partial(_read, file), file.seek(0, os.SEEK_END))
    digest = payload.digest()
    if digest.hex() != header.md5:
        raise InvalidObject("payload does not match the MD5 in the header")
    if not keys.cvd.verifies_md5(digest, header.dsig.encode("ascii")):
        raise InvalidObject("wrong RSA signature of the payload")
    info = verify_info(read_info(file, expected.database), expected.database, keys)
    if header.info_line != info.header.info_line:
        raise InvalidObject("header differs from the first line of .info")


def read_info(file: BinaryIO, database: str) -> bytes:
    """The ``.info`` member of a CVD or CLD; nothing that comes after it is unpacked.

    Args:
        file: the whole file, seekable; its position is moved.

    Raises:
        InvalidObject: there is none, or not within the first `INFLATED_LIMIT` bytes.
    """
    wanted = f"{database}.info"
    position = 0
    for member in iter_members(open_payload(file)):
        if member.name == wanted:
            if member.size > INFO_LIMIT:
                raise InvalidObject(f".info of {member.size} bytes")
            return member.read()
        if member.name.endswith(".info"):
            raise InvalidObject(f"holds {member.name}, not {wanted}")
        position += BLOCK_SIZE + member.size + member.padding_size
        if position >= INFLATED_LIMIT:
            raise InvalidObject(f"no {wanted} in the first {INFLATED_LIMIT} bytes of the payload")
    raise InvalidObject(f"no {wanted} in the payload")


def _read(file: BinaryIO, length: int, offset: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _md5() -> hashlib._Hash:
    # The format demands MD5; in FIPS mode OpenSSL refuses it unless it is declared not to be for security.
    return hashlib.md5(usedforsecurity=False)
