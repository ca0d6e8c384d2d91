"""What all responses have in common, wherever they are made."""

from __future__ import annotations

import os
import time

from werkzeug.datastructures import Headers

from clamproxy.config.units import KIB
from clamproxy.dates import http_date
from clamproxy.messages import CACHE_STATUS, Body, Response, Result, Source
from clamproxy.ranges import Selection

IN_MEMORY = 128 * KIB
"""Bodies up to this many bytes are read at once; longer ones are sent from disk. A cdiff of daily has some
50 KiB, a signature 10."""


def plain(status: int, result: Result, reason: str, version: int | None = None) -> Response:
    """A short response in plain text."""
    text = f"clamproxy: {reason}\n".encode("ascii", "backslashreplace")
    response = Response(status, result, body=text, version=version, reason=reason)
    response.headers["Content-Type"] = "text/plain; charset=utf-8"
    response.headers["Cache-Control"] = "no-store"
    return response


def describe(headers: Headers, selection: Selection, size: int | None) -> None:
    """Add the fields that say which part of a representation follows.

    Args:
        headers: of the response.
        size: of the whole representation in bytes; None if unknown. The response to a HEAD need not tell
            it (RFC 9110 8.6).
    """
    if selection.status != 304 and not (selection.status == 200 and size is None):
        headers["Content-Length"] = str(selection.length)
    if selection.content_range is not None:
        headers["Content-Range"] = selection.content_range


def content(source: Source, start: int, length: int, *, is_arriving: bool) -> bytes | Body:
    """Bytes of a source, or the span of it to send later.

    Args:
        source: closed here unless it is part of what is returned.
        start: offset of the first byte.
        length: how many bytes; 0 for the response to a HEAD, for example.
        is_arriving: whether some of the bytes may not have arrived yet.

    Raises:
        OSError: it can't be read.
    """
    if length and (is_arriving or length > IN_MEMORY):
        return Body(source, start, length)
    try:
        return os.pread(source.fileno(), length, start) if length else b""
    except OSError:
        source.distrust()
        raise
    finally:
        source.close()


def complete(response: Response, method: str, via: str | None = None) -> None:
    """Add the fields that every response has, and drop content that its method or status doesn't allow.

    Args:
        response: changed in place. A Date or Cache-Status that it already has is kept.
        method: of the request.
        via: what the gateway adds to Via; None if it doesn't act as a proxy.
    """
    if response.is_complete:
        return
    response.is_complete = True
    headers = response.headers
    there = {name.lower() for name, _ in headers}  # each lookup in `headers` would search all of them
    if "cache-status" not in there:
        headers.add("Cache-Status", CACHE_STATUS[response.result])
    if "date" not in there:
        headers.add("Date", http_date(time.time()))
    if via is not None and "via" in there:
        headers["Via"] = via
    elif via is not None:
        headers.add("Via", via)
    has_content = response.status not in (204, 304)
    # The response to a HEAD may omit an unknown length (RFC 9110 8.6).
    if has_content and (response.length or method != "HEAD") and "content-length" not in there:
        headers.add("Content-Length", str(response.length))
    if not has_content or method == "HEAD":
        response.body = b""
