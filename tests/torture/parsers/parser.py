"""What a row of the table says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parser:
    """A place where bytes from outside are read."""

    name: str
    """What is read, in the words of whoever sends it."""
    read: Callable[[bytes], object]
    """Reads it as the gateway does. It also asserts what must hold for everything that was accepted."""
    seeds: tuple[bytes, ...]
    """Bytes that mean something. Others are made from them."""
    raises: tuple[type[Exception], ...] = ()
    """What it may raise, according to its documentation."""

    def __str__(self) -> str:
        return self.name

    def accepts(self, data: bytes) -> bool:
        """Let it read; returns whether it took the bytes for what they should be.

        Raises:
            Exception: anything that it must not raise.
        """
        try:
            self.read(data)
        except self.raises:
            return False
        except Exception as error:
            error.add_note(f"{self.name}: {data[:300]!r}")
            raise
        return True
