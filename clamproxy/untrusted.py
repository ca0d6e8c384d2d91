"""What anybody may have written."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

_HALF = re.compile(r"\\u[Dd][89A-Fa-f]|[\ud800-\udfff]")
"""Perhaps half a character; two of them may well be one."""
_LEAST, _MOST = -(2**63), 2**64
"""Larger numbers are nobody's, and would fail wherever a float is made of them."""


def parse_json(content: bytes | str) -> Any:
    """A JSON value of any kind; None for anything else.

    What is nested too deeply, or has NaN or a number that no float holds, is something else, too. Halves of
    characters become question marks, because they can't be written anywhere.

    Args:
        content: bytes are UTF-8.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = _DECODER.decode(text)
        if _HALF.search(text) is not None:
            value = _DECODER.decode(json.dumps(value, ensure_ascii=False).encode(errors="replace").decode())
    except (RecursionError, ValueError):
        return None
    return value


def parse_first_json(text: str) -> Any:
    """The same for a value that something else may follow."""
    try:
        return parse_json(text[: _DECODER.raw_decode(text)[1]])
    except (RecursionError, ValueError):
        return None


def _whole(digits: str) -> int:
    number = int(digits)
    if not _LEAST <= number < _MOST:
        raise ValueError("too large a number")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError("too large a number, or none")
    return number


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_finite)
