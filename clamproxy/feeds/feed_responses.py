"""Responses: how a feed's response becomes the one to a client."""

from __future__ import annotations

import time
from collections.abc import Callable

from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.dates import parse_http_date
from clamproxy.downloads import FileSource
from clamproxy.feeds.sharing_rules import ResponseHead, age
from clamproxy.messages import Request, Response, Result
from clamproxy.ranges import Representation, Selection, select
from clamproxy.responses import content, describe


def from_source(
    request: Request,
    head: ResponseHead,
    source: FileSource,
    result: Result,
    is_not_newer: Callable[[float], bool],
) -> Response:
    """Respond with a body, or with the part of it that was asked for.

    Args:
        head: of the feed's response.
        source: the body; closed here unless it becomes the body of the response.
        result: how the body got here.
        is_not_newer: decides about If-Modified-Since, see `StoredResponse.is_not_newer`.
    """
    try:
        selection, headers = _select(request, head, source.size, is_not_newer)
        wanted = selection.length if request.method == "GET" else 0
        body = content(source, selection.start, wanted, is_arriving=source.is_arriving)
    except BaseException:
        source.close()
        raise
    return Response(selection.status, result, headers, body)


def not_modified(head: ResponseHead, result: Result) -> Response:
    """The feed's 304, for the client that asked for it."""
    return Response(304, result, _fields(head, with_content=False))


def _select(
    request: Request, head: ResponseHead, size: int, is_not_newer: Callable[[float], bool]
) -> tuple[Selection, Headers]:
    tag = head.headers.get("ETag", "")
    representation = Representation(
        size,
        tag.removeprefix("W/").strip('"') or None,
        parse_http_date(head.headers.get("Last-Modified")),
    )
    conditions = Headers(request.headers)
    if tag.startswith("W/") and "If-Range" in conditions:
        del conditions["Range"]  # a weak tag doesn't identify bytes: RFC 9110 13.1.5
    selection = select(conditions, representation, is_not_newer, method=request.method)
    headers = _fields(head, with_content=selection.status != 304)
    if selection.status != 304 and _would_be_dropped(request.headers, representation.last_modified):
        del headers["Last-Modified"]
    headers["Accept-Ranges"] = "bytes"
    describe(headers, selection, size)
    return selection, headers


def _would_be_dropped(conditions: Headers, last_modified: float | None) -> bool:
    """Whether libcurl would discard a body because it isn't newer than the client's copy.

    libcurl compares Last-Modified of a 200 with If-Modified-Since, for which freshclam takes the time
    when it wrote its file, and turns the response into a 304. Without Last-Modified, it accepts any body.
    """
    since = parse_http_date(conditions.get("If-Modified-Since"))
    if since is None or last_modified is None or "If-None-Match" in conditions:
        return False
    return last_modified <= since


def _fields(head: ResponseHead, *, with_content: bool) -> Headers:
    headers = Headers(
        [
            (name, value)
            for name, value in head.headers
            if with_content or not name.lower().startswith("content-")
        ]
    )
    headers["Age"] = str(int(age(head, time.time())))
    headers.setdefault("Date", http_date(head.received_at))
    return headers
