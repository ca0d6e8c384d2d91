"""The log on stdout: lines of text for people, or one JSON object a line for programs.

mitmproxy prints each record itself, as text, and ends the process when nobody reads its stdout any
more. What is installed here takes the place of that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import threading
from abc import abstractmethod
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

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""All control characters but the newline, the other line ends of Unicode, and lone surrogates."""
_DATE_LENGTH = len("2026-11-27T08:21:38")
_CONTINUED = "\n    "
PATIENCE = 0.01
"""Seconds that a request's line waits at most before it is written."""
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_ENCODER = json.JSONEncoder(allow_nan=False, default=str)
_PARENT = logging.getLogger("clamproxy")
_SCRIPT_LOADER = "mitmproxy.addons.script"

type _ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def use_format(name: str) -> None:
    """Print the log in this format from now on. May be called again, with the same or another one.

    Where mitmproxy prints no log (its console, say), nothing is printed here, either.

    Args:
        name: ``text`` or ``json``, as ``log.format`` has it.
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


def before_start() -> None:
    """Keep back the only line that mitmproxy prints before the addon is there to call `use_format`."""
    logging.getLogger(_SCRIPT_LOADER).setLevel(logging.WARNING)


def _installed() -> LineHandler | None:
    return next((one for one in logging.getLogger().handlers if isinstance(one, LineHandler)), None)


class LineHandler(logging.Handler):
    """Writes records. Without a reader the log goes nowhere, and the proxy goes on.

    Requests wait a moment for others, and are written together; they come by thousands, and each write
    would cost as much as an answer. Any other record is written at once, after those that wait. So the
    order stays, and no more is lost than the last moment's requests, if the process is killed.
    """

    def __init__(self, replaced: TermLogHandler) -> None:
        """Write where mitmproxy's handler did.

        Args:
            replaced: that handler; the option ``termlog_verbosity`` goes on setting its level.
        """
        super().__init__()
        self.replaced = replaced
        self._file: IO[str] = replaced.file
        self._waiting: list[str] = []
        self._lock = threading.Lock()
        self._writes_in: asyncio.AbstractEventLoop | None = None
        """The loop that will write what waits."""
        self._is_alone = False
        """Whether no other handler takes requests. Looked up at each write."""

    def text_formatter(self) -> logging.Formatter:
        """What fits where the lines go."""
        if _is_journal(self._file):
            return JournalFormatter()
        return TextFormatter(colorize=self.replaced.has_vt_codes)

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """By mitmproxy's level, which may change at any time."""
        return record.levelno >= self.replaced.level and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, whatever happens."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._lock:
            self._waiting.append(line)
        if hasattr(record, FIELDS) and record.levelno < logging.WARNING:
            self._write_soon()
        else:
            self.flush()

    def take(self, entry: Entry) -> bool:
        """Write the line of a request; False if it has to come as a record, as others want it, too."""
        if not self._is_alone or not isinstance(self.formatter, RequestFormatter):
            return False
        try:
            line = self.formatter.format_request(entry)
        except Exception:
            return False  # it fails again as a record, and is reported
        with self._lock:
            self._waiting.append(line)
        self._write_soon()
        return True

    def _write_soon(self) -> None:
        loop = _running_loop()
        if loop is None:
            self.flush()
        elif self._writes_in is not loop:
            self._writes_in = loop
            loop.call_later(PATIENCE, self.flush)

    def flush(self) -> None:
        """Write what waits. Called by logging at the end of the process, too."""
        self.acquire()
        try:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            text = "".join(f"{line}\n" for line in waiting)
            self._writes_in = None
            self._is_alone = self._looks_alone()
            if text:
                self._write(text)
        except UnicodeEncodeError:  # a locale without UTF-8
            self._write(text.encode("ascii", "backslashreplace").decode())
        finally:
            self.release()

    def _looks_alone(self) -> bool:
        """Whether no other handler takes requests. mitmproxy's `LegacyLogEvents` don't: see `OwnOptions`."""
        handlers = [*access_log.handlers, *_PARENT.handlers, *logging.getLogger().handlers]
        others = [one for one in handlers if one is not self and not isinstance(one, LegacyLogEvents)]
        return self.replaced.level <= logging.INFO and all(one.level > logging.INFO for one in others)

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except UnicodeEncodeError:
            raise
        except BrokenPipeError:
            _go_on_without_reader(self._file)
        except (OSError, ValueError):
            pass  # a full disk, or a closed file: this is lost, a later line may not be


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """That of this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _go_on_without_reader(file: IO[str]) -> None:
    """Have all that is still to be printed vanish, what is in buffers and what others print included."""
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
        """What `format` makes of the record of a request."""


class TextFormatter(RequestFormatter):
    """Date, level and message; no message can look like a second line, or move the cursor."""

    def __init__(self, *, colorize: bool = False) -> None:
        """Format for a file, or in colours for a terminal."""
        super().__init__()
        self._colorize = colorize

    def format(self, record: logging.LogRecord) -> str:
        """One line; further ones, such as those of a traceback, are indented."""
        message = self.message_of(record)
        color = LOG_COLORS.get(record.levelno) if self._colorize else None
        if color is not None:
            message = miniclick.style(message, fg=color)
        return f"{_local_time(record.created)} {_level(record)} {message}"

    def format_request(self, entry: Entry) -> str:
        """One line."""
        return f"{_local_time(entry.at)} info {_indented(str(entry))}"

    def message_of(self, record: logging.LogRecord) -> str:
        """The message with its client and traceback."""
        message = _indented(record.getMessage())
        if client := getattr(record, "client", None):
            message = f"{human.format_address(client)}: {message}"
        if record.exc_info:
            message += _CONTINUED + _indented(self.formatException(record.exc_info))
        return message


class JournalFormatter(TextFormatter):
    """The same for systemd's journal, which has a date itself and takes the level from <N> (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """One entry for each line, which all have the level."""
        prefix = f"<{_PRIORITIES.get(_level(record), 6)}>"
        return "\n".join(f"{prefix}{line}" for line in self.message_of(record).split("\n"))

    def format_request(self, entry: Entry) -> str:
        """One entry."""
        return f"<{_PRIORITIES['info']}>{_indented(str(entry))}"


