"""Sealed texts, in which a flipped bit is noticed.

SQLite at most notices damage to its own structures; a flipped bit in a text just makes another text. So
each text carries a checksum over itself and its key.
"""

from __future__ import annotations

import zlib

_MARK = "~"
"""The first character of a sealed text. No JSON starts with it, even with one bit flipped; earlier versions
stored plain JSON."""


def seal(key: str, text: str) -> str:
    """The text with its checksum."""
    return f"{_MARK}{checksum(key, text)} {text}"


def unseal(key: str, stored: str) -> str | None:
    """The inverse of `seal`; None if a bit of key or text has changed. Unsealed text is returned as is."""
    if not stored.startswith(_MARK):
        return stored
    found, _, text = stored.removeprefix(_MARK).partition(" ")
    return text if found == checksum(key, text) else None


def checksum(*texts: str) -> str:
    """A CRC-32 of the texts as eight hexadecimal digits."""
    return f"{zlib.crc32(' '.join(texts).encode(errors='replace')):08x}"
