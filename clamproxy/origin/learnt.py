"""What a gateway leaves for others that waited while it asked the origin on their behalf. Pure.

They act on it as if the origin had answered them. What it says comes by way of the object store, so it is
read as leniently, and believed as little, as an answer of the origin.
"""

from __future__ import annotations

from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import LONGEST_RETRY_AFTER, FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError, shown
from clamproxy.sharing.leases import Learnt

_MISSING = "missing"
_ADOPTED = frozenset(
    {FailureKind.FORBIDDEN, FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR, FailureKind.BAD_CONTENT}
)
"""The failures that the origin gives all gateways. With any other, the next gateway may have better luck."""


def failure_left(
    failure: FailureKind | None, reason: str, agent: str, retry_after: float | None = None
) -> Learnt:
    """What to leave after a failure; nothing if it concerns this gateway only.

    Args:
        failure: None if the origin has no such file.
        agent: the client version on whose behalf the origin was asked.
        retry_after: seconds that the origin asks to wait.
    """
    if failure is None:
        return {"failure": _MISSING, "reason": reason}
    if failure not in _ADOPTED:
        return {}
    return {"failure": str(failure), "reason": reason, "agent": agent, "retry_after": retry_after}


def failure_found(learnt: Learnt, agent: str) -> OriginError | NotFoundError | None:
    """The failure that another gateway has left; None if this one should ask for itself.

    Args:
        agent: the client version on whose behalf this gateway would ask. A refusal of another version says
            nothing about it (docs/protocol.md, trap 20).
    """
    match learnt:
        case {"failure": "missing", "reason": str(reason)}:
            return NotFoundError(shown(reason))
        case {"failure": str(name), "reason": str(reason), "agent": str(asked_as)}:
            if name not in _ADOPTED or (name == FailureKind.FORBIDDEN and asked_as != agent):
                return None
            return OriginError(FailureKind(name), shown(reason), _seconds(learnt.get("retry_after")))
    return None


def object_left(object_id: ObjectId) -> Learnt:
    """What to leave after an object was fetched."""
    return {"object": object_id.file_name}


def object_found(learnt: Learnt, wanted: ObjectId, oldest: int) -> ObjectId:
    """The object to take: the wanted one, or the version of a whole CVD that the origin sent instead.

    Args:
        oldest: the oldest version of a whole CVD that is of any use.
    """
    try:
        found = ObjectId.parse(str(learnt.get("object")))
    except ValueError:
        return wanted
    is_same = found.database == wanted.database and found.kind is wanted.kind is Kind.CVD
    return found if is_same and found.version >= oldest else wanted


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and 0 <= value <= LONGEST_RETRY_AFTER:
        return float(value)
    return None
