"""Sizes, durations and shares: numbers, or texts of numbers and units."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction

from clamproxy.config.notation import Mistake, Plain, Quantity

MAX_SIZE = 2**63 - 1
"""Bytes; file offsets and SQLite's integers can't be larger."""

_NUMBER = r"[0-9]{1,18}(\.[0-9]{1,9})?"
_PART = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[A-Za-z%]*)")
_PREFIXES = "kmgt"
_WRITTEN_SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "min": 60_000, "m": 60_000, "s": 1000, "ms": 1, "": 1000}
_WRITTEN_DURATIONS = ("d", "h", "min", "s", "ms")


def _parts(text: str) -> Iterator[tuple[Fraction, str]]:
    """The numbers of a quantity, each with its unit."""
    for part in _PART.finditer(text):
        yield Fraction(part["number"]), part["unit"]


def _size(text: str) -> int:
    ((number, unit),) = _parts(text)
    prefix, is_decimal = unit.lower()[:1], unit.lower()[1:] == "b"
    power = _PREFIXES.find(prefix) + 1 if prefix else 0
    return _size_within_limits(int(number * (1000 if is_decimal else 1024) ** power))


def _size_within_limits(size: int | float) -> int:
    if not isinstance(size, int):
        raise ValueError(size)
    if not 0 <= size <= MAX_SIZE:
        raise Mistake("a size is at least 0 and below 8 EiB")
    return size


def _write_size(value: int) -> Plain:
    for unit, name in _WRITTEN_SIZES:
        if value and value % unit == 0:
            return f"{value // unit}{name}"
    return value


def _seconds(text: str) -> float:
    return float(sum(number * _MILLISECONDS[unit] for number, unit in _parts(text)) / 1000)


def _write_duration(seconds: float) -> Plain:
    rest = Fraction(seconds) * 1000
    if rest.denominator != 1:
        # 0.1 is not a whole number of milliseconds in binary, yet 100ms expresses it exactly.
        rest = Fraction(round(seconds * 1000))
    written, milliseconds = "", int(rest)
    for unit in _WRITTEN_DURATIONS:
        count, milliseconds = divmod(milliseconds, _MILLISECONDS[unit])
        written += f"{count}{unit}" if count else ""
    return _if_exact(written or "0s", seconds, DURATION)


def _share(text: str) -> float:
    ((number, unit),) = _parts(text)
    return float(number / 100 if unit else number)


def _write_share(value: float) -> Plain:
    return _if_exact(f"{round(value * 100, 9):.15g}%", value, SHARE)


def _if_exact(text: str, value: float, notation: Quantity[float]) -> Plain:
    try:
        return text if notation.parse(text) == value else value
    except ValueError:
        return value


def _finite(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise Mistake("not a finite number of at least 0")
    return number


SIZE = Quantity(
    pattern=rf"^\s*{_NUMBER}\s*([kKmMgGtT][iI]?)?[bB]?\s*$",
    expected="a size such as 4GiB",
    read=_size,
    write=_write_size,
    number=_size_within_limits,
)
"""Bytes, rounded down.

``KiB``, ``MiB``, ... and the bare letters ``K``, ``M``, ... are powers of 1024, ``kB``, ``MB``, ... powers of
1000, as in GNU's tools. Case does not matter.
"""

DURATION = Quantity(
    pattern=rf"^\s*(?=[0-9])({_NUMBER}\s*d\s*)?({_NUMBER}\s*h\s*)?({_NUMBER}\s*m(in)?(?!s)\s*)?"
    rf"({_NUMBER}\s*s\s*)?({_NUMBER}\s*ms)?\s*$|^\s*{_NUMBER}\s*$",
    expected="a duration such as 10s or 1h30min",
    read=_seconds,
    write=_write_duration,
    number=_finite,
)
"""Seconds: a plain number, or ``d``, ``h``, ``min`` (or ``m``), ``s`` and ``ms`` in this order."""

SHARE = Quantity(
    pattern=rf"^\s*{_NUMBER}\s*%?\s*$",
    expected="a share such as 10% or 0.1",
    read=_share,
    write=_write_share,
    number=_finite,
)
"""1.0 for the whole; larger shares are not refused here."""
