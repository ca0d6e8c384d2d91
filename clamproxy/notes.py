"""Notes: what a part of the gateway knows, kept over a restart as small JSON values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from clamproxy.threads import Writer


class Keeper(Protocol):
    """Where notes are kept: the index of the cache, or the file of records."""

    def notes(self, prefix: str) -> dict[str, Any]:
        """All notes below a prefix, by the rest of their key."""

    def set_note(self, key: str, value: Any) -> object:
        """Keep a JSON value; None removes it. Blocks."""


class Notes:
    """The notes of one part, below a topic of its own."""

    def __init__(
        self, keeper: Keeper | None, writer: Writer | None, topic: str, *, read_only: bool = False
    ) -> None:
        """Nothing is read yet.

        Args:
            keeper: where they are; None: nowhere, and nothing outlives the process.
            writer: writes them soon; None: they are written at once, by whoever saves them.
            topic: the part of the keys before the slash that all of them have in common.
            read_only: what is saved is not kept; for those who only look.
        """
        self._keeper = keeper
        self._writer = writer
        self._prefix = f"{topic}/"
        self._read_only = read_only

    def load[T](self, parse: Callable[[Any], T]) -> dict[str, T]:
        """What an earlier process saved. Blocks, but not for long.

        Args:
            parse: makes something of a JSON value. Whatever it fails on is forgotten: files come from
                other versions, and from disks that err.
        """
        found = {}
        for key, value in (self._keeper.notes(self._prefix) if self._keeper is not None else {}).items():
            try:
                found[key] = parse(value)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                self.forget(key)
        return found

    def save(self, key: str, value: Any) -> None:
        """Keep a JSON value. Quick if there is a writer; for any thread."""
        keeper, key = self._keeper, self._prefix + key
        if keeper is None or self._read_only:
            return
        if self._writer is None:
            keeper.set_note(key, value)
        else:
            self._writer.submit(lambda: keeper.set_note(key, value))

    def forget(self, key: str) -> None:
        """Remove a value, whether it is there or not."""
        self.save(key, None)


UNKEPT = Notes(None, None, "")
"""For what ends with the process."""
