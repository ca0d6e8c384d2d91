"""Remembers which machine was last sent which content, because dates can't tell if its clock is fast.

The processes that share a state directory append to one file, and read what the others have appended.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from clamproxy.files import Identity, identity_of, is_named, lock, replacing, try_lock
from clamproxy.threads import Writer

FILE_NAME = "recipients"
FORMER_NAME = "recipients.json"
"""What an earlier version wrote, for one process."""
MOST = 50_000
"""Machines times files. Those that got nothing new for longest are forgotten; then their dates count."""
_DIGITS = 16
"""Of each of the two digests in a line."""
_LINE = 2 * _DIGITS + 2


class Recipients:
    """Event loop only. Blocks only in `load`, and when the file has been shortened.

    Args:
        directory: where they are kept.
        writer: shortens the file soon; None: that is done at once, in the caller's thread.
    """

    def __init__(self, directory: Path, writer: Writer | None = None) -> None:
        self._path = directory / FILE_NAME
        self._writer = writer
        self._is_shortening = False
        self._sent: OrderedDict[str, str] = OrderedDict()
        """Digests only: of who was sent which file, and of what it was."""
        self._read_from: Identity | None = None
        self._read_to = 0
        """How much of that file is in `_sent`."""

    def note(self, recipient: str, sha256: str) -> None:
        """Remember that a machine was sent all of a content. A disk that is full is no reason to complain.

        Args:
            recipient: see `recipient`.
        """
        if self.has(recipient, sha256):
            return  # anybody may ask again and again
        self._put(recipient, sha256[:_DIGITS])
        line = f"{recipient:{_DIGITS}.{_DIGITS}} {sha256[:_DIGITS]}\n".encode()
        length = 0
        with suppress(OSError), self._path.open("ab", buffering=0) as file:
            length = file.tell()
            # Not if another process is shortening it: this line would be lost. And if it can't be shortened,
            # it grows no further.
            if length < 2 * _longest() and try_lock(file, shared=True) and is_named(file, self._path):
                file.write(line)
        if length >= _longest():
            self._shorten_soon()

    def has(self, recipient: str, sha256: str) -> bool | None:
        """Whether this content is what the machine was sent last; None if that isn't known."""
        self._take_in()
        sent = self._sent.get(recipient)
        return None if sent is None else sent == sha256[:_DIGITS]

    def load(self) -> None:
        """Read what was saved; without it, dates count."""
        with suppress(OSError):
            self._path.with_name(FORMER_NAME).unlink(missing_ok=True)
        self._take_in()

    def _put(self, recipient: str, sent: str) -> None:
        self._sent[recipient] = sent
        self._sent.move_to_end(recipient)
        if len(self._sent) > MOST:
            self._sent.popitem(last=False)

    def _take_in(self) -> None:
        """Read what was appended since the last look."""
        with suppress(OSError):
            status = os.stat(self._path)  # noqa: PTH116 -- called all the time
            is_same = (status.st_dev, status.st_ino) == self._read_from
            if is_same and status.st_size == self._read_to:
                return
            with self._path.open("rb") as file:
                identity = identity_of(file.fileno())
                content, end = _read(file, self._read_to if identity == self._read_from else 0)
            self._read_from, self._read_to = identity, end
            for recipient, sent in _lines(content):
                self._put(recipient, sent)

    def _shorten_soon(self) -> None:
        if self._writer is None:
            self._shorten()
        elif not self._is_shortening:
            self._is_shortening = True
            self._writer.submit(self._shorten)

    def _shorten(self) -> None:
        """Leave the last line of each recipient. Blocks."""
        try:
            with suppress(OSError), self._path.open("rb") as file:
                lock(file)
                if not is_named(file, self._path) or os.fstat(file.fileno()).st_size < _longest():
                    return  # another process was quicker
                last: dict[str, str] = {}
                for recipient, sent in _lines(_read(file)[0]):
                    last.pop(recipient, None)
                    last[recipient] = sent
                with replacing(self._path) as output:
                    for recipient, sent in list(last.items())[-MOST:]:
                        output.write(f"{recipient} {sent}\n".encode())
        finally:
            self._is_shortening = False


def _longest() -> int:
    """Bytes from which on the file is shortened, and which are read of it at most."""
    return 4 * MOST * _LINE


def _read(file: BinaryIO, start: int = 0) -> tuple[bytes, int]:
    """The lines from a position on, without what is too old to count; and where the last whole one ends."""
    start = max(start, os.fstat(file.fileno()).st_size - _longest())
    file.seek(start)
    content = file.read()
    content = content[: content.rfind(b"\n") + 1]
    return content, start + len(content)


def _lines(content: bytes) -> list[tuple[str, str]]:
    """The lines that are whole: the disk may be bad."""
    found = []
    for line in content.decode("ascii", "replace").splitlines():
        recipient, _, sent = line.partition(" ")
        if len(recipient) == len(sent) == _DIGITS:
            found.append((recipient, sent))
    return found


def recipient(address: str, user_agent: str, name: str) -> str:
    """Stands for a machine, known by its address and the UUID in freshclam's User-Agent, and a file."""
    text = f"{address}\n{name}\n{user_agent}".encode("utf-8", "replace")
    return hashlib.blake2b(text, digest_size=_DIGITS // 2).hexdigest()
