"""Inflating, with a bound on what comes out: a few bytes of gzip can stand for gigabytes."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from clamproxy.formats.signatures import FilePart, InvalidObject

_PIECE = 64 * 2**10


def inflated(compressed: FilePart, limit: int, what: str) -> BinaryIO:
    """The contents of one gzip member with nothing after it.

    `gzip.GzipFile` is not that strict: it takes millions of empty members, one after the other, and reads
    the name in a header byte by byte.

    Args:
        limit: the most bytes that may come out.
        what: what is inflated, for messages.

    Returns:
        A stream that raises `InvalidObject` on reading if that is not what it finds. It holds some 100 KiB.
    """
    return io.BufferedReader(_GzipMember(compressed, limit, what), _PIECE)


class _GzipMember(io.RawIOBase):
    def __init__(self, compressed: FilePart, limit: int, what: str) -> None:
        self._compressed = compressed
        self._limit = self._left = limit
        self._what = what
        self._inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        try:
            piece = self._inflate(len(buffer))
        except zlib.error:
            raise InvalidObject(f"{self._what} is not a complete gzip stream") from None
        self._left -= len(piece)
        if self._left < 0:
            raise InvalidObject(f"{self._what} of more than {self._limit} bytes")
        buffer[: len(piece)] = piece
        return len(piece)

    def _inflate(self, size: int) -> bytes:
        while not self._inflater.eof:
            data = self._inflater.unconsumed_tail or self._compressed.read(_PIECE) or b""
            if piece := self._inflater.decompress(data, size):
                return piece
            if not data:
                raise InvalidObject(f"{self._what} is not a complete gzip stream")
        if self._inflater.unused_data or self._compressed.read(1):
            raise InvalidObject(f"extra bytes after the gzip stream of the {self._what}")
        return b""
