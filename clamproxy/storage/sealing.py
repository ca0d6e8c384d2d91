"""Sealed texts: a flipped bit in one is noticed.

SQLite notices damage of its own structures at most; in a text, a flipped bit makes another text. So
each carries a checksum over itself and its key.
"""

from __future__ import annotations

import zlib

_MARK = "~"
"""Begins a sealed text. No JSON does, nor with any one bit of it flipped: earlier versions didn't seal."""


def seal(key: str, text: str) -> str:
    """The text with its checksum."""
    return f"{_MARK}{checksum(key, text)} {text}"


def unseal(key: str, stored: str) -> str | None:
    """The inverse of `seal`; None if a bit of key or text has changed. An unsealed text is taken as it is."""
    if not stored.startswith(_MARK):
        return stored
    found, _, text = stored.removeprefix(_MARK).partition(" ")
    return text if found == checksum(key, text) else None


def checksum(*texts: str) -> str:
    """Eight hexadecimal digits."""
    return f"{zlib.crc32(' '.join(texts).encode(errors='replace')):08x}"
