"""The condition of the object store: what is wrong with it, and since when."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

STEADY = 60.0
"""Seconds without trouble, after which the next trouble counts as a new one."""
SAY_AGAIN_AFTER = 3600.0
"""Seconds between two lines in the log about a store that can only be used for moments, at least."""


@dataclass(frozen=True, slots=True)
class BucketTrouble:
    reason: str
    """One line for logs and people."""
    since: float
    """When it began, in Unix seconds."""
    is_lasting: bool = False
    """Whether the store can't do what is needed: not a failure, but its nature."""


class BucketCondition:
    """Whether the object store can be used, as far as known. Event loop only.

    Args:
        name: the object store's URL.
        clock: gives Unix seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.time) -> None:
        self.changed: Callable[[], object] = lambda: None
        """Is called after each change of the state."""
        self._name = name
        self._clock = clock
        self._state: BucketTrouble | None = None
        self._recovered_at = self._said_at = -math.inf
        self._is_said = False
        """Whether the log told of the present trouble."""

    @property
    def state(self) -> BucketTrouble | None:
        """The trouble, if there is any."""
        return self._state

    def failed(self, reason: str, *, is_lasting: bool = False) -> None:
        """Note that the store could not be used. Logs the first failure only, until it can be used again.

        Trouble that comes soon after the last one is logged once an hour.
        """
        if self._state is None or is_lasting > self._state.is_lasting:
            since = self._clock() if self._state is None else self._state.since
            self._state = BucketTrouble(f"{self._name}: {reason}", since, is_lasting)
            self._say(self._state)
            self.changed()

    def recovered(self) -> None:
        """Note that the store can be used."""
        if self._state is not None:
            if self._is_said:
                logger.warning("The object store can be used again: %s", self._name)
            self._state, self._is_said, self._recovered_at = None, False, self._clock()
            self.changed()

    def _say(self, trouble: BucketTrouble) -> None:
        now = self._clock()
        is_known = 0 <= now - self._recovered_at < STEADY and 0 <= now - self._said_at < SAY_AGAIN_AFTER
        if trouble.is_lasting or not is_known:
            self._is_said, self._said_at = True, now
            logger.warning("The object store can't be used, so this gateway works alone: %s", trouble.reason)
