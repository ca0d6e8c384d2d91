"""What the fake CDN can do wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

type Headers = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How an answer differs from the correct one; by default, it doesn't."""

    status: int | None = None
    """Answered instead of the file, with `body`."""
    body: bytes | None = None
    """Sent instead of the file's content (with its status, unless `status` is given)."""
    headers: Headers = field(default_factory=dict)
    modified: str | None = "keep"
    """Last-Modified: "keep" the file's, None for none."""
    ignore_range: bool = False
    force_status: int | None = None
    """The file is sent whole with this status: 206 to a request without Range, say."""
    gzipped: bool = False
    chunked: bool = False
    length: bool = True
    """Whether Content-Length is sent; without it and without `chunked`, the end of the connection ends it."""
    short_length: int | None = None
    """A Content-Length that is wrong."""
    cut_after: int | None = None
    """The connection ends after so many bytes of the body."""
    reset: bool = False
    """It ends by RST."""
    silent: bool = False
    """No answer at all, not even a header; the connection stays open."""
    held: bool = False
    """The answer comes only when the server heals."""
    stall_after: int | None = None
    """Nothing follows so many bytes of the body; the connection stays open."""
    rate: float | None = None
    """Bytes per second for this answer."""


def status(code: int, body: bytes = b"error code: 1020", **headers: str) -> Fault:
    """An error answer; ``retry_after="7"`` becomes ``Retry-After: 7``."""
    return Fault(
        status=code,
        body=body,
        headers={name.replace("_", "-").title(): text for name, text in headers.items()},
    )


def html(code: int = 200) -> Fault:
    """An error page with status 200, such as that of a captive portal."""
    page = (
        b"<!DOCTYPE html><html><body><h1>Please log in</h1>" + b"<p>Terms of use</p>" * 40 + b"</body></html>"
    )
    return Fault(status=code, body=page, headers={"Content-Type": "text/html"})


def replaced(body: bytes) -> Fault:
    """Other bytes under this name."""
    return Fault(body=body)


def empty() -> Fault:
    """Zero bytes with status 200."""
    return Fault(body=b"")


def short(after: int) -> Fault:
    """Cut after this many bytes, with the correct Content-Length."""
    return Fault(cut_after=after)


def short_without_length(after: int) -> Fault:
    """Cut after this many bytes, without a length: the client can't see that it is short."""
    return Fault(cut_after=after, length=False)


def chunked(cut_after: int | None = None) -> Fault:
    """Chunked transfer coding, perhaps cut before the last chunk."""
    return Fault(chunked=True, cut_after=cut_after)


def gzipped() -> Fault:
    """Sent with ``Content-Encoding: gzip``, which freshclam does not undo."""
    return Fault(gzipped=True)


def reset(after: int = 0) -> Fault:
    """RST after so many bytes of the body."""
    return Fault(cut_after=after, reset=True)


def stall(after: int) -> Fault:
    """Silence after so many bytes of the body."""
    return Fault(stall_after=after)


def silent() -> Fault:
    """Silence instead of an answer."""
    return Fault(silent=True)


def slow(rate: float) -> Fault:
    """Only this many bytes per second."""
    return Fault(rate=rate)


def redirect(target: str) -> Fault:
    """302 to another URL."""
    return status(302, b"", location=target)


def modified(date: str | None) -> Fault:
    """Another Last-Modified, or none."""
    return Fault(modified=date)