class JsonFormatter(RequestFormatter):
    """One JSON object for each record, in ASCII without control characters."""

    def format_request(self, entry: Entry) -> str:
        """The object; keys that tell nothing are null."""
        return _encode({"time": _time(entry.at), "level": "info", "event": "request", **entry.fields()})

    def format(self, record: logging.LogRecord) -> str:
        """The object; keys that tell nothing are null in requests, and absent elsewhere."""
        fields = getattr(record, FIELDS, None)
        entry: dict[str, Any] = {"time": _time(record.created), "level": _level(record)}
        if fields is not None:
            entry |= {"event": "request", **fields()}
        else:
            entry |= {"logger": record.name, "message": record.getMessage()}
            if client := getattr(record, "client", None):
                entry["client"] = human.format_address(client)
            if record.exc_info:
                entry["exception"] = self.formatException(record.exc_info)
        return _encode(entry)


def _encode(entry: dict[str, Any]) -> str:
    text = _ENCODER.encode(entry)
    if "\\ud" in text:
        # Lone surrogates are no characters: strict readers refuse the whole line.
        text = _ENCODER.encode({key: _sound(value) for key, value in entry.items()})
    return text.replace("\x7f", "\\u007f")


def _level(record: logging.LogRecord) -> str:
    return "info" if record.levelno == ALERT else record.levelname.lower()


def _local_time(seconds: float) -> str:
    """RFC 3339, with milliseconds and the offset of the local time zone."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    date, offset = _local_second(whole)
    return f"{date}.{milliseconds:03}{offset}"


@lru_cache(4)  # thousands of lines have the same second
def _local_second(seconds: int) -> tuple[str, str]:
    """The date with its time, and the offset."""
    text = datetime.fromtimestamp(seconds, UTC).astimezone().isoformat()
    return text[:_DATE_LENGTH], text[_DATE_LENGTH:]


def _is_journal(file: IO[str]) -> bool:
    """Whether lines go to systemd's journal (JOURNAL_STREAM, systemd.exec(5))."""
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
