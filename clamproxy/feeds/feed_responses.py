"""Answers: how a response of a feed is put into an answer."""

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
    """Answer with a body, or the part of it that is asked for.

    Args:
        request: the request.
        head: of the response.
        source: its body; closed here unless it becomes the body of the response.
        result: how it came to be here.
        is_not_newer: what If-Modified-Since is held against: see `Entry.is_not_newer`.
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
    """A 304 of the feed to the client that asked for it."""
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
        del conditions["Range"]  # a weak tag says nothing about bytes: RFC 9110 13.1.5
    selection = select(conditions, representation, is_not_newer, method=request.method)
    headers = _fields(head, with_content=selection.status != 304)
    if selection.status != 304 and _would_be_dropped(request.headers, representation.last_modified):
        del headers["Last-Modified"]
    headers["Accept-Ranges"] = "bytes"
    describe(headers, selection, size)
    return selection, headers


def _would_be_dropped(conditions: Headers, last_modified: float | None) -> bool:
    """Whether libcurl would throw a body away, as it is not newer than what freshclam has.

    libcurl compares Last-Modified of a 200 with If-Modified-Since, which freshclam takes from the
    time when it wrote its file, and makes a 304 of it. Without the field it takes what comes.
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
