"""The access log: one line for each request."""

from __future__ import annotations

import logging

from mitmproxy import http

from clamproxy.messages import Result

logger = logging.getLogger("clamproxy.access")

_LONGEST = 200


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
    """Write one line: client, what, version, result, status, bytes, duration, client software."""
    logger.info(
        "%s %s %s %s %s %d %dB %.3fs %s%s",
        client,
        request.method,
        _target(request, is_passed_through),
        version or "-",
        result,
        status,
        length,
        seconds,
        _printable(request.headers.get("user-agent", "-").split(" ", 1)[0]),
        f" ({_printable(error)})" if error else "",
    )


def _target(request: http.Request, is_passed_through: bool) -> str:
    if request.method == "CONNECT":
        return _printable(f"{request.host}:{request.port}")
    path = request.path.partition("?")[0]
    # Feeds carry their subscribers' keys in the query, some in the path: neither is logged.
    return _printable(f"{request.host}/..." if is_passed_through else path)


def _printable(text: str) -> str:
    """One line, whatever the client sent."""
    return text[:_LONGEST].encode("unicode_escape").decode("ascii")
