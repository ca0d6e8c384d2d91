"""The log on stdout: lines of text for people, or one JSON object per line for programs.

mitmproxy prints each record itself, as text, and ends the process when nobody reads its stdout any more.
This module replaces its handler.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import IO, Any

from mitmproxy.addons.termlog import TermLogHandler
from mitmproxy.contrib import click as miniclick
from mitmproxy.log import ALERT, LOG_COLORS, LegacyLogEvents
from mitmproxy.utils import human

from clamproxy.front.access_log import FIELDS, Entry, take_directly
from clamproxy.front.access_log import logger as access_log
from clamproxy.proxy.portions import encodable, next_portion, takes_more

logger = logging.getLogger(__name__)

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""All control characters except the newline, Unicode's other line ends, and lone surrogates."""
_DATE_LENGTH = len("2026-11-27T08:21:38")
_CONTINUED = "\n    "
PATIENCE = 0.01
"""Seconds that a request's line waits at most before it is written."""
PATIENCE_WITH_READER = 0.25
"""Seconds until the next try while the reader of the log has stopped reading."""
LAST_PATIENCE = 2.0
"""Seconds that the end of the process waits for it."""
MOST_WAITING = 10_000
"""Lines that wait for such a reader, some 2 MB. Later ones are lost."""
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_ENCODER = json.JSONEncoder(allow_nan=False, default=str)
_PARENT = logging.getLogger("clamproxy")
_LONGEST = 400
"""Characters of one of mitmproxy's messages."""
_SCRIPT_LOADER = "mitmproxy.addons.script"

type _ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def use_format(name: str) -> None:
    """Print the log in this format from now on. May be called again, with the same or another format.

    Where mitmproxy prints no log (in its console, for example), nothing is printed here either.

    Args:
        name: ``text`` or ``json``, as in ``log.format``.
    """
    root = logging.getLogger()
    output = _installed()
    if output is None:
        replaced = next((one for one in root.handlers if isinstance(one, TermLogHandler)), None)
        if replaced is None:
            return
        output = LineHandler(replaced)
        root.addHandler(output)
        root.removeHandler(replaced)
        take_directly(output.take)
    output.setFormatter(JsonFormatter() if name == "json" else output.text_formatter())


def add_filter(passes: Callable[[logging.LogRecord], bool | logging.LogRecord]) -> None:
    """Print only the records that pass, or what the filter gives instead of them.

    The lines of requests that come as entries always pass.
    """
    if (output := _installed()) is not None:
        output.addFilter(passes)


def before_start() -> None:
    """Suppress the only line that mitmproxy prints before the addon can call `use_format`."""
    logging.getLogger(_SCRIPT_LOADER).setLevel(logging.WARNING)


def _installed() -> LineHandler | None:
    return next((one for one in logging.getLogger().handlers if isinstance(one, LineHandler)), None)


