"""Tricks of a Byzantine origin, for property-based tests."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from tests.support.byzantine import BEFORE, CONTENTS, ENDINGS, FRAMINGS, RANGES, Trick

PATHS = (
    *("", "", "/daily.cvd", "/daily.cvd", "/main.cvd", r"/daily-\d+\.cdiff$", r"/daily-\d+\.cdiff$"),
    *(r".*\.sign$", "/daily-3", "/daily-[45]"),
)
OTHERS = ("/main.cvd", "/daily.cvd", "/daily-2.cdiff", "/daily-4.cdiff", "/daily-3.cdiff.sign")
"""Files that are sent under other names."""
STATUSES = (
    *(
        100,
        101,
        200,
        201,
        204,
        206,
        206,
        300,
        301,
        302,
        304,
        304,
        307,
        400,
        401,
        403,
        403,
        404,
        404,
        407,
        410,
    ),
    *(416, 416, 418, 429, 429, 451, 500, 502, 503, 503, 504, 599, 999),
)
_FOR_EVER = "Fri, 31 Dec 9999 23:59:59 GMT"
FIELDS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("Content-Encoding", "gzip"),),
    (("Content-Encoding", "br, gzip"),),
    (("Transfer-Encoding", "gzip, chunked"),),
    (("Retry-After", "1"),),
    (("Retry-After", "999999999999999999"),),
    (("Retry-After", "-5"),),
    (("Retry-After", _FOR_EVER),),
    (("Retry-After", "soon"),),
    (("ETag", '"the same for all"'),),
    (("ETag", 'W/"weak"'),),
    (("ETag", "\xff\x00"),),
    (("Last-Modified", _FOR_EVER),),
    (("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT"),),
    (("Content-Range", "bytes 0-511/512"),),
    (("Content-Range", "bytes 99-1/x"),),
    (("Content-Type", "multipart/byteranges; boundary=x"),),
    (("X-Bomb", "a" * 60_000),),
    (("X-Bomb", "a" * 300_000),),
    tuple((f"X-Bomb-{number}", "a" * 50) for number in range(1500)),
    (("Cache-Control", "max-age=99999999"), ("Age", "-7"), ("Date", _FOR_EVER)),
    (("Via", "1.1 clamproxy-aaaaaaaa"),),
    (("cf-ray", "<script>\x1b[31m"),),
)
PLACES = (
    *("/daily.cvd", "/main.cvd", "/%2e%2e//x?y#z", "//{elsewhere}/x", "http://{elsewhere}/daily.cvd", "\\"),
    *("http://[::1]:1/", "https://{elsewhere}/daily.cvd", "http://user@{elsewhere}/", "ftp://{elsewhere}/"),
    *("http://localhost:{port}/daily.cvd", "http://elsewhere.example/daily.cvd"),
    *("http://127.0.0.2:{origin}/daily.cvd", "//127.0.0.2:{origin}/daily.cvd"),
)
"""Where redirects lead."""


def redirects(elsewhere: str) -> st.SearchStrategy[dict[str, Any]]:
    """Redirects within the host, in circles, to other hosts, also on the same port, and to another port.

    Args:
        elsewhere: a host and port where nothing must ever arrive.
    """
    port = elsewhere.rpartition(":")[2]
    return st.builds(
        lambda status, place: {
            "status": status,
            "fields": (("Location", place.format(elsewhere=elsewhere, port=port, origin="{origin}")),),
        },
        st.sampled_from((301, 302, 303, 307, 308)),
        st.sampled_from(PLACES),
    )


@cache
def tricks(elsewhere: str) -> st.SearchStrategy[Trick]:
    """Answers with one or two things wrong."""

    def one(name: str, values: Any) -> st.SearchStrategy[dict[str, Any]]:
        return st.sampled_from(tuple(values)).map(lambda value: {name: value})

    deviation = st.one_of(
        one("content", (*CONTENTS, *OTHERS)),
        one("content", ("one bit flipped", "by other keys", "/daily-4.cdiff", "/main.cvd")),
        one("status", STATUSES),
        one("framing", FRAMINGS),
        one("fields", FIELDS),
        one("range", RANGES),
        one("before", BEFORE),
        one("ending", ENDINGS),
        redirects(elsewhere),
    )

    def combined(path: str, parts: list[dict[str, Any]], times: int | None) -> Trick:
        return Trick(path=path, times=times, **{name: value for one in parts for name, value in one.items()})

    return st.builds(
        combined,
        st.sampled_from(PATHS),
        st.lists(deviation, min_size=1, max_size=2),
        st.sampled_from((1, 2, None)),
    )
