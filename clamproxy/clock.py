"""The interface of clocks: the module `time` has it, and tests use other ones."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    def time(self) -> float:
        """Seconds since 1970, by the system's clock."""

    def monotonic(self) -> float:
        """Seconds since some moment; setting the system's clock doesn't change them."""
