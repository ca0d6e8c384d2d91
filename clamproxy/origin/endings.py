"""Endings: how a transfer ended without its object, for other processes that wait for the same one.

Whoever waits gets the same outcome as the clients of the process that has asked, and the origin isn't asked
again.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError, TransferError


@dataclass(frozen=True, slots=True)
class TransferEnding:
    """How a transfer ended without the object that it was for."""

    reason: str
    failure: FailureKind | None = None
    """None: the origin doesn't have the file, or sends another version."""
    agent: str = ""
    """The client version that was shown to the origin, see `Requester.version`."""
    retry_after: float | None = None
    needed: int = 0
    """Bytes for which the disk has no room."""
    version: int | None = None
    """The version that the origin sends instead; the transfer goes on as one of that."""
    at: float = field(default_factory=time.monotonic)
    """Monotonic seconds, which are the same in all processes of a machine."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, saved: Any, since: float) -> Self | None:
        """Read what another process left; None if that is no ending, or one from an earlier time.

        Args:
            saved: any JSON value.
            since: monotonic seconds; what ended before concerns those that waited then.
        """
        try:
            ending = cls(
                str(saved["reason"]),
                None if saved["failure"] is None else FailureKind(saved["failure"]),
                str(saved["agent"]),
                None if saved["retry_after"] is None else float(saved["retry_after"]),
                int(saved["needed"]),
                None if saved["version"] is None else int(saved["version"]),
                float(saved["at"]),
            )
        except (KeyError, OverflowError, RecursionError, TypeError, ValueError):
            return None
        return ending if since <= ending.at <= time.monotonic() else None

    def concerns(self, agent: str) -> bool:
        """Whether it says something about a request by another client version as well.

        An old client's 403 doesn't (docs/protocol.md, trap 20).
        """
        return self.failure is not FailureKind.FORBIDDEN or self.agent == agent

    @property
    def error(self) -> Exception | None:
        """What the process that asked has met; None if the transfer goes on as one of another version."""
        if self.version is not None:
            return None
        if self.failure is FailureKind.NO_ROOM:
            return TransferError(self.failure, self.reason, self.retry_after, self.needed)
        if self.failure is not None:
            return OriginError(self.failure, self.reason, self.retry_after)
        return NotFoundError(self.reason)

    def turn(self, object_id: ObjectId, oldest: int) -> ObjectId:
        """The object that is fetched instead.

        Args:
            object_id: the expected one.
            oldest: the oldest version that is of any use.

        Raises:
            NotFoundError, OriginError, TransferError: there is none, for the same reason as there.
        """
        if (error := self.error) is not None:
            raise error
        version = self.version or 0
        if version < oldest:
            raise OriginError(FailureKind.BAD_CONTENT, self.reason)
        return ObjectId(object_id.database, version, object_id.kind)
