"""Rates: bytes per second, one for all times or different ones by weekday and hour. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from clamproxy.config.notation import Plain, Quantity
from clamproxy.config.quantities import SIZE
from clamproxy.config.units import KIB

LEAST_RATE = 16 * KIB
"""Bytes per second. Shared by as many transfers as there can be, it still gives each of them some 400 bytes
per second: no client or origin takes that for silence."""
DEFAULT = "default"
"""The entry for the rest of the week."""

_DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
_DAY = 24 * 60
_WEEK = 7 * _DAY
_UNITS = (
    *((2**30, "GiB"), (10**9, "GB"), (2**20, "MiB")),
    *((10**6, "MB"), (2**10, "KiB"), (10**3, "kB"), (1, "B")),
)
_BITS = re.compile(r"\s*(?P<number>[0-9.]+)\s*(?P<prefix>[kMG])bit/s\s*")
_DAY_PATTERN = rf"({'|'.join(_DAYS)})"
_TIME_PATTERN = r"[0-9]{1,2}(:[0-9]{2})?"
_SPANS_OF_DAYS = rf"{_DAY_PATTERN}(-{_DAY_PATTERN})?(,\s*{_DAY_PATTERN}(-{_DAY_PATTERN})?)*"
_SPANS_OF_TIME = rf"{_TIME_PATTERN}-{_TIME_PATTERN}(,\s*{_TIME_PATTERN}-{_TIME_PATTERN})*"
_HOURS_PATTERN = rf"^({_SPANS_OF_DAYS}|{_SPANS_OF_TIME}|{_SPANS_OF_DAYS}\s+{_SPANS_OF_TIME})$"
_HOURS = re.compile(_HOURS_PATTERN)
_SPAN_OF_TIME = re.compile(r"(?P<first>[0-9:]+)-(?P<last>[0-9:]+)")


@dataclass(frozen=True, slots=True)
class Hours:
    """Some hours of the week, by the clock on the wall."""

    text: str
    """As in the configuration: ``Mo-Fr 8-18``."""
    spans: tuple[tuple[int, int], ...]
    """Minutes since Monday, 0:00. A span may go on into the next week; its end is not part of it."""

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Read days, times of day, or both: ``Sa,Su``, ``22-6``, ``Mo-Fr 8:30-12, 13-18``.

        A span over midnight belongs to the day on which it begins.

        Raises:
            ValueError: it means nothing.
        """
        if not _HOURS.fullmatch(text):
            raise ValueError(text)
        begins_with_days = text[0].isalpha()
        days, times = re.fullmatch(r"([^0-9]*)(.*)", text).groups()  # type: ignore[union-attr]
        chosen = dict.fromkeys(_days_of(days)) if begins_with_days else range(7)
        spans = list(_times_of(times)) if times else [(0, _DAY)]
        return cls(
            text, tuple((day * _DAY + first, day * _DAY + last) for day in chosen for first, last in spans)
        )

    def include(self, moment: datetime) -> bool:
        """Whether a moment is one of them.

        Args:
            moment: local time.
        """
        minute = moment.weekday() * _DAY + moment.hour * 60 + moment.minute
        return any(first <= minute < last or first <= minute + _WEEK < last for first, last in self.spans)


def _days_of(text: str) -> Iterator[int]:
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        yield from (day % 7 for day in range(begin, end + 1 if end >= begin else end + 8))


def _times_of(text: str) -> Iterator[tuple[int, int]]:
    for span in _SPAN_OF_TIME.finditer(text):
        first, last = _minute(span["first"]), _minute(span["last"])
        if first in (last, _DAY):
            raise ValueError(text)
        yield first, last if last > first else last + _DAY


def _minute(text: str) -> int:
    hour, _, minute = text.partition(":")
    minutes = int(hour) * 60 + int(minute or 0)
    if int(minute or 0) > 59 or minutes > _DAY:
        raise ValueError(text)
    return minutes


