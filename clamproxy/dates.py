"""HTTP dates: read from clients and origins, which send all sorts of things, and written for responses."""

from __future__ import annotations

from datetime import UTC
from functools import lru_cache
from typing import Any

from werkzeug.http import http_date as _http_date
from werkzeug.http import parse_date

_LAST = 253_402_300_799.0
"""The end of the year 9999; no later date can be written."""
LONGEST_DATE = 64
"""Characters that are looked at; a date of HTTP has at most 33 (RFC 9110 5.6.7)."""


def parse_http_date(field: str | None) -> float | None:
    """Unix seconds of an HTTP date, None for anything else."""
    return _parse(field) if field is not None and len(field) <= LONGEST_DATE else None


@lru_cache(256)  # machines with the same version send the same date
def _parse(field: str) -> float | None:
    try:
        date = parse_date(field)
        seconds = -1.0 if date is None else date.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):  # a year or an hour that no calendar has
        return None
    return seconds if 0 <= seconds <= _LAST else None


def http_date(seconds: float) -> str:
    """A date as HTTP has it, of Unix seconds."""
    return _format(int(seconds))


@lru_cache(256)
def _format(seconds: int) -> str:
    return _http_date(seconds)


_END_OF_TIME = 2**40


def as_past_time(value: Any, now: float) -> float:
    """A time that was noted earlier, in Unix seconds; one in the future was noted by a wrong clock.

    Args:
        value: what was read back.
        now: the present time.

    Raises:
        ValueError: this is no time.
    """
    if not isinstance(value, int | float) or not 0 <= value < _END_OF_TIME:
        raise ValueError(f"not a time: {value!r:.40}")
    return min(float(value), now)
