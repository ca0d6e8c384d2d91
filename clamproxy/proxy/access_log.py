"""The access log: one record for each request, a line of text or the fields of a JSON object."""

from __future__ import annotations

import logging
import re
from typing import Any

from mitmproxy import http

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
_UUID = re.compile(r"\bUUID: ([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})\b")


def log_request(
    *,
    client: str,
    request: http.Request,
    is_passed_through: bool,
    version: int | None,
    result: Result,
    status: int,
    length: int,
    seconds: float,
    error: str,
) -> None:
    """Write one record: client, what, version, result, status, bytes, duration, client software.

    Args:
        client: its IP address.
        request: what it asked for.
        is_passed_through: whether of another site, whose paths are not logged.
        version: of the object that was served.
        result: how it was answered.
        status: of the answer; 0 if there was none.
        length: bytes of content that were sent.
        seconds: from the request to the end of the answer.
        error: what went wrong on the way to the client; empty if nothing did.
    """
    agent = request.headers.get("user-agent", "-")
    software = agent.split(" ", 1)[0]
    # Feeds carry their subscribers' keys in the query, some in the path: neither is logged.
    is_hidden = request.method == "CONNECT" or is_passed_through
    path = None if is_hidden else request.path.partition("?")[0]
    uuid = _UUID.search(agent)
    values = (
        *(client, request.method[:_LONGEST], _host(request)[:_LONGEST], path and path[:_LONGEST]),
        *(_database_of(path), version, str(result), status, length, round(seconds, 6)),
        None if software == "-" else software[:_LONGEST],
        uuid[1].lower() if uuid else None,
        error[:_LONGEST] or None,
    )
    logger.info(
        "%s %s %s %s %s %d %dB %.3fs %s%s",
        client,
        _printable(request.method),
        _target(request, is_passed_through),
        version or "-",
        result,
        status,
        length,
        seconds,
        _printable(software),
        f" ({_printable(error)})" if error else "",
        extra={FIELDS: dict(zip(_NAMES, values, strict=True))},
    )


def log_tunnel(client: str, host: str, port: int) -> None:
    """A connection is passed through as it is: what is asked for inside can't be seen.

    Args:
        client: its IP address.
        host: where it leads.
        port: likewise.
    """
    target = f"{host}:{port}"
    fields: dict[str, Any] = dict.fromkeys(_NAMES)
    fields |= {"client": client, "method": "CONNECT", "host": target[:_LONGEST], "result": str(Result.PASSED)}
    logger.info("%s CONNECT %s passed", client, _printable(target), extra={FIELDS: fields})


def _database_of(path: str | None) -> str | None:
    match = _DATABASE.fullmatch(path or "")
    return match[1] if match else None


def _host(request: http.Request) -> str:
    """Whom the client means; of a tunnel, with the port."""
    return f"{request.host}:{request.port}" if request.method == "CONNECT" else request.host


def _target(request: http.Request, is_passed_through: bool) -> str:
    if request.method == "CONNECT":
        return _printable(_host(request))
    path = request.path.partition("?")[0]
    return _printable(f"{request.host}/..." if is_passed_through else path)


def _printable(text: str) -> str:
    """One line, whatever the client sent."""
    return text[:_LONGEST].encode("unicode_escape").decode("ascii")
