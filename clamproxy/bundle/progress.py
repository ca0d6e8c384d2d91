"""How a long operation reports its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Is told how many bytes have been handled."""

    def begin(self, totals: Mapping[str, int]) -> None:
        """The work starts; `totals` are the bytes to handle by database."""

    def advance(self, database: str, size: int) -> None:
        """`size` more bytes of a database have been handled."""


class NoProgress:
    """Ignores the reports."""

    def begin(self, totals: Mapping[str, int]) -> None:
        pass

    def advance(self, database: str, size: int) -> None:
        pass
