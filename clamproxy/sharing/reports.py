"""Reports: what each gateway of the site says about itself and its machines, for people, in packed lines.

They are in the object store beside the documents. The process that exchanges those saves the reports of
others in the cache directory, where pages and commands read them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from clamproxy.files import Stamp, open_to_read, remove, replacing, stamp_of
from clamproxy.sharing.gateway_document import DIRECTORY as DOCUMENTS
from clamproxy.sharing.gateway_document import id_in

SUFFIX = ".report.gz"
REPORT_EVERY = 60.0
"""Seconds between two reports of a gateway, at least."""
LARGEST = 4 * 2**20
"""Bytes of a packed report, at most."""
LARGEST_LINE = 4 * 2**20
MOST_LINES = 101
"""A line about the gateway, and one for each thousand of its machines."""

_GZIP = zlib.MAX_WBITS | 16
_AT_A_TIME = 65536


class Reports:
    """The reports of other gateways. Blocks.

    Args:
        cache: the cache directory.
    """

    def __init__(self, cache: Path) -> None:
        self._directory = cache / DOCUMENTS

    def save(self, gateway: str, packed: bytes) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        with replacing(self._path(gateway)) as file:
            file.write(packed)

    def remove(self, gateway: str) -> None:
        remove(self._path(gateway))

    def gateways(self) -> list[str]:
        """The gateways of which there is a report."""
        return sorted(filter(None, (id_in(path.name, SUFFIX) for path in self._directory.glob(f"*{SUFFIX}"))))

    def stamp(self, gateway: str) -> Stamp | None:
        """Changes with the report. Quick."""
        return stamp_of(self._path(gateway))

    def lines(self, gateway: str) -> Iterator[bytes]:
        """The lines of a report.

        Raises:
            OSError: there is none.
            ValueError: it is damaged, or too much.
        """
        with open_to_read(self._path(gateway)) as file:
            yield from unpacked(file.read(LARGEST))

    def _path(self, gateway: str) -> Path:
        return self._directory / f"{gateway}{SUFFIX}"


def path_of(gateway: str) -> str:
    """Where the report of the gateway with this id is in the object store."""
    return f"{DOCUMENTS}/{gateway}{SUFFIX}"


def packed(lines: Iterable[bytes]) -> bytes | None:
    """Lines as a report; those that are too many or too much are left out. Blocks.

    Returns:
        None if not even the first one fits.
    """
    compressor = zlib.compressobj(6, wbits=_GZIP)
    found, is_empty = b"", True
    for _, line in zip(range(MOST_LINES), lines, strict=False):
        attempt = compressor.copy()
        piece = attempt.compress(line + b"\n")
        if len(found) + len(piece) + len(attempt.copy().flush()) > LARGEST or len(line) > LARGEST_LINE:
            break
        compressor, found, is_empty = attempt, found + piece, False
    return None if is_empty else found + compressor.flush()


def unpacked(content: bytes) -> Iterator[bytes]:
    """The lines of a report that anybody may have written. It is never unpacked as a whole.

    Raises:
        ValueError: it is damaged, or too much.
    """
    decompressor = zlib.decompressobj(wbits=_GZIP)
    rest, count = b"", 0
    while content and not decompressor.eof:
        try:
            rest += decompressor.decompress(content, _AT_A_TIME)
        except zlib.error as error:
            raise ValueError("a damaged report") from error
        content = decompressor.unconsumed_tail
        *lines, rest = rest.split(b"\n")
        count += len(lines)
        if len(rest) > LARGEST_LINE or count > MOST_LINES:
            raise ValueError("a report that is too long")
        yield from lines
    if not decompressor.eof or rest:
        raise ValueError("an incomplete report")
