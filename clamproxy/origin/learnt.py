"""What a gateway leaves for others that waited while it asked the origin on their behalf. Pure.

They act on it as if the origin had answered them. What it says comes by way of the object store, so it is
read as leniently, and believed as little, as an answer of the origin.
"""

from __future__ import annotations

import time
from dataclasses import replace

from clamproxy.leases.leases import Learnt
from clamproxy.objects import MAX_VERSION
from clamproxy.origin.cooldown import LONGEST_RETRY_AFTER, FailureKind
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.errors import shown

_EVERYBODYS = frozenset(
    {FailureKind.FORBIDDEN, FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR, FailureKind.BAD_CONTENT}
)
"""The failures that the origin gives all gateways. With any other, the next gateway may have better luck."""


def ending_left(ending: TransferEnding | None) -> Learnt:
    """What to leave after a transfer or a probe; nothing if it concerns this gateway only."""
    if ending is None or (ending.failure is not None and ending.failure not in _EVERYBODYS):
        return {}
    return ending.to_json()


def ending_found(learnt: Learnt, agent: str) -> TransferEnding | None:
    """What another gateway has left; None if this one should ask for itself.

    Args:
        agent: the client version on whose behalf this gateway would ask.
    """
    # Its own clock says nothing here: it has just left this.
    ending = TransferEnding.parse(learnt | {"at": time.monotonic()}, 0.0)
    if ending is None or not ending.concerns(agent):
        return None
    if ending.failure is not None and ending.failure not in _EVERYBODYS:
        return None
    if ending.version is not None and not 0 < ending.version <= MAX_VERSION:
        return None
    wait = ending.retry_after
    is_sane = wait is not None and 0 <= wait <= LONGEST_RETRY_AFTER
    return replace(ending, reason=shown(ending.reason), retry_after=wait if is_sane else None)
