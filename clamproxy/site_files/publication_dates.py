"""When a file counts as published, and whether a machine has what is published. Pure.

For a `DatabaseCustomURL`, freshclam sends as If-Modified-Since the moment at which *this machine* wrote its
file, by its own clock (docs/protocol.md 1.2, trap 8). libcurl discards content whose Last-Modified isn't
later than that (trap 7); content without Last-Modified, it accepts.
"""

from __future__ import annotations

import math

FAR = 60
"""A publication more than this many seconds ahead was dated by a clock that was wrong."""
AHEAD = 2
"""A file written more than this many seconds in the future shows that the machine's clock is fast."""


def publication_date(now: float, last: int) -> int:
    """The Last-Modified of a new content, in Unix seconds: later than any copy of the former one.

    Args:
        now: the content must not be sent before the date that is returned, a second ahead at most.
        last: that of the former content; 0 if there was none.
    """
    date = math.floor(now) + 1
    return max(date, last + 1) if last <= now + FAR else date


def has_current(since: float, published_at: int, now: float, known: bool | None) -> bool:
    """Whether a machine that sends If-Modified-Since has what is published.

    A fast clock dates the machine's file ahead. A content that is published within that lead would stay
    hidden from it: its own file looks newer.

    Args:
        since: If-Modified-Since.
        published_at: when the present content was published.
        now: by the gateway's clock. All in Unix seconds.
        known: whether the machine was last sent the present content; None if that isn't known.
    """
    if since < published_at or known is False:
        return False
    return known is True or since <= now + AHEAD