class LineHandler(logging.Handler):
    """Writes records. If nobody reads the log, it goes nowhere and the proxy carries on.

    A reader may also have stopped for a while: a terminal after Ctrl-S, a full pipe to a hung program. A
    write would hold up the event loop as long, so the lines wait in memory.

    Requests wait a moment for others and are written together: there can be thousands, and each write
    would cost as much as a response. Any other record is written at once, after those that wait. That
    keeps the order, and if the process is killed, only the last moment's requests are lost.

    Args:
        replaced: mitmproxy's handler; this one writes to the same file. The option ``termlog_verbosity``
            still sets its level.
    """

    def __init__(self, replaced: TermLogHandler) -> None:
        super().__init__()
        self.replaced = replaced
        self._file: IO[str] = replaced.file
        self._waiting: deque[str] = deque()
        """Lines with their ends. Of the first one, the beginning may have been written."""
        self._lock = threading.Lock()
        self._lost = 0
        """Lines that could not wait any more for a reader that has stopped reading."""
        self._writes_in: asyncio.AbstractEventLoop | None = None
        """The loop that will write the waiting lines."""
        self._is_alone = False
        """Whether no other handler takes requests. Checked at each write."""

    def text_formatter(self) -> logging.Formatter:
        """The text formatter for the place where the lines go."""
        if _is_journal(self._file):
            return JournalFormatter()
        return TextFormatter(colorize=self.replaced.has_vt_codes)

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """Apply mitmproxy's level, which may change at any time."""
        return record.levelno >= self.replaced.level and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, whatever happens."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._add(line)
        if hasattr(record, FIELDS) and record.levelno < logging.WARNING:
            self._write_soon()
        else:
            self.flush()

    def take(self, entry: Entry) -> bool:
        """Write a request's line; False if it has to come as a record because other handlers want it too."""
        if not self._is_alone or not isinstance(self.formatter, RequestFormatter):
            return False
        try:
            line = self.formatter.format_request(entry)
        except Exception:
            return False  # it will fail again as a record, and is reported then
        self._add(line)
        self._write_soon()
        return True

    def _add(self, line: str) -> None:
        line = encodable(f"{line}\n", self._file)
        with self._lock:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(line)
            else:
                self._lost += 1

    def _write_soon(self, patience: float = PATIENCE) -> None:
        loop = _running_loop()
        if loop is None:
            self.flush()
        elif self._writes_in is not loop:
            self._writes_in = loop
            loop.call_later(patience, self._write_now)

    def _write_now(self) -> None:
        self._writes_in = None
        self.flush()

    def flush(self) -> None:
        """Write the waiting lines, as far as the reader takes them."""
        self.acquire()
        try:
            self._is_alone = self._looks_alone()
            while self._waiting and takes_more(self._file):
                with self._lock:
                    portion = next_portion(self._waiting, self._file)
                self._write(portion)
            if self._waiting:
                self._wait_for_reader()
            elif self._lost:
                lost, self._lost = self._lost, 0
                logger.warning("Nobody read the log for a while: %d lines are missing here.", lost)
        finally:
            self.release()

    def close(self) -> None:
        """Write the last lines, at the end of the process; a reader that is slow gets a moment for them."""
        end = time.monotonic() + LAST_PATIENCE
        while self._waiting and takes_more(self._file, max(0.0, end - time.monotonic())):
            self.flush()
        super().close()

    def _wait_for_reader(self) -> None:
        if _running_loop() is not None:
            self._write_soon(PATIENCE_WITH_READER)

    def _looks_alone(self) -> bool:
        """Whether no other handler takes requests. mitmproxy's `LegacyLogEvents` don't: see `OwnOptions`."""
        handlers = [*access_log.handlers, *_PARENT.handlers, *logging.getLogger().handlers]
        others = [one for one in handlers if one is not self and not isinstance(one, LegacyLogEvents)]
        return self.replaced.level <= logging.INFO and all(one.level > logging.INFO for one in others)

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except BrokenPipeError:
            _go_on_without_reader(self._file)
        except (OSError, ValueError):
            pass  # a full disk or a closed file: these lines are lost, but later ones may not be


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """This thread's event loop, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _go_on_without_reader(file: IO[str]) -> None:
    """Discard everything printed from here on, including what is buffered and what others print."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
    with suppress(OSError, ValueError):
        sys.stderr.write("clamproxy: nobody reads the standard output any more: no log from here on.\n")
        sys.stderr.flush()


class RequestFormatter(logging.Formatter):
    """Also formats requests that aren't records."""

    @abstractmethod
    def format_request(self, entry: Entry) -> str:
        """Returns what `format` returns for the record of this request."""


