"""What the parts that tell the time need of a clock: the module `time` is one, and tests turn others on."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A clock."""

    def time(self) -> float:
        """Seconds since 1970, by the system's clock."""

    def monotonic(self) -> float:
        """Seconds since some moment; setting the system's clock doesn't change them."""
