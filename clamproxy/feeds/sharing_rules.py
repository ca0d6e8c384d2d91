"""The rules of a shared cache: RFC 9111, and RFC 5861 for failures. Pure: no I/O and no clock.

Where it goes beyond these rules, or is stricter than required:

* A response without any freshness information counts as fresh for `FLOOR` seconds. Clients come in herds
  on the hour, and a feed counts its subscribers' requests: this way, a herd costs only one.
* ``no-cache`` and ``private`` count in the same way with and without field names (RFC 9111 5.2.2.4 and
  5.2.2.7).
* A client's ``max-stale`` and ``stale-if-error`` are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from werkzeug.datastructures import Headers, RequestCacheControl, ResponseCacheControl
from werkzeug.http import parse_cache_control_header, parse_list_header, parse_set_header

from clamproxy.dates import parse_http_date

HEURISTIC_SHARE = 0.1
"""The heuristic freshness lifetime, as a share of the time since the last change (RFC 9111 4.2.2)."""
LONGEST_HEURISTIC = 86400.0
"""The longest heuristic freshness lifetime, in seconds."""
FLOOR = 60.0
"""Freshness lifetime in seconds of a response that doesn't give one."""
_LONGEST = float(2**31)
"""In seconds; longer times count as this (RFC 9111 1.2.2)."""
_CLOCK_STEP = 60.0
"""How far this machine's clock may have been set back since a response was stored, in seconds."""

KEPT_FIELDS = frozenset(
    {
        *("age", "cache-control", "date", "expires", "etag", "last-modified", "vary"),
        *("content-encoding", "content-language", "content-type"),
    }
)
"""The fields of a response that are stored and sent. All others are of no use to freshclam, and some are
harmful: Set-Cookie and hop-by-hop fields must not be shared, and Content-Location and Link may repeat a
URL with a subscriber's key."""

_DESCRIBES_CONTENT = frozenset({"content-encoding", "content-language", "content-type"})


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response with content, and when it arrived."""

    headers: Headers
    """Only fields in `KEPT_FIELDS`."""
    requested_at: float
    """When it was requested, in Unix seconds."""
    received_at: float
    """When the response, or the last 304 that renewed it, arrived, in Unix seconds."""
    redirect_lifetime: float | None = None
    """Freshness lifetime in seconds of the redirects that led to it; None if there were none."""

    @property
    def directives(self) -> ResponseCacheControl:
        return parse_cache_control_header(_first_ones(self.headers), cls=ResponseCacheControl)

    def forbids(self, *names: str) -> bool:
        """Whether any of these directives is present, well-formed or not."""
        return _mentions(self.headers, names)


def kept(headers: Mapping[str, str]) -> Headers:
    """The fields of a response that may be stored."""
    nominated = parse_set_header(headers.get("Connection"))
    return Headers(
        [
            (name, value)
            for name, value in headers.items()
            if name.lower() in KEPT_FIELDS and name not in nominated and value.isprintable()
        ]
    )


def request_directives(headers: Headers) -> RequestCacheControl:
    """The directives of a request's Cache-Control, or else of its Pragma (RFC 9111 5.4)."""
    field = _first_ones(headers)
    if field is None and "no-cache" in (_joined(headers, "Pragma") or ""):
        field = "no-cache"
    return parse_cache_control_header(field, cls=RequestCacheControl)


def wants_no_store(request: Headers) -> bool:
    """Whether a client asks for nothing about its request to be stored."""
    return _mentions(request, ("no-store",))


def is_shareable(request: Headers, head: ResponseHead) -> bool:
    """Whether a 200 response to a GET may be stored and sent to other clients (RFC 9111 3, 3.5)."""
    if head.forbids("no-store", "private") or wants_no_store(request) or "*" in vary(head):
        return False
    if "Authorization" not in request:
        return True
    directives = head.directives
    return any(name in directives for name in ("public", "s-maxage", "must-revalidate"))


def vary(head: ResponseHead) -> frozenset[str]:
    """The names of the request fields on which the response depends, in lower case."""
    return frozenset(name.lower() for name in parse_set_header(_joined(head.headers, "Vary")))


def selection(head: ResponseHead, sent: Headers) -> dict[str, str]:
    """What a later request must have in common with the one that brought the response.

    Args:
        sent: the fields that were sent upstream.

    Returns:
        A digest for each name in Vary. Only a digest, because a field may be a secret.
    """
    return {name: _digest(", ".join(sent.get_all(name))) for name in sorted(vary(head))}


def is_selected(wanted: Mapping[str, str], sent: Headers) -> bool:
    """Whether a stored response matches a request (RFC 9111 4.1).

    Args:
        wanted: the result of `selection` when it was stored.
        sent: the fields that would be sent upstream.
    """
    return all(_digest(", ".join(sent.get_all(name))) == digest for name, digest in wanted.items())


def lifetime(head: ResponseHead) -> float:
    """The freshness lifetime of a response in seconds (RFC 9111 4.2.1)."""
    own = _own_lifetime(head)
    return own if head.redirect_lifetime is None else min(own, head.redirect_lifetime)


