"""Writing the log without waiting for its reader: in portions that a pipe takes at once (pipe(7))."""

from __future__ import annotations

import os
import select
import stat
from collections import deque
from typing import IO

_PORTION = select.PIPE_BUF // 2
"""Bytes of lines that are joined. Up to PIPE_BUF are written at once."""
_LONGEST_CHARACTER = 4
"""Bytes, in UTF-8 and in every other encoding of a locale."""


def takes_more(file: IO[str], patience: float = 0.0) -> bool:
    """Whether a write of a portion returns at once. A pipe has room for PIPE_BUF then.

    Args:
        patience: seconds to wait for that.
    """
    try:
        poll = select.poll()
        poll.register(file.fileno(), select.POLLOUT)
        return bool(poll.poll(patience * 1000))
    except (OSError, ValueError):  # it is closed, or no file: the write will tell
        return True


def next_portion(lines: deque[str], file: IO[str]) -> str:
    """Take the next lines, each with its end, as many as no other worker's writes can come between.

    Of a line that is too long for that, as much as the file takes at once is taken; the rest stays.
    """
    first = lines.popleft()
    length = _size(first, file)
    if length > select.PIPE_BUF and not _is_regular(file):
        most = select.PIPE_BUF // (1 if first.isascii() else _LONGEST_CHARACTER)
        lines.appendleft(first[most:])
        return first[:most]
    portion = [first]
    while lines and (length := length + _size(lines[0], file)) <= _PORTION:
        portion.append(lines.popleft())
    return "".join(portion)


def encodable(text: str, file: IO[str]) -> str:
    """The text, or its escaped form where the locale has no UTF-8."""
    if not text.isascii():
        try:
            text.encode(_encoding(file))
        except UnicodeEncodeError:
            return text.encode("ascii", "backslashreplace").decode()
    return text


def _size(text: str, file: IO[str]) -> int:
    """Length in bytes. Nearly all lines are ASCII, where that costs nothing."""
    return len(text) if text.isascii() else len(text.encode(_encoding(file)))


def _encoding(file: IO[str]) -> str:
    return getattr(file, "encoding", None) or "utf-8"


def _is_regular(file: IO[str]) -> bool:
    """Whether it takes lines of any length, which then stay in one piece."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError):  # it is closed, or no file
        return True
