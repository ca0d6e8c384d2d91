"""Remembers which machine was last sent which content, because dates can't tell if its clock is fast.

The processes that share a state directory append to one file, and read what the others have appended.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clamproxy.files import Identity, identity_of, is_named, lock, replacing, try_lock

FILE_NAME = "recipients"
FORMER_NAME = "recipients.json"
"""What an earlier version wrote, for one process."""
MOST = 50_000
"""Machines times files. Those that were silent for longest are forgotten; then their dates count."""
_DIGITS = 16
"""Of each of the two digests in a line."""
_LINE = 2 * _DIGITS + 2


class Recipients:
    """Event loop only. Blocks only in `load`, and when another process has shortened the file.

    Args:
        directory: where they are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
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
        self._take_in()
        self._put(recipient, sha256[:_DIGITS])
        line = f"{recipient:{_DIGITS}.{_DIGITS}} {sha256[:_DIGITS]}\n".encode()
        with suppress(OSError), self._path.open("ab", buffering=0) as file:
            # Otherwise another process is shortening it, and this line would be lost.
            if try_lock(file, shared=True) and is_named(file, self._path):
                file.write(line)

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

    def prepare_save(self) -> Callable[[], None]:
        """A function that keeps the file short. It blocks, and may be called in any thread."""
        return self._shorten

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
                start = self._read_to if identity == self._read_from else 0
                file.seek(start)
                content = file.read()
            content = content[: len(content) - len(content) % _LINE]
            self._read_from, self._read_to = identity, start + len(content)
            for recipient, sent in _lines(content):
                self._put(recipient, sent)

    def _shorten(self) -> None:
        """Leave the last line of each recipient."""
        with suppress(OSError):
            if self._path.stat().st_size <= 4 * MOST * _LINE:
                return
            with self._path.open("rb") as file:
                lock(file)
                if not is_named(file, self._path):
                    return  # another process was quicker
                last: dict[str, str] = {}
                for recipient, sent in _lines(file.read()):
                    last.pop(recipient, None)
                    last[recipient] = sent
                with replacing(self._path) as output:
                    for recipient, sent in list(last.items())[-MOST:]:
                        output.write(f"{recipient} {sent}\n".encode())


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
