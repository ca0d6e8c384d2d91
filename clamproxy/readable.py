"""For people: sizes, times, spans, counts and users in the same form wherever they are shown."""

from __future__ import annotations

import pwd
import time
from pathlib import Path

_SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def shown_size(value: float) -> str:
    """A number of bytes as ``512 B`` or ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def shown_share(value: float | None) -> str:
    """A share from 0 to 1 as ``97.4%``, and as 100% only if it is exactly 1; ``-`` for None."""
    if value is None:
        return "-"
    return f"{value:.0%}" if value in (0, 1) else f"{min(value * 100, 99.9):.1f}%"


def shown_time(seconds: float | None, *, exact: bool = False) -> str:
    """A moment in this machine's time zone as ``2026-11-22 08:05``.

    Args:
        seconds: Unix time; ``-`` is shown for None.
        exact: whether to show the seconds as well.
    """
    form = "%Y-%m-%d %H:%M:%S" if exact else "%Y-%m-%d %H:%M"
    try:
        return "-" if seconds is None else time.strftime(form, time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # out of range
        return "?"


def shown_span(seconds: float) -> str:
    """A span of time in the largest unit of which there are two: ``2 d``, ``90 min``; or ``a moment``."""
    seconds = round(seconds)
    for length, unit in _SPANS:
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return "1 s" if seconds == 1 else "a moment"


def shown_count(number: int, noun: str) -> str:
    """A number of things as ``1 file`` or ``2,000 files``.

    Args:
        noun: the singular; the plural must end in s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str, length: int) -> str:
    """A foreign text as one line of harmless characters.

    Args:
        length: characters at most.
    """
    line = " ".join(text[: 4 * length].split())
    return shortened("".join(one if one.isprintable() else "?" for one in line), length)


def plain(text: str) -> str:
    """A text without anything that moves the cursor; people, servers, clients or a bad disk wrote it."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def shortened(text: str, length: int) -> str:
    """A text shortened, if necessary, at the end of a word if there is one.

    Args:
        length: characters to show at most, including the sign that there were more.
    """
    if len(text) <= length:
        return text
    cut = text[: length - 2]
    return f"{cut.rpartition(' ')[0] or cut} …".replace(", …", " …")


def shown_user(uid: int) -> str:
    """The name of a user of this machine, or the number if it has none, for example in a container."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def shown_error(error: OSError) -> str:
    """A system error in one line, with the file that it is about."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if isinstance(error.filename, (str, Path)) else reason
