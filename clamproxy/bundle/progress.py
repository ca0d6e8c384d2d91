"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Hears of bytes that have been handled."""

    def begin(self, totals: Mapping[str, int]) -> None:
        """Work starts: bytes to handle for each database."""

    def advance(self, database: str, size: int) -> None:
        """So many more bytes of a database have been handled."""


class NoProgress:
    """Nobody wants to know."""

    def begin(self, totals: Mapping[str, int]) -> None:
        """Ignored."""

    def advance(self, database: str, size: int) -> None:
        """Ignored."""
