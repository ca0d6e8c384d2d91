"""How requests to the origin fail, and how their failures read."""

from __future__ import annotations

import re
from http.client import HTTPException

from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError, ProxyError

from clamproxy.origin.cooldown import FailureKind

_WHERE = re.compile(r"^<?[\w.]+(\(.*?\)| object at \w+)>?: ")
"""What urllib3 puts before its reasons: the connection, which is known anyway."""
LIBRARY_ERRORS = (HTTPError, HTTPException, OSError, ValueError)
"""What urllib3 and http.client raise if a response makes no sense."""


class OriginError(Exception):
    """The origin did not deliver.

    Args:
        failure: decides about the cool-down.
        reason: one line.
        retry_after: seconds that the origin asks to wait, if it does.
    """

    def __init__(self, failure: FailureKind, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.failure = failure
        self.retry_after = retry_after


class TransferError(Exception):
    """The object could not be fetched. The arguments are those of `OriginError`, and `needed`.

    Args:
        needed: bytes for which the disk has no room.
    """

    def __init__(
        self, failure: FailureKind, reason: str, retry_after: float | None = None, needed: int = 0
    ) -> None:
        super().__init__(reason)
        self.failure = failure
        self.retry_after = retry_after
        self.needed = needed


class WithdrawnError(TransferError):
    """What readers follow came from the bucket and is wrong: they are cut off, and the next one is asked for.

    This is no trouble with the origin.
    """


class NotFoundError(Exception):
    """The origin says that there is no such file."""


class KnownMissingError(NotFoundError):
    """The origin said a short while ago that there is no such file, and isn't asked again."""


class RangeError(Exception):
    """The origin doesn't have the requested range: what is partly here is another file."""


def reason_of(error: BaseException) -> str:
    """An error as one short line, without the layers that urllib3 wraps it in."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return reason_of(error.reason)
    if isinstance(error, ProtocolError | ProxyError) and isinstance(error.args[-1], Exception):
        return reason_of(error.args[-1])
    first = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return shown(_WHERE.sub("", first)) or type(error).__name__


def shown(text: str) -> str:
    """Foreign text for a log: one line of harmless characters."""
    line = (text.splitlines() or [""])[0]
    return "".join(character if character.isprintable() else "?" for character in line)[:200].strip()
