"""The access log: one record for each request, a line of text or the fields of a JSON object."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clamproxy.fleet.agent import parse_agent
from clamproxy.front.client_request import ClientRequest
from clamproxy.messages import Result
from clamproxy.objects import plain_path

logger = logging.getLogger("clamproxy.access")

FIELDS = "access"
"""The attribute of a record that gives its fields to `log_format`: a function, called on demand."""

_LONGEST = 200
_NAMES = (
    *("client", "method", "host", "path", "database", "version", "result"),
    *("status", "bytes", "duration", "agent", "uuid", "error"),
)
_TEMPLATE = vars(logger.makeRecord(logger.name, logging.INFO, "", 0, "", (), None))
_DATABASE = re.compile(r"/([a-z]{1,40})(?:-[0-9]+)?\.(?:cvd|cld|cdiff)(?:\.sign)?")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a request."""

    client: str
    """The client's IP address."""
    result: Result
    version: int | None
    """The version of the object that was served."""
    status: int
    """The status of the response; 0 if there was none."""
    length: int
    """Bytes of content that were sent."""
    seconds: float
    """Seconds from the request to the end of the response."""
    error: str = ""
    """Why the client didn't get what it asked for, or not the newest version, or not all of it."""


class Entry:
    """One request in the log. Its text and its fields are made only on demand."""

    __slots__ = ("_host", "_is_tunnel", "_outcome", "_path", "_request", "at")

    def __init__(self, request: ClientRequest, outcome: Outcome, *, hides_path: bool) -> None:
        self.at = time.time()
        """Unix seconds."""
        self._request, self._outcome = request, outcome
        self._is_tunnel = request.method == "CONNECT"
        self._host = f"{request.host}:{request.port}" if self._is_tunnel else request.host
        self._path = None if self._is_tunnel or hides_path else request.path.partition("?")[0]

    @property
    def _software(self) -> str:
        return (self._request.fields.get("user-agent") or "").partition(" ")[0]

    def __str__(self) -> str:
        """The line of text."""
        target = self._host if self._is_tunnel else self._path or f"{self._host}/..."
        sent = (self._request.method[:_LONGEST], target[:_LONGEST], self._software[:_LONGEST] or "-")
        line = self._line(*sent)
        return line if _is_printable(line) else self._line(*map(_printable, sent))

    def _line(self, method: str, target: str, software: str) -> str:
        outcome = self._outcome
        line = (
            f"{outcome.client} {method} {target} {outcome.version or '-'} {outcome.result} "
            f"{outcome.status} {outcome.length}B {outcome.seconds:.3f}s {software}"
        )
        return f"{line} ({_printable(outcome.error)})" if outcome.error else line

    def fields(self) -> dict[str, Any]:
        """The fields of the JSON object: all of `_NAMES`; unknown values are null."""
        request, outcome, path = self._request, self._outcome, self._path
        machine = parse_agent(request.fields.get("user-agent") or "")
        return {
            "client": outcome.client,
            "method": request.method[:_LONGEST],
            "host": self._host[:_LONGEST],
            "path": path and path[:_LONGEST],
            "database": _database_of(path),
            "version": outcome.version,
            "result": str(outcome.result),
            "status": outcome.status,
            "bytes": outcome.length,
            "duration": round(outcome.seconds, 6),
            "agent": self._software[:_LONGEST] or None,
            "uuid": machine.uuid if machine else None,
            "error": outcome.error[:_LONGEST] or None,
        }


type Taker = Callable[[Entry], bool]
_takers: list[Taker] = []
"""At most one."""


def log_request(request: ClientRequest, outcome: Outcome, *, hides_path: bool) -> None:
    """Write one record: client, what, version, result, status, bytes, duration, client software.

    Args:
        hides_path: whether the path may hold a secret: feeds carry their subscribers' keys in the query, some
            in the path. Queries are never logged.
    """
    entry = Entry(request, outcome, hides_path=hides_path)
    if logger.isEnabledFor(logging.INFO) and not (_takers and _takers[-1](entry)):
        logger.handle(_record_of(entry))


def take_directly(taker: Taker | None) -> None:
    """Offer entries to a function first: a record's way through logging costs as much as a response.

    Args:
        taker: returns whether it has taken the entry and no handler needs it. None: offer no more entries.
    """
    _takers[:] = [] if taker is None else [taker]


def _record_of(entry: Entry) -> logging.LogRecord:
    """A record as logging makes it, except for what it looks up each time: thread, task, line of code."""
    record = logging.LogRecord.__new__(logging.LogRecord)
    milliseconds = float(int(entry.at % 1 * 1000))
    own = {"msg": entry, "created": entry.at, "msecs": milliseconds, FIELDS: entry.fields}
    record.__dict__ = _TEMPLATE | own
    return record


def log_tunnel(client: str, host: str, port: int) -> None:
    """Log a connection that is passed through unchanged: the requests inside can't be seen.

    Args:
        client: the client's IP address.
        host: where the connection leads.
    """
    target = f"{host}:{port}"
    known = {"client": client, "method": "CONNECT", "host": target[:_LONGEST], "result": str(Result.PASSED)}
    extra = {FIELDS: lambda: dict.fromkeys(_NAMES) | known}
    logger.info("%s CONNECT %s passed", client, _printable(target), extra=extra)


def _database_of(path: str | None) -> str | None:
    match = _DATABASE.fullmatch(plain_path(path or ""))
    return match[1] if match else None


def _printable(text: str) -> str:
    """The text as one line, whatever the client sent."""
    text = text[:_LONGEST]
    return text if _is_printable(text) else text.encode("unicode_escape").decode("ascii")


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable() and "\\" not in text
