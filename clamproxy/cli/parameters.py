"""Values on the command line: callbacks for click's options, and what they parse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import click

from clamproxy.config.quantities import DURATION
from clamproxy.setup.freshclam_lines import DEFAULT_PORT

type Callback[T] = Callable[[click.Context, click.Parameter, Any], T | None]

_GATEWAY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\s/@]+))(?::([0-9]{1,5}))?")


def parsed_by[T](parse: Callable[[Any], T]) -> Callback[T]:
    """A callback that passes the value through a parser; None if the option isn't given.

    Args:
        parse: raises a ValueError whose text says what was expected.
    """

    def callback(_: click.Context, option: click.Parameter, value: Any) -> T | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(f"expected {error}", param=option) from None

    return callback


def duration(
    expected: str, *, shortest: float = 0.0, longest: float = math.inf, in_seconds: bool = False
) -> Callback[float]:
    """A callback that parses a duration, written as in proxy.yaml, into seconds.

    Args:
        expected: shown for a wrong value: an example, and the limits if there are any.
        shortest: in seconds.
        longest: in seconds.
        in_seconds: whether a plain number means seconds, as in proxy.yaml. A user who writes --stale 2
            means days.
    """

    def parse(text: object) -> float:
        try:
            seconds = DURATION.parse(text)
        except ValueError:
            raise ValueError(expected) from None
        if seconds and not in_seconds and re.fullmatch(r"\s*[0-9.]+\s*", str(text)):
            raise ValueError(f"{expected}: {text} has no unit")
        if not shortest <= seconds <= longest:
            raise ValueError(expected)
        return seconds

    return parsed_by(parse)


def parse_gateway(text: str) -> tuple[str, int]:
    """Parse ``gw``, ``gw:8080``, ``192.0.2.1:8080`` or ``[2001:db8::1]:8080``.

    Raises:
        ValueError: it isn't a host with or without a port; the text says what was expected.
    """
    match = _GATEWAY.fullmatch(text)
    port = int(match[3] or DEFAULT_PORT) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise ValueError("HOST or HOST:PORT")
    return match[1] or match[2], port
