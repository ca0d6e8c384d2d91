"""Remembers which machine was last sent which content, because dates can't tell if its clock is fast."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clamproxy.files import replacing

FILE_NAME = "recipients.json"
MOST = 50_000
"""Machines times files. Those that were silent for longest are forgotten; then their dates count."""


class Recipients:
    """Event loop only. Blocks only in `load`.

    Args:
        directory: where they are kept over a restart.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._sent: OrderedDict[str, str] = OrderedDict()
        """Digests only: of who was sent which file, and of what it was."""
        self._is_changed = False

    def note(self, recipient: str, sha256: str) -> None:
        """Remember that a machine was sent all of a content.

        Args:
            recipient: see `recipient`.
        """
        self._sent[recipient] = sha256[:16]
        self._sent.move_to_end(recipient)
        self._is_changed = True
        if len(self._sent) > MOST:
            self._sent.popitem(last=False)

    def has(self, recipient: str, sha256: str) -> bool | None:
        """Whether this content is what the machine was sent last; None if that isn't known."""
        sent = self._sent.get(recipient)
        return None if sent is None else sent == sha256[:16]

    def load(self) -> None:
        """Read what an earlier process has saved; without it, dates count."""
        with suppress(OSError, LookupError, RecursionError, TypeError, ValueError):
            for key, sent in json.loads(self._path.read_bytes())[-MOST:]:
                self._sent[str(key)] = str(sent)

    def prepare_save(self) -> Callable[[], None]:
        """A function that writes what has changed until now. It blocks, and may be called in any thread.

        A disk that is full is no reason to complain: dates count then.
        """
        rows = list(self._sent.items()) if self._is_changed else []
        self._is_changed = False

        def save() -> None:
            if rows and self._path.parent.is_dir():
                with suppress(OSError), replacing(self._path) as output:
                    output.write(json.dumps(rows).encode())

        return save


def recipient(address: str, user_agent: str, name: str) -> str:
    """Stands for a machine, known by its address and the UUID in freshclam's User-Agent, and a file."""
    text = f"{address}\n{name}\n{user_agent}".encode("utf-8", "replace")
    return hashlib.blake2b(text, digest_size=8).hexdigest()
