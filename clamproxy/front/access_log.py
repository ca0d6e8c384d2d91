"""The access log: one record for each request, a line of text or the fields of a JSON object."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from clamproxy.fleet.agent import parse_agent
from clamproxy.front.asked import Asked
from clamproxy.messages import Result

logger = logging.getLogger("clamproxy.access")

FIELDS = "access"
"""The attribute of a record that holds its fields for `log_format`."""

_LONGEST = 200
_NAMES = (
    *("client", "method", "host", "path", "database", "version", "result"),
    *("status", "bytes", "duration", "agent", "uuid", "error"),
)
_DATABASE = re.compile(r"/([a-z]{1,40})(?:-[0-9]+)?\.(?:cvd|cld|cdiff)(?:\.sign)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request."""

    client: str
    """Its IP address."""
    result: Result
    version: int | None
    """Of the object that was served."""
    status: int
    """Of the answer; 0 if there was none."""
    length: int
    """Bytes of content that were sent."""
    seconds: float
    """From the request to the end of the answer."""
    error: str = ""
    """Why the client didn't get what it asked for, or not the newest of it, or not all of it."""


def log_request(asked: Asked, outcome: Outcome, *, hides_path: bool) -> None:
    """Write one record: client, what, version, result, status, bytes, duration, client software.

    Args:
        asked: what was asked for.
        outcome: what became of it.
        hides_path: whether the path may hold a secret: feeds carry their subscribers' keys in
            the query, some in the path. Queries are never logged.
    """
    is_tunnel = asked.method == "CONNECT"
    host = f"{asked.host}:{asked.port}" if is_tunnel else asked.host
    path = None if is_tunnel or hides_path else asked.path.partition("?")[0]
    agent = asked.headers.get("user-agent", "")
    software, machine = agent.partition(" ")[0], parse_agent(agent)
    logger.info(
        "%s %s %s %s %s %d %dB %.3fs %s%s",
        outcome.client,
        _printable(asked.method),
        _printable(host if is_tunnel else path or f"{host}/..."),
        outcome.version or "-",
        outcome.result,
        outcome.status,
        outcome.length,
        outcome.seconds,
        _printable(software or "-"),
        f" ({_printable(outcome.error)})" if outcome.error else "",
        extra=_fields(
            client=outcome.client,
            method=asked.method,
            host=host,
            path=path,
            database=_database_of(path),
            version=outcome.version,
            result=str(outcome.result),
            status=outcome.status,
            bytes=outcome.length,
            duration=round(outcome.seconds, 6),
            agent=software or None,
            uuid=machine.uuid if machine else None,
            error=outcome.error or None,
        ),
    )


def log_tunnel(client: str, host: str, port: int) -> None:
    """A connection is passed through as it is: what is asked for inside can't be seen.

    Args:
        client: its IP address.
        host: where it leads.
        port: likewise.
    """
    target = f"{host}:{port}"
    extra = _fields(client=client, method="CONNECT", host=target, result=str(Result.PASSED))
    logger.info("%s CONNECT %s passed", client, _printable(target), extra=extra)


def _fields(**values: Any) -> dict[str, Any]:
    """All fields of a JSON line, in their order; what isn't known is null."""
    bounded = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in values.items()}
    return {FIELDS: dict.fromkeys(_NAMES) | bounded}


def _database_of(path: str | None) -> str | None:
    match = _DATABASE.fullmatch(path or "")
    return match[1] if match else None


def _printable(text: str) -> str:
    """One line, whatever the client sent."""
    return text[:_LONGEST].encode("unicode_escape").decode("ascii")
