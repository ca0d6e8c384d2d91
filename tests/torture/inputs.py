"""Bytes for parsers: seeds that are changed, and what has felled parsers elsewhere."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

HOSTILE: Final = (
    b"",
    b"\0",
    b"\n" * 5000,
    b"\xff" * 600,
    b" " * 70_000,
    b"9" * 5000,
    b"-" * 5000,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"{a: " * 5000,
    b"- " * 5000 + b"x",
    b"\xef\xbb\xbf{}",
    "\ud800\udfff".encode("utf-8", "surrogatepass"),
    b'"\\ud800"',
    b"NaN",
    b"1e999",
    b"," * 50_000,
    b":" * 50_000,
    b'"' * 50_000,
    b"%00%0a%0d" * 1000,
    b"bytes=" + b"0-1," * 20_000,
    b"A: b\r\n" * 5000 + b"\r\n",
)
"""Each parser gets all of them."""

TOKENS: Final = (
    *(
        b"\0",
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"=",
        b'"',
        b"%",
        b"..",
        b"/",
        b"\\",
        b"@",
    ),
    *(b"[::1]", b"::ffff:1.2.3.4", b"%eth0", b"http://", b"bytes=", b"-1", b"0", b"65536", b"2147483648"),
    *(
        b"4294967296",
        b"18446744073709551616",
        b"9" * 400,
        b"9" * 5000,
        b"1e999",
        b"NaN",
        b"Infinity",
        b"null",
    ),
    *(b"\xc2\xb2", b"\xd9\xa3", b"\xed\xa0\x80", b"\xff\xfe", b"\x1f\x8b\x08\x00", b"A" * 300, b"[" * 3000),
    *(
        b"\\ud800",
        b"{",
        b"}",
        b"[",
        b"]",
        b"*",
        b"&a",
        b"!!int ",
        b"<<: ",
        b"../../etc/passwd",
        b"daily.",
        b"-0",
    ),
)
BETWEEN: Final = (
    *(
        b"\n",
        b"\n ",
        b"X: y\r\n",
        b" ",
        b"\t",
        b",",
        b";",
        b":",
        b"=",
        b"&",
        b"|",
        b".",
        b"/",
        b"\\",
        b'"',
        b"%41",
    ),
    *(b"[", b"{", b"- ", b"a", b"0", b"\0", b"\xff"),
)
"""What stands between things, or begins one: many of them make long lists, or deep ones."""
_VALUES: Final[tuple[Any, ...]] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**53,
        2**63,
        2**64,
        10**25,
        10**400,
        -(10**400),
        0.5,
        -0.0,
        1e300,
        -1e300,
    ),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "x",
        "NaN",
        "-Infinity",
        "1e999",
        "\0",
        "\ud800",
        "\u202e",
        "A" * 5000,
        "٣",
        "../x",
        "/x",
    ),
    *([], {}, [[]], {"": {}}, [None] * 300),
)
"""What can be in the place of any value within JSON."""
_MOST_CHANGES: Final = 4


def mutated(seed: bytes, random: random.Random) -> bytes:
    """A seed with a few changes; with other values, if it is JSON."""
    if seed[:1] in b"{[" and random.random() < 0.7:
        try:
            values = json.loads(seed)
        except ValueError:
            pass
        else:
            for _ in range(random.randint(1, _MOST_CHANGES)):
                values = _with_another_value(values, random)
            return json.dumps(values).encode()
    for _ in range(random.randint(1, _MOST_CHANGES)):
        seed = random.choice(_CHANGES)(seed, random)
    return seed


def _with_another_value(value: Any, random: random.Random) -> Any:
    """A JSON value in which something is replaced, removed or added."""
    if not value or not isinstance(value, dict | list) or random.random() < 0.15:
        return random.choice(_VALUES)
    if isinstance(value, list):
        place = random.randrange(len(value))
        return [*value[:place], _with_another_value(value[place], random), *value[place + 1 :]]
    name = random.choice([*value])
    if random.random() < 0.1:
        return {key: one for key, one in value.items() if key != name}
    if random.random() < 0.1:
        return {**value, str(random.choice(_VALUES)): value[name]}
    return {**value, name: _with_another_value(value[name], random)}


def _insert(data: bytes, random: random.Random) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + random.choice(TOKENS) + data[place:]


def _replace(data: bytes, random: random.Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + random.choice(TOKENS) + data[end:]


def _flip(data: bytes, random: random.Random) -> bytes:
    place = random.randrange(len(data) or 1)
    return data[:place] + bytes([random.randrange(256)]) + data[place + 1 :]


def _remove(data: bytes, random: random.Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: random.Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[start:end] * random.choice((2, 3, 50)) + data[end:]


def _cut(data: bytes, random: random.Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _span(data: bytes, random: random.Random) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 2, 8, 40)))


_CHANGES: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    _insert,
    _replace,
    _flip,
    _remove,
    _repeat,
    _cut,
)


def pumped_by_chance(seed: bytes, random: random.Random, sizes: tuple[int, int]) -> tuple[bytes, bytes]:
    """A seed in which one part is repeated, up to two sizes in bytes."""
    start, end = _span(seed, random)
    unit = random.choice((seed[start:end], *TOKENS)) or b"x"
    return pumped(seed[:start], unit, seed[end:], sizes)


def pumped(before: bytes, unit: bytes, after: bytes, sizes: tuple[int, int]) -> tuple[bytes, bytes]:
    """The unit again and again, up to two sizes in bytes, between what comes before and after it."""
    small, large = (before + unit * (size // len(unit)) + after for size in sizes)
    return small, large
