"""The files of the fake CDN, served by the rules of HTTP."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime

from tests.support.faults import Fault, Headers

ASSUMED_UPLOAD_DELAY = 60
"""Seconds from the build of a CVD to its upload: the CDN's Last-Modified is later than the stime."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the CDN."""

    body: bytes
    modified: str | None
    """Last-Modified, None for none."""

    @property
    def etag(self) -> str:
        """A strong entity tag."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'


def file_answer(file: File, fault: Fault, request: Headers) -> tuple[int, Headers, bytes]:
    """A file by the rules of RFC 9110 (13.2.2 order of conditions, 14.2 Range, 13.1.5 If-Range)."""
    body = file.body if fault.body is None else fault.body
    date = file.modified if fault.modified == "keep" else fault.modified
    head = {"Content-Type": "application/octet-stream", "ETag": file.etag, "Accept-Ranges": "bytes"}
    if date is not None:
        head["Last-Modified"] = date
    if fault.force_status is not None:
        whole = {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"} if fault.force_status == 206 else {}
        return fault.force_status, head | whole, body
    if _not_modified(file, date, request):
        return 304, head, b""
    wanted = request.get("range")
    condition = request.get("if-range")
    if wanted is None or fault.ignore_range or condition not in (None, file.etag, date):
        return 200, head, body
    if not re.fullmatch(r"bytes=(\d+-\d*|-\d+)", wanted):
        return 200, head, body
    span = _span(wanted, len(body))
    if span is None:
        return 416, head | {"Content-Range": f"bytes */{len(body)}"}, b""
    start, end = span
    return 206, head | {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}, body[start:end]


def _not_modified(file: File, date: str | None, request: Headers) -> bool:
    if "if-none-match" in request:
        return file.etag in request["if-none-match"]
    if date is None:
        return False
    try:
        return parsedate_to_datetime(date) <= parsedate_to_datetime(request["if-modified-since"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _span(text: str, size: int) -> tuple[int, int] | None:
    """The bytes that a single valid Range names, None if there are none."""
    first, last = text.removeprefix("bytes=").split("-")
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    return (start, end) if start < end else None


def upload_date(body: bytes) -> str:
    """A Last-Modified as the CDN gives it: a while after the build time in the header of a CVD."""
    fields = body[:512].split(b":")
    built = fields[8].strip() if body.startswith(b"ClamAV-VDB:") and len(fields) > 8 else b""
    return formatdate((int(built) if built.isdigit() else 1_624_500_000) + ASSUMED_UPLOAD_DELAY, usegmt=True)
