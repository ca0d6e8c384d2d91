"""How far another gateway's clock is from this one's, as far as its documents show. Pure.

Every document says when it was written, by its writer's clock. This gateway saw it later than that, and at
its look before, it didn't see it yet. So each document bounds the difference from both sides, and together
they bound it ever more closely, as in NTP. If they contradict each other, one of the clocks was set, and the
latest document counts alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

LONGEST_WRITE = 15.0
"""Seconds between the time that a document tells and the moment when others can see it, at most."""
SIGN_OF_LIFE = 60.0
"""Seconds after which a gateway writes its document anew, even if nothing has changed."""
_AGREEMENT = 3.0
"""Two clocks that may differ by less than this many seconds are taken to agree: no look is more exact."""


@dataclass(frozen=True, slots=True)
class ClockDifference:
    """The seconds to add to a time by another gateway's clock: something between these two."""

    least: float = -math.inf
    most: float = math.inf

    def refined(self, written_at: float, looked_at: float | None, seen_at: float) -> Self:
        """The difference as another document shows it.

        Args:
            written_at: as the document says, by the other clock.
            looked_at: when it wasn't there yet, by this gateway's clock; None if it was at the first look.
            seen_at: when it was there, by this gateway's clock.
        """
        least = -math.inf if looked_at is None else looked_at - LONGEST_WRITE - written_at
        most = seen_at - written_at
        both = type(self)(max(least, self.least), min(most, self.most))
        return both if both.least <= both.most else type(self)(least, most)

    @property
    def seconds(self) -> float | None:
        """The best guess; None if there is none yet: the document may be old, or the clock behind."""
        if self.least == -math.inf and self.most > SIGN_OF_LIFE + LONGEST_WRITE:
            return None
        if self.least == -math.inf and self.most >= 0:
            return 0.0  # written within the last minute, by a clock that agrees with this one
        # The smallest difference that was seen is that of the document that was seen soonest.
        return 0.0 if 0 <= self.most <= _AGREEMENT else self.most
