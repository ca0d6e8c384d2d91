"""HTTP dates: parsed leniently, as clients and origins send all sorts of them, and written for responses."""

from __future__ import annotations

import math
from datetime import UTC
from functools import lru_cache
from typing import Any

from werkzeug.http import http_date as _http_date
from werkzeug.http import parse_date

_LAST = 253_402_300_799.0
"""The end of the year 9999, as later dates can't be written."""
END_OF_TIME = 2.0**40
"""Unix seconds that no time reaches, some 35,000 years from now."""
LONGEST_DATE = 64
"""Longer fields are not parsed; an HTTP date has at most 33 characters (RFC 9110 5.6.7)."""


def parse_http_date(field: str | None) -> float | None:
    """The Unix seconds of an HTTP date; None for anything else."""
    return _parse(field) if field is not None and len(field) <= LONGEST_DATE else None


@lru_cache(256)  # machines with the same version send the same date
def _parse(field: str) -> float | None:
    try:
        date = parse_date(field)
        seconds = -1.0 if date is None else date.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):  # an impossible year or hour
        return None
    return seconds if 0 <= seconds <= _LAST else None


def http_date(seconds: float) -> str:
    """Unix seconds as an HTTP date."""
    return _format(int(seconds))


@lru_cache(256)
def _format(seconds: int) -> str:
    return _http_date(seconds)


def as_time(value: Any) -> float:
    """Check a time in Unix seconds that anybody may have written.

    Raises:
        ValueError: the value is not a time.
    """
    if type(value) not in (int, float) or not 0 <= value < END_OF_TIME:
        raise ValueError(f"not a time: {value!r:.40}")
    return float(value)


def as_past_time(value: Any, now: float) -> float:
    """Check a saved time in Unix seconds; a time in the future came from a wrong clock and becomes `now`.

    Raises:
        ValueError: the value is not a time.
    """
    return min(as_time(value), now)


def elapsed(since: float, now: float) -> float:
    """Seconds since something was noted; endlessly many if that was later: the clock was wrong then."""
    return now - since if since <= now else math.inf