def _bytes_per_second(text: str) -> int:
    if bits := _BITS.fullmatch(text):
        return int(float(bits["number"]) * 1000 ** ("kMG".index(bits["prefix"]) + 1) / 8)
    return SIZE.parse(text.strip().removesuffix("s").removesuffix("/").strip())


def write_rate(rate: int) -> str:
    """Bytes per second in the largest unit of which it is a whole number: ``500kB/s``."""
    size, unit = next((size, unit) for size, unit in _UNITS if rate % size == 0)
    return f"{rate // size}{unit}/s"


RATE = Quantity(
    pattern=r"^\s*[0-9]{1,18}(\.[0-9]{1,9})?\s*(([kKmMgG][iI]?)?[bB]?/s|[kMG]bit/s)\s*$",
    expected="a rate such as 2MB/s",
    read=_bytes_per_second,
    write=write_rate,
    number=SIZE.number,
)
"""Bytes per second: a size per second, or ``kbit/s``, ``Mbit/s``, ``Gbit/s``; a number alone is bytes."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The most bytes per second, for each hour of the week. None means no limit."""

    default: int | None = None
    by_hours: tuple[tuple[Hours, int | None], ...] = ()
    """The first that include a moment count."""

    def at(self, moment: datetime) -> int | None:
        """The rate at a moment.

        Args:
            moment: local time. By the clock on the wall: hours that a change to or from summer time skips
                or repeats are skipped or repeated.
        """
        return next((rate for hours, rate in self.by_hours if hours.include(moment)), self.default)

    @classmethod
    def parse(cls, value: object) -> Rates:
        """Read a rate, or a mapping from hours to rates.

        Raises:
            ValueError: it is something else; the text says what was expected in which entry.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not value:
            return cls(_rate(value))
        by_hours = tuple((_hours(key), _rate_for(key, rate)) for key, rate in value.items() if key != DEFAULT)
        return cls(_rate_for(DEFAULT, value.get(DEFAULT)), by_hours)

    def write(self) -> Plain:
        """The form in which `parse` reads it."""
        default = None if self.default is None else write_rate(self.default)
        if not self.by_hours:
            return default
        rates = {hours.text: None if rate is None else write_rate(rate) for hours, rate in self.by_hours}
        return {**rates, DEFAULT: default}

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        writing = core_schema.plain_serializer_function_ser_schema(cls.write, when_used="json")
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=writing)

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> JsonSchemaValue:
        rate = {
            "anyOf": [{"type": "integer", "minimum": LEAST_RATE}, {"type": "string", "pattern": RATE.pattern}]
        }
        entry = {"anyOf": [*rate["anyOf"], {"type": "null"}]}
        by_hours = {
            "type": "object",
            "properties": {DEFAULT: entry},
            "patternProperties": {_HOURS_PATTERN: entry},
            "additionalProperties": False,
            "minProperties": 1,
        }
        return {"anyOf": [*rate["anyOf"], by_hours]}


def _hours(key: object) -> Hours:
    try:
        return Hours.parse(key if isinstance(key, str) else "")
    except ValueError:
        raise _mistake(
            f"hours such as Mo-Fr 8-18 or 22:30-6, or {DEFAULT}, instead of {_shown(key)}"
        ) from None


def _rate_for(key: object, value: object) -> int | None:
    try:
        return None if value is None else _rate(value)
    except ValueError:
        raise _mistake(f"a rate such as 2MB/s, at least 16KiB/s, or null, for {_shown(key)}") from None


def _rate(value: object) -> int:
    rate = RATE.parse(value)
    if rate < LEAST_RATE:
        raise ValueError("too slow")
    return rate


def _shown(key: object) -> str:
    return key if isinstance(key, str) and key.isprintable() and 0 < len(key) < 40 else "one of the keys"


def _mistake(expected: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", "{expected}", {"expected": expected})