class TextFormatter(RequestFormatter):
    """Date, level and message. No message can look like a second line, or move the cursor."""

    def __init__(self, *, colorize: bool = False) -> None:
        super().__init__()
        self._colorize = colorize

    def format(self, record: logging.LogRecord) -> str:
        """One line; further ones, such as a traceback's, are indented."""
        message = self.message_of(record)
        color = LOG_COLORS.get(record.levelno) if self._colorize else None
        if color is not None:
            message = miniclick.style(message, fg=color)
        return f"{_local_time(record.created)} {_level(record)} {message}"

    def format_request(self, entry: Entry) -> str:
        return f"{_local_time(entry.at)} info {_indented(str(entry))}"

    def message_of(self, record: logging.LogRecord) -> str:
        """The message with its client and traceback."""
        message = _indented(_message_of(record))
        if client := getattr(record, "client", None):
            message = f"{human.format_address(client)}: {message}"
        if record.exc_info:
            message += _CONTINUED + _indented(self.formatException(record.exc_info))
        return message


class JournalFormatter(TextFormatter):
    """For systemd's journal, which adds the date itself and takes the level from <N> (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """One journal entry per line, each with the level."""
        prefix = f"<{_PRIORITIES.get(_level(record), 6)}>"
        return "\n".join(f"{prefix}{line}" for line in self.message_of(record).split("\n"))

    def format_request(self, entry: Entry) -> str:
        return f"<{_PRIORITIES['info']}>{_indented(str(entry))}"


class JsonFormatter(RequestFormatter):
    """One JSON object per record, in ASCII without control characters."""

    def format_request(self, entry: Entry) -> str:
        """The object; keys without a value are null."""
        return _encode({"time": _time(entry.at), "level": "info", "event": "request", **entry.fields()})

    def format(self, record: logging.LogRecord) -> str:
        """The object; keys without a value are null in requests, and left out elsewhere."""
        fields = getattr(record, FIELDS, None)
        entry: dict[str, Any] = {"time": _time(record.created), "level": _level(record)}
        if fields is not None:
            entry |= {"event": "request", **fields()}
        else:
            entry |= {"logger": record.name, "message": _message_of(record)}
            if client := getattr(record, "client", None):
                entry["client"] = human.format_address(client)
            if record.exc_info:
                entry["exception"] = self.formatException(record.exc_info)
        return _encode(entry)


def _message_of(record: logging.LogRecord) -> str:
    """The message. mitmproxy's may contain all that a client has sent, and are cut off."""
    message = record.getMessage()
    is_long = len(message) > _LONGEST and record.name.startswith("mitmproxy")
    return f"{message[:_LONGEST]}..." if is_long else message


def _encode(entry: dict[str, Any]) -> str:
    text = _ENCODER.encode(entry)
    if "\\ud" in text:
        # Lone surrogates aren't characters: strict readers reject the whole line.
        text = _ENCODER.encode({key: _sound(value) for key, value in entry.items()})
    return text.replace("\x7f", "\\u007f")


def _level(record: logging.LogRecord) -> str:
    return "info" if record.levelno == ALERT else record.levelname.lower()


def _local_time(seconds: float) -> str:
    """RFC 3339, with milliseconds and the local time zone's offset."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    date, offset = _local_second(whole)
    return f"{date}.{milliseconds:03}{offset}"


@lru_cache(4)  # thousands of lines share a second
def _local_second(seconds: int) -> tuple[str, str]:
    """The date and time, and the offset."""
    text = datetime.fromtimestamp(seconds, UTC).astimezone().isoformat()
    return text[:_DATE_LENGTH], text[_DATE_LENGTH:]


def _is_journal(file: IO[str]) -> bool:
    """Whether the lines go to systemd's journal (JOURNAL_STREAM, systemd.exec(5))."""
    with suppress(OSError, ValueError):
        status = os.fstat(file.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def _time(seconds: float) -> str:
    """RFC 3339, in UTC, with milliseconds."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{_utc_second(whole)}.{milliseconds:03}Z"


@lru_cache(4)
def _utc_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:_DATE_LENGTH]


def _sound(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _indented(text: str) -> str:
    if text.isprintable():
        return text
    return _CONTROL.sub(_escape, text).replace("\n", _CONTINUED)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
