"""The tar inside a CVD or CLD, read as a stream by the rules of libclamav/cvd.c:cli_tgzload.

A CVD's tar is one gzip member. A CLD's is plain, or compressed in the same way. Which one it is follows
from the bytes after the header, not from the name of the file (docs/protocol.md 4.4).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from clamproxy.formats.header import HEADER_SIZE
from clamproxy.formats.inflating import inflated
from clamproxy.formats.signatures import FilePart, InvalidObject

BLOCK_SIZE = 512
"""Size of a member's header in bytes; contents are padded to a multiple of it."""

UNPACKED_LIMIT = 2 * 2**30
"""The most bytes that the files of a database may have together; daily's have some 300 MiB."""

MEMBER_LIMIT = 10_000
"""The most files that a database may have; daily has some 40, bytecode some 100."""

COPYING = "COPYING"
"""The name of the first member, by which a plain tar is told from a compressed one."""

_PIECE = 64 * 2**10
_NAME = re.compile(rb"[ -.0-~]*")
_SIZE = re.compile(rb" *([0-7]{1,12})[ \0]*")


class Member:
    """A member of a tar, whose contents are still in the stream."""

    def __init__(self, block: bytes, stream: BinaryIO) -> None:
        """Read the header of a member.

        Args:
            block: the header.
            stream: the tar, positioned right after the header.

        Raises:
            InvalidObject: this is not a header.
        """
        name = block[:100].partition(b"\0")[0]
        size = _SIZE.fullmatch(block[124:136])
        if not _NAME.fullmatch(name) or block[156] not in b"0\0" or size is None:
            raise InvalidObject("malformed member in the payload")
        self.block = block
        self.name = name.decode("ascii")
        self.size = int(size[1], 8)
        self._stream = stream
        self._left = self.size

    @property
    def padding_size(self) -> int:
        """How many bytes there are between the contents and the next member."""
        return -self.size % BLOCK_SIZE

    def pieces(self) -> Iterator[bytes]:
        """The part of the contents that hasn't been read yet; read it before asking for the next member.

        Raises:
            InvalidObject: the payload ends inside the contents.
        """
        while self._left:
            piece = self._stream.read(min(self._left, _PIECE))
            if not piece:
                raise InvalidObject(f"payload ends inside {self.name}")
            self._left -= len(piece)
            yield piece

    def read(self) -> bytes:
        """The whole contents, in memory: check `size` first."""
        return b"".join(self.pieces())

    def read_padding(self) -> bytes:
        """What follows the contents; shorter than `padding_size` at the end of the payload."""
        for _ in self.pieces():
            pass
        return self._stream.read(self.padding_size)


def iter_members(stream: BinaryIO, *, exact: bool = False) -> Iterator[Member]:
    """The members of a tar, one at a time; contents that aren't read are skipped.

    Args:
        stream: the tar, as `open_payload` returns it.
        exact: refuse everything that ClamAV's writer would not write. Then no byte can change unless a
            name, a size or contents change.

    Raises:
        InvalidObject: this is not a tar, or not an exact one.
    """
    count = 0
    while block := stream.read(BLOCK_SIZE):
        if len(block) < BLOCK_SIZE:
            raise InvalidObject("payload ends inside the header of a member")
        if block[0] == 0:
            if exact:
                raise InvalidObject("extra bytes after the last member")
            return
        member = Member(block, stream)
        count += 1
        if count > MEMBER_LIMIT:
            raise InvalidObject(f"payload of more than {MEMBER_LIMIT} files")
        if exact and block != member_header(member.name, member.size):
            raise InvalidObject(f"unusual header of {member.name}")
        yield member
        if member.read_padding() != bytes(member.padding_size) and exact:
            raise InvalidObject(f"unusual bytes after {member.name}")


def member_header(name: str, size: int) -> bytes:
    """The header of a member, as ClamAV's common/tar.c writes it.

    Args:
        name: the file's name, ASCII, shorter than 100 characters.
        size: size of the contents in bytes.
    """
    block = bytearray(BLOCK_SIZE)
    block[: len(name)] = name.encode("ascii")
    digits = f"{size:o}".encode()
    block[124 : 124 + len(digits)] = digits
    # The sum counts the 8 bytes of the checksum itself as spaces.
    checksum = f"{sum(block) + 8 * ord(' '):06o}".encode()
    block[148 : 148 + len(checksum)] = checksum
    return bytes(block)


def belongs_to(name: str, database: str) -> bool:
    """Whether a file with this name can be part of the database.

    Most names begin with the database's. bytecode.cvd consists of ``<any name>.cbc``, and every database
    may have bytecode files and a ``last.hdb`` too (sigtool/sigtool.c:build). What reliably tells the
    databases apart is ``<db>.info``.
    """
    if name.endswith(".info"):
        return name == f"{database}.info"
    return name.startswith(f"{database}.") or name.endswith(".cbc") or name in (COPYING, "last.hdb")


def open_payload(file: BinaryIO) -> BinaryIO:
    """The tar inside a CVD or CLD, inflated if necessary.

    Args:
        file: the whole file, seekable; not to be used for anything else while the tar is read.

    Returns:
        A stream that raises `InvalidObject` on reading if the file is damaged.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(HEADER_SIZE)
    is_plain = file.read(len(COPYING)) == COPYING.encode()
    payload = FilePart(file, HEADER_SIZE, end)
    return io.BufferedReader(payload, _PIECE) if is_plain else inflated(payload, UNPACKED_LIMIT, "payload")
