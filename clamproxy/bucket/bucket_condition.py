"""The condition of the object store: what is wrong with it, and since when."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)


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

    @property
    def state(self) -> BucketTrouble | None:
        """The trouble, if there is any."""
        return self._state

    def failed(self, reason: str, *, is_lasting: bool = False) -> None:
        """Note that the store could not be used. Logs the first failure only, until it can be used again."""
        if self._state is None or is_lasting > self._state.is_lasting:
            since = self._clock() if self._state is None else self._state.since
            self._state = BucketTrouble(f"{self._name}: {reason}", since, is_lasting)
            logger.warning(
                "The object store can't be used, so this gateway works alone: %s", self._state.reason
            )
            self.changed()

    def recovered(self) -> None:
        """Note that the store can be used."""
        if self._state is not None:
            logger.warning("The object store can be used again: %s", self._name)
            self._state = None
            self.changed()
