"""Files that belong together: X and, beside it, X.sha256 or X.sig, which say what X has to be.

Each has its own freshness. A client that gets one from before and the other from after a change finds a
mismatch until both have expired. So a stored response counts as fresh only while it keeps step with those
beside it. Pure: no I/O and no clock.

* If a response was validated before the content of another one arrived, it is validated again before use.
* So it is if another one has expired since, as the next use of that one may bring something new. This
  way, the feed is asked for the one at most as often as for the other. Responses without validators are
  exempt, because they would have to be transferred again each time.
* Even then, the feed may still be about to replace the response as well. So it is asked at growing
  intervals: after `sharing_rules.FLOOR` seconds, then whenever the time since the change has doubled.
  That makes a dozen requests within a day, however many clients there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.sharing_rules import FLOOR, expires_at, validators
from clamproxy.feeds.target import Target

_DIGESTS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "b2")
_SIGNATURES = ("sig", "asc", "gpg", "sign", "minisig", "p7s")
SUFFIXES = (
    *(f".{name}{end}" for name in _DIGESTS for end in ("", "sum")),
    *(f".{name}" for name in _SIGNATURES),
)
"""What is appended to a file's name for its digest or signature."""


def beside(target: Target) -> Iterator[Target]:
    """The names of files that may belong with a file: its sidecars, and the file whose sidecar it may be."""
    path, mark, query = target.path.partition("?")
    # fangfrisch appends the suffix to the whole URL.
    for name, rest in {path: mark + query, target.path: ""}.items():
        for suffix in SUFFIXES:
            yield replace(target, path=f"{name}{suffix}{rest}")
            if name.lower().endswith(suffix):
                yield replace(target, path=f"{name[: -len(suffix)]}{rest}")


def keeps_step(entry: StoredResponse, other: StoredResponse, now: float) -> bool:
    """Whether a stored response may be used, as far as one other response beside it is concerned.

    Args:
        entry: the one to use.
        other: the one beside it.
        now: Unix seconds.
    """
    moments = [other.obtained_at] if other.obtained_at > entry.obtained_at else []
    if validators(entry.head):
        moments.append(expires_at(other.head))
    past = [moment for moment in moments if moment <= now]
    if not past:
        return True
    moment, validated_at = max(past), entry.head.requested_at
    return validated_at >= moment and now - validated_at < max(FLOOR, validated_at - moment)