def _own_lifetime(head: ResponseHead) -> float:
    explicit = explicit_lifetime(head)
    if explicit is not None:
        return explicit
    modified = parse_http_date(head.headers.get("Last-Modified"))
    since_change = 0.0 if modified is None else _date(head) - modified
    return max(FLOOR, min(since_change * HEURISTIC_SHARE, LONGEST_HEURISTIC))


def explicit_lifetime(head: ResponseHead) -> float | None:
    """The freshness lifetime that a response gives, in seconds; None if none, 0 if it can't be parsed."""
    directives = head.directives
    for name, seconds in (("s-maxage", directives.s_maxage), ("max-age", directives.max_age)):
        if name in directives:
            return min(max(0.0, float(seconds or 0)), _LONGEST)
    if head.forbids("max-age", "s-maxage"):  # present, but hidden by a stray quotation mark
        return 0.0
    if "Expires" not in head.headers:
        return None
    expires = parse_http_date(head.headers["Expires"])
    return 0.0 if expires is None else min(max(0.0, expires - _date(head)), _LONGEST)


def age(head: ResponseHead, now: float) -> float:
    """Seconds since the origin sent or confirmed a response (RFC 9111 4.2.3)."""
    corrected = _told_age(head) + max(0.0, head.received_at - head.requested_at)
    apparent = max(0.0, head.received_at - _date(head))
    return min(max(apparent, corrected) + max(0.0, now - head.received_at), _LONGEST)


def expires_at(head: ResponseHead) -> float:
    """When a response stops being fresh, in Unix seconds; never before it arrived."""
    if head.forbids("no-cache"):
        return head.received_at
    return head.received_at + max(0.0, lifetime(head) - age(head, head.received_at))


def is_fresh(head: ResponseHead, request: Headers, now: float) -> bool:
    """Whether a stored response may be served without asking the feed (RFC 9111 4)."""
    if head.forbids("no-cache") or now < head.received_at - _CLOCK_STEP:
        return False
    wanted, current = request_directives(request), age(head, now)
    if "no-cache" in wanted or ("max-age" in wanted and current > (wanted.max_age or 0)):
        return False
    return lifetime(head) > current + (wanted.min_fresh or 0)


def serves_on_error(head: ResponseHead, now: float, limit: float) -> bool:
    """Whether a stored response may be served while the feed refuses or fails (RFC 5861 4).

    Args:
        now: Unix seconds.
        limit: in seconds after it stopped being fresh; the response's ``stale-if-error`` can shorten it.
    """
    # RFC 9111 4.2.4; s-maxage implies proxy-revalidate: 5.2.2.10.
    if head.forbids("no-cache", "must-revalidate", "proxy-revalidate", "s-maxage"):
        return False
    directives = head.directives
    if "stale-if-error" in directives:
        limit = min(limit, float(directives.stale_if_error or 0))
    return age(head, now) <= lifetime(head) + limit


def validators(head: ResponseHead) -> dict[str, str]:
    """The request fields that ask whether a stored response is still valid (RFC 9111 4.3.1)."""
    names = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
    return {asking: head.headers[name] for name, asking in names.items() if name in head.headers}


def is_confirmed_by(head: ResponseHead, answer: ResponseHead) -> bool:
    """Whether a 304 is about the stored response, not about one with another tag or date (RFC 9111 4.3.4)."""
    tag, answered_tag = head.headers.get("ETag"), answer.headers.get("ETag")
    if tag is not None and answered_tag is not None:
        return tag.removeprefix("W/") == answered_tag.removeprefix("W/")
    date, answered_date = (parse_http_date(of.headers.get("Last-Modified")) for of in (head, answer))
    return date is None or answered_date is None or date == answered_date


def renewed(head: ResponseHead, answer: ResponseHead) -> ResponseHead:
    """A stored head after a 304, whose fields replace the stored ones (RFC 9111 3.2).

    Fields that describe the content stay, because the content does. The old Age and Date are dropped.
    """
    headers = Headers([(name, value) for name, value in head.headers if name.lower() not in ("age", "date")])
    for name in {name.lower() for name, _ in answer.headers} - _DESCRIBES_CONTENT:
        headers.setlist(name, answer.headers.getlist(name))
    return replace(answer, headers=headers)


def _date(head: ResponseHead) -> float:
    date = parse_http_date(head.headers.get("Date"))
    return head.received_at if date is None else date


def _told_age(head: ResponseHead) -> float:
    """Age in seconds; only the first member counts."""
    first = head.headers.get("Age", "").partition(",")[0].strip()
    if not (first.isascii() and first.isdecimal()):
        return 0.0
    return min(float(first), _LONGEST)


def _mentions(headers: Headers, names: Iterable[str]) -> bool:
    """Whether Cache-Control contains any of these words.

    It searches the text rather than the directives, which a stray quotation mark hides from a parser.
    """
    text = _joined(headers, "Cache-Control") or ""
    return any(name in text for name in names)


def _joined(headers: Headers, name: str) -> str | None:
    """A list field as one line in lower case, because names of directives are case-insensitive."""
    values = headers.getlist(name)
    return ", ".join(values).lower() if values else None


def _first_ones(headers: Headers) -> str | None:
    """Cache-Control, reversed: of two equal directives the first counts, but the parser takes the last."""
    field = _joined(headers, "Cache-Control")
    return None if field is None else ", ".join(reversed(parse_list_header(field)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
