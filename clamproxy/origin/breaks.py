"""Breaks of a transfer's connection: how many are borne, and how long to wait after each."""

from __future__ import annotations

from clamproxy.cache.partial import Validators
from clamproxy.config.units import MIB
from clamproxy.origin.attempt import Arrival
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import OriginError, RangeError, TransferError

MAX_BREAKS = 6
"""Breaks without progress in between, after which a transfer fails."""
PROGRESS = MIB
"""Bytes that count as progress."""
_FIRST_PAUSE = 0.2


class Breaks:
    """Counts the breaks that a transfer may have without progress."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._breaks = 0
        self._mark = arrival.partial.have

    def count(self, error: OriginError, *, for_client: bool) -> float:
        """Count a break; returns the seconds to wait before the next attempt.

        Args:
            for_client: whether a client is waiting.

        Raises:
            TransferError: it was one too many.
        """
        if self._arrival.partial.have - self._mark >= PROGRESS:
            self._breaks, self._mark = 0, self._arrival.partial.have
        self._breaks += 1
        # Clients that are reading along deserve some patience. For those that are waiting, the first break
        # is free: connections do break.
        has_readers = self._arrival.followed and for_client
        most = MAX_BREAKS if has_readers else 2 if for_client else 1
        passing = error.failure in (FailureKind.UNREACHABLE, FailureKind.INTERRUPTED)
        passing |= has_readers and error.failure is FailureKind.SERVER_ERROR and not error.retry_after
        if not passing or self._breaks >= most:
            raise TransferError(error.failure, str(error), error.retry_after)
        return float(_FIRST_PAUSE * 2 ** (self._breaks - 1))


def as_origin_error(error: OriginError | RangeError, arrival: Arrival) -> OriginError:
    """A file that changed at the origin can't be completed: start again, unless readers already follow it."""
    if isinstance(error, OriginError):
        return error
    if arrival.followed:
        raise TransferError(FailureKind.CHANGED, f"changed while it arrived: {error}")
    arrival.partial.begin(Validators(None, None, None))
    return OriginError(FailureKind.INTERRUPTED, str(error))
