"""A tar with only regular files, written and read as a stream.

`tarfile` writes and checks the headers. It does not read the archive itself: it would follow links and
read extension records of any size into memory, and the file comes from outside.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

PIECE = 2**18
"""How many bytes are read, hashed and written at a time."""

_END = bytes(2 * tarfile.BLOCKSIZE)


class TarError(Exception):
    """The stream is not a tar of this kind, or is damaged."""


class TarCutOffError(TarError):
    """The stream ends too early; what came before the end is valid."""


class TarMember:
    """A member whose contents are still in the stream."""

    def __init__(self, name: str, size: int, stream: BinaryIO) -> None:
        self.name = name
        self.size = size
        self._stream = stream
        self._left = size

    def pieces(self) -> Iterator[bytes]:
        """The part of the contents that hasn't been read yet; read it before asking for the next member.

        Raises:
            TarCutOffError: the stream ends inside the contents.
        """
        while self._left:
            piece = self._stream.read(min(self._left, PIECE))
            if not piece:
                raise TarCutOffError(f"is cut off inside {self.name}")
            self._left -= len(piece)
            yield piece

    def skip(self) -> None:
        """Read past the rest of the contents and the padding.

        Raises:
            TarCutOffError: the stream ends too early.
            TarError: the padding is damaged.
        """
        for _ in self.pieces():
            pass
        length = -self.size % tarfile.BLOCKSIZE
        padding = self._stream.read(length)
        if any(padding):
            raise TarError(f"is damaged after {self.name}")
        if len(padding) < length:
            raise TarCutOffError(f"is cut off after {self.name}")


def write_member(stream: BinaryIO, name: str, size: int, pieces: Iterable[bytes], time: float) -> None:
    """Add a file.

    Args:
        name: ASCII, at most 100 characters.
        size: size of the contents in bytes.
        pieces: the contents.
        time: time of the last modification, in Unix seconds.

    Raises:
        TarError: the contents have another size.
        OSError: the stream can't be written to.
    """
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(time), 0o644
    stream.write(member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    written = 0
    for piece in pieces:
        stream.write(piece)
        written += len(piece)
    if written != size:
        raise TarError(f"has {written} bytes of {name} instead of {size}")
    stream.write(bytes(-size % tarfile.BLOCKSIZE))


def write_end(stream: BinaryIO) -> None:
    """Add the end-of-archive mark after the last member."""
    stream.write(_END)


def read_members(stream: BinaryIO) -> Iterator[TarMember]:
    """The members, one at a time; contents that aren't read are skipped. Reads the stream to its end.

    Raises:
        TarCutOffError: the stream ends too early.
        TarError: this is not a tar of this kind, or it is damaged.
        OSError: the stream can't be read.
    """
    while True:
        block = stream.read(tarfile.BLOCKSIZE)
        if block == bytes(tarfile.BLOCKSIZE):
            break
        if len(block) < tarfile.BLOCKSIZE:
            raise TarCutOffError("is cut off")
        try:
            header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise TarError("is damaged, or not a bundle") from error
        if header.type != tarfile.REGTYPE:
            raise TarError(f"contains {header.name!r}, which is not a regular file")
        member = TarMember(header.name, header.size, stream)
        yield member
        member.skip()
    while rest := stream.read(PIECE):
        if any(rest):
            raise TarError("continues after its end")
