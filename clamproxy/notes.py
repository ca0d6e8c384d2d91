"""Notes: small JSON values in which parts of the gateway keep what they know across a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from clamproxy.threads import Writer


class Keeper(Protocol):
    """Where notes are kept: the index of the cache, or the file of records."""

    def notes(self, prefix: str) -> dict[str, Any]:
        """All notes with a prefix, by the rest of their key."""

    def set_note(self, key: str, value: Any) -> object:
        """Keep a JSON value; None removes it. Blocks."""


class Notes:
    """The notes of one part of the gateway, under its own topic.

    Args:
        keeper: where they are kept; None: nowhere, and nothing outlives the process.
        writer: writes them soon; None: they are written at once, in the caller's thread.
        topic: the part of the keys before the slash, the same for all of them.
        read_only: saved values are not kept; for callers that only read.
    """

    def __init__(
        self, keeper: Keeper | None, writer: Writer | None, topic: str, *, read_only: bool = False
    ) -> None:
        self._keeper = keeper
        self._writer = writer
        self._prefix = f"{topic}/"
        self._read_only = read_only

    def load[T](self, parse: Callable[[Any], T]) -> dict[str, T]:
        """What an earlier process saved. Blocks, but not for long.

        Args:
            parse: converts a JSON value. Values on which it fails are forgotten: they may come from other
                versions, or from failing disks.
        """
        found = {}
        for key, value in (self._keeper.notes(self._prefix) if self._keeper is not None else {}).items():
            try:
                found[key] = parse(value)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                self.forget(key)
        return found

    def save(self, key: str, value: Any) -> None:
        """Keep a JSON value. Quick if there is a writer. Any thread."""
        keeper, key = self._keeper, self._prefix + key
        if keeper is None or self._read_only:
            return
        if self._writer is None:
            keeper.set_note(key, value)
        else:
            self._writer.submit(lambda: keeper.set_note(key, value))

    def forget(self, key: str) -> None:
        """Remove a value, if there is one."""
        self.save(key, None)


UNKEPT = Notes(None, None, "")
"""For knowledge that ends with the process."""
