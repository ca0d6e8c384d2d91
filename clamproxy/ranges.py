"""Conditional and Range requests: which bytes of a representation answer a request.

Pure: no I/O and no clock. RFC 9110 sections 13 and 14, with regard to how freshclam reacts to the
responses (docs/protocol.md, traps 11, 12, 14 and 37).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from werkzeug.datastructures import Headers
from werkzeug.http import parse_etags, parse_range_header

from clamproxy.dates import http_date, parse_http_date

_EMPTY_SUFFIX = re.compile(r"\s*bytes\s*=\s*-0+\s*")


@dataclass(frozen=True, slots=True)
class Representation:
    """What validators and ranges are compared with."""

    size: int | None
    """Size in bytes; None if only its beginning is known."""
    etag: str | None
    """Opaque tag without quotes, always strong; None if the exact bytes aren't known."""
    last_modified: float | None = None
    """Unix seconds."""

    @property
    def headers(self) -> Headers:
        """The validator fields for every response about this representation."""
        headers = Headers([("Accept-Ranges", "bytes")])
        if self.etag is not None:
            headers["ETag"] = f'"{self.etag}"'
        if self.last_modified is not None:
            headers["Last-Modified"] = http_date(self.last_modified)
        return headers


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a representation that answers a request."""

    status: int
    start: int = 0
    length: int = 0
    content_range: str | None = None


def select(
    headers: Headers,
    representation: Representation,
    not_modified_since: Callable[[float], bool] | None = None,
    *,
    method: str = "GET",
) -> Selection:
    """Decide on the status and the bytes.

    Args:
        headers: of the request.
        representation: the selected representation.
        not_modified_since: whether there is nothing newer than the given If-Modified-Since (Unix
            seconds); by default, Last-Modified is compared.
        method: ranges are defined for GET only (RFC 9110 14.2).

    Returns:
        304, 206, 416 or 200. A 304 takes precedence over Range (trap 14).
    """
    if _is_not_modified(headers, representation, not_modified_since):
        return Selection(304)
    whole = Selection(200, 0, representation.size or 0)
    # No range of an empty object is satisfiable. But freshclam takes a 416 as an error, and an empty cdiff
    # as a valid response: trap 12.
    if method != "GET" or representation.size == 0 or not _range_applies(headers, representation):
        return whole
    return _select_range(headers.get("Range", ""), representation.size) or whole


def is_precondition_met(headers: Headers, representation: Representation) -> bool:
    """Whether If-Match and If-Unmodified-Since allow the request; if not, the response is 412.

    For origin servers only: a cache leaves these fields to the origin (RFC 9110 13.2.2).
    """
    if (if_match := _list_field(headers, "If-Match")) is not None:
        return representation.etag is None or parse_etags(if_match).contains(representation.etag)
    until = parse_http_date(headers.get("If-Unmodified-Since"))
    return until is None or representation.last_modified is None or int(representation.last_modified) <= until


def _is_not_modified(
    headers: Headers, representation: Representation, not_modified_since: Callable[[float], bool] | None
) -> bool:
    if (if_none_match := _list_field(headers, "If-None-Match")) is not None:
        etags, etag = parse_etags(if_none_match), representation.etag
        return etags.star_tag or (etag is not None and etags.contains_weak(etag))
    since = parse_http_date(headers.get("If-Modified-Since"))
    if since is None:
        return False
    if not_modified_since is not None:
        return not_modified_since(since)
    return representation.last_modified is not None and int(representation.last_modified) <= since


def _list_field(headers: Headers, name: str) -> str | None:
    """The value of a list field, which may be sent as several fields (RFC 9110 5.3); None if it is absent."""
    return ", ".join(headers.getlist(name)) if name in headers else None


def _range_applies(headers: Headers, representation: Representation) -> bool:
    if_range = headers.get("If-Range")
    if if_range is None:
        return True
    date = parse_http_date(if_range)
    if date is not None:  # only an exact match counts: RFC 9110 13.1.5
        return representation.last_modified is not None and int(representation.last_modified) == date
    # A weak tag never matches: RFC 9110 13.1.5.
    return representation.etag is not None and if_range.strip() == f'"{representation.etag}"'


def _select_range(field: str, size: int | None) -> Selection | None:
    """The single range that is asked for; None if the field must be ignored."""
    if size is not None and _EMPTY_SUFFIX.fullmatch(field):
        return Selection(416, content_range=f"bytes */{size}")  # well-formed, never satisfiable
    parsed = parse_range_header(field)
    # freshclam never asks for several ranges at once; the whole is a legal response to them.
    if parsed is None or parsed.units != "bytes" or len(parsed.ranges) != 1:
        return None
    first, end = parsed.ranges[0]
    if size is None:
        return _select_of_unknown(first, end)
    start = max(0, size + first) if first < 0 else first
    end = size if end is None else min(end, size)
    if start >= end:
        return Selection(416, content_range=f"bytes */{size}")
    return Selection(206, start, end - start, f"bytes {start}-{end - 1}/{size}")


def _select_of_unknown(first: int, end: int | None) -> Selection | None:
    """A range that doesn't depend on the length, for which RFC 9110 14.4 writes ``*``."""
    if first < 0 or end is None:
        return None
    return Selection(206, first, end - first, f"bytes {first}-{end - 1}/*")
