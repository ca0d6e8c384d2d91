"""Files that belong together: X, and beside it X.sha256 or X.sig, which say what X has to be.

Each has a freshness of its own, and a client that gets one of before and one of after a change finds a
mismatch until both have expired. So a stored response counts as fresh only while it keeps step with those
beside it. Pure: no I/O and no clock.

* One that was validated before the content of another came is validated again before it is used.
* The same if another has expired since: its next use may bring something new. So the feed is asked for
  the one at most as often as for the other. What has no validators is exempt, as it would have to be
  transferred anew each time.
* After that, the feed may still be about to replace it, too. It is asked at growing intervals: after
  `rules.FLOOR` seconds, then whenever as much time has passed again as since the change. Within a day
  that makes a dozen requests, however many clients there are.
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
"""What is put behind the name of a file for its digest or its signature."""


def beside(target: Target) -> Iterator[Target]:
    """The names of what a file may belong together with: those of its sidecars, and what it is one of."""
    path, mark, query = target.path.partition("?")
    # fangfrisch puts the suffix behind the whole URL.
    for name, rest in {path: mark + query, target.path: ""}.items():
        for suffix in SUFFIXES:
            yield replace(target, path=f"{name}{suffix}{rest}")
            if name.lower().endswith(suffix):
                yield replace(target, path=f"{name[: -len(suffix)]}{rest}")


def keeps_step(entry: StoredResponse, other: StoredResponse, now: float) -> bool:
    """Whether a stored response may be used, as far as another one beside it is concerned.

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
