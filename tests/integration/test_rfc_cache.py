"""What RFC 9111 asks of a shared cache, as a client of a feed sees it: two requests, one after the other.

What RFC 9110 and 9112 ask of the recipient of a single response is in test_rfc_client.py; the rules with
their clock are in test_sharing_rules.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.config.settings import Settings
from clamproxy.feeds import Feeds
from clamproxy.messages import Response
from clamproxy.notes import UNKEPT
from tests.harness.feeds import BYPASS, HIT, MISS, REVALIDATED, ask_feeds, read
from tests.support.scripted import Raw, RawOrigin
from tests.support.stored import until

BODY = b"My.First:0:*:6d792d746573742d7369676e6174757265\n"
MINUTE, HOUR, DAY = 60, 3600, 86400
FORMATS = {
    "IMF-fixdate": "%a, %d %b %Y %H:%M:%S GMT",
    "of RFC 850": "%A, %d-%b-%y %H:%M:%S GMT",
    "of asctime": "%a %b %e %H:%M:%S %Y",
}


def in_(seconds: float) -> str:
    """A date as HTTP writes it."""
    return http_date(time.time() + seconds)


def response(*fields: str, status: str = "200 OK", body: bytes = BODY) -> bytes:
    lines = (f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode("latin-1") + body


@dataclass
class FeedHarness:
    """Feeds whose only feed answers byte by byte."""

    feeds: Feeds
    server: RawOrigin

    async def ask(self, **headers: str) -> Response:
        """One request; the transfer has ended then."""
        fields = Headers([(name.replace("_", "-"), value) for name, value in headers.items()])
        reply = await ask_feeds(self.feeds, f"{self.server.url}/f.ndb", headers=fields)
        assert reply.status != 200 or await read(reply) == BODY
        await until(lambda: not self.feeds.under_way())
        return reply

    async def how(self, **headers: str) -> str:
        """How one request was answered."""
        return (await self.ask(**headers)).headers["Cache-Status"].removeprefix("clamproxy; ")


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[FeedHarness]:
    settings = Settings.model_validate({"feeds": {"hosts": ["localhost"]}})
    feeds = Feeds(tmp_path, settings, lambda _: UNKEPT, lambda *_: None, "1.1 clamproxy-test")
    with RawOrigin(Raw(b"")) as server:
        yield FeedHarness(feeds, server)
        feeds.stop()


TAG = 'ETag: "1"'
AGAIN = response(TAG, status="304 Not Modified", body=b"")
"""What is answered from the second request on."""

FRESH = [
    ("5.2.2.1: max-age", ["Cache-Control: max-age=60"]),
    ("5.2: a quoted argument", ['Cache-Control: max-age="60"']),
    ("5.2: names in other letters", ["CACHE-CONTROL: Max-Age=60"]),
    ("5.2: what is unknown", ["Cache-Control: community=UCI, x, max-age=60"]),
    ("5.2: empty members", ["Cache-Control: , ,max-age=60,"]),
    ("4.2.1: two of them, the first counts", ["Cache-Control: max-age=60, max-age=0"]),
    ("5.2: several fields", ["Cache-Control: x", "Cache-Control: max-age=60"]),
    ("9112 5.2: a folded field", ["Cache-Control: x,", "\tmax-age=60"]),
    ("1.2.2: more seconds than fit", ["Cache-Control: max-age=99999999999999999999"]),
    ("5.2.2.10: s-maxage before max-age", ["Cache-Control: max-age=0, s-maxage=60"]),
    ("5.2.2.9: public", ["Cache-Control: public, max-age=60"]),
    ("5.2.2.2: must-revalidate is about what is stale", ["Cache-Control: must-revalidate, max-age=60"]),
    *[
        (f"5.3: Expires, a date {name}", [f"Expires: {time.strftime(text, time.gmtime(time.time() + HOUR))}"])
        for name, text in FORMATS.items()
    ],
    ("5.3: max-age before Expires", ["Cache-Control: max-age=60", "Expires: 0"]),
    ("5.3: Expires against Date", [f"Date: {in_(DAY)}", f"Expires: {in_(DAY + HOUR)}"]),
    ("5.4: Pragma means nothing here", ["Cache-Control: max-age=60", "Pragma: no-cache"]),
    ("5.1: Age", ["Cache-Control: max-age=600", "Age: 30"]),
    ("5.1: an Age that is none", ["Cache-Control: max-age=60", "Age: old"]),
    ("5.1: an Age below zero", ["Cache-Control: max-age=60", "Age: -5"]),
    ("4.2.3: a Date to come", ["Cache-Control: max-age=60", f"Date: {in_(DAY)}"]),
    ("4.2.3: a Date that is none", ["Cache-Control: max-age=60", "Date: today"]),
    ("4.2.2: a tenth of its age", [f"Last-Modified: {in_(-DAY)}", f"Date: {in_(-HOUR)}"]),
    ("4.2.2: nothing is said", []),
    ("4.2.2: a Last-Modified that is none", ["Last-Modified: yesterday"]),
    ("4.2.2: a Last-Modified to come", [f"Last-Modified: {in_(DAY)}"]),
    ("4.1: Vary, of what is always the same", ["Vary: Accept-Encoding, Cookie, X-Unknown"]),
    ("4.1: an empty Vary", ["Vary: "]),
    ("7.3: Set-Cookie", ["Cache-Control: max-age=60", "Set-Cookie: a=b"]),
    ("5.5: Warning", ["Cache-Control: max-age=60", 'Warning: 110 - "stale"']),
]
STALE = [
    ("5.2.2.1: max-age=0", ["Cache-Control: max-age=0"]),
    ("4.2.1: two of them, the first counts", ["Cache-Control: max-age=0, max-age=60"]),
    ("4.2.1: the same in two fields", ["Cache-Control: max-age=0", "Cache-Control: max-age=60"]),
    *[
        (f"4.2.1: max-age {name}", [f"Cache-Control: max-age{text}"])
        for name, text in {
            "below zero": "=-1",
            "with a fraction": "=1.5",
            "in words": "=ten",
            "without a number": "=",
            "without anything": "",
            "with a stray quotation mark": '="60',
        }.items()
    ],
    ("5.2.2.10: s-maxage=0", ["Cache-Control: s-maxage=0, max-age=60"]),
    ("5.2.2.4: no-cache", ["Cache-Control: no-cache, max-age=60"]),
    ("5.2.2.4: no-cache with a name", ['Cache-Control: no-cache="X-Y", max-age=60']),
    ("9112 5.2: no-cache on a folded line", ["Cache-Control: max-age=60,", " no-cache"]),
    ("9112 5.1: a space before the colon", ["Cache-Control : max-age=0"]),
    ("5.3: Expires in the past", [f"Expires: {in_(-HOUR)}"]),
    ("5.3: Expires now", [f"Date: {in_(0)}", f"Expires: {in_(0)}"]),
    ("5.3: Expires: 0", ["Expires: 0"]),
    ("5.3: Expires: -1", ["Expires: -1"]),
    ("4.2.1: two Expires, the first counts", [f"Expires: {in_(-HOUR)}", f"Expires: {in_(HOUR)}"]),
    ("5.1: Age beyond", ["Cache-Control: max-age=60", "Age: 61"]),
    ("5.1: a list of Ages, the first counts", ["Cache-Control: max-age=60", "Age: 61, 1"]),
    ("5.1: two Ages, the first counts", ["Cache-Control: max-age=60", "Age: 61", "Age: 1"]),
    ("1.2.2: an Age with more digits than fit", ["Cache-Control: max-age=60", f"Age: {'9' * 25}"]),
    ("4.2.3: an old Date", ["Cache-Control: max-age=60", f"Date: {in_(-HOUR)}"]),
]
FOR_ONE = [
    ("5.2.2.5: no-store", ["Cache-Control: no-store, max-age=60"]),
    ("5.2.2.5: in other letters", ["Cache-Control: NO-STORE"]),
    ("5.2.2.7: private", ["Cache-Control: private, max-age=60"]),
    ("5.2.2.7: private with a name", ['Cache-Control: private="X", max-age=60']),
    ("5.2.2.3: must-understand", ["Cache-Control: must-understand, no-store"]),
    ("9112 5.2: no-store on a folded line", ["Cache-Control: max-age=60,", "  no-store"]),
    ("9112 5.1: no-store after a space", ["Cache-Control : no-store"]),
    ("4.1: Vary: *", ["Vary: *"]),
    ("4.1: Vary: * among others", ["Vary: Accept, *"]),
]


def table(*groups: tuple[list[tuple[str, list[str]]], str]) -> list[object]:
    return [
        pytest.param(fields, expected, id=f"9111 {rule}".replace("9111 9112", "9112"))
        for rows, expected in groups
        for rule, fields in rows
    ]


@pytest.mark.parametrize(("fields", "expected"), table((FRESH, HIT), (STALE, REVALIDATED), (FOR_ONE, BYPASS)))
async def test_how_the_second_request_is_answered(
    harness: FeedHarness, fields: list[str], expected: str
) -> None:
    first = Raw(response(TAG, *fields))
    harness.server.answers = [first, first if expected == BYPASS else Raw(AGAIN)]
    assert await harness.how() in (MISS, BYPASS)
    assert await harness.how() == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param({"User_Agent": "a"}, {"User_Agent": "a"}, HIT, id="9111 4.1: the same field"),
        pytest.param({"User_Agent": "a"}, {"User_Agent": "b"}, MISS, id="9111 4.1: another"),
        pytest.param({"User_Agent": "a"}, {}, MISS, id="9111 4.1: none any more"),
        pytest.param({}, {"User_Agent": "a"}, MISS, id="9111 4.1: one now"),
    ],
)
async def test_what_vary_selects(
    harness: FeedHarness, first: dict[str, str], second: dict[str, str], expected: str
) -> None:
    harness.server.answers = [Raw(response(TAG, "Cache-Control: max-age=60", "Vary: User-Agent"))]
    await harness.how(**first)
    assert await harness.how(**second) == expected


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        pytest.param("max-age=60", BYPASS, id="9111 3.5: not without leave"),
        pytest.param("public, max-age=60", HIT, id="9111 3.5: public"),
        pytest.param("s-maxage=60", HIT, id="9111 3.5: s-maxage"),
        pytest.param("must-revalidate, max-age=60", HIT, id="9111 3.5: must-revalidate"),
    ],
)
async def test_what_was_asked_with_a_password(harness: FeedHarness, control: str, expected: str) -> None:
    harness.server.answers = [Raw(response(TAG, f"Cache-Control: {control}"))]
    await harness.how(Authorization="Basic eDp5")
    assert await harness.how(Authorization="Basic eDp5") == expected
    assert await harness.how() == MISS  # and to nobody else


SENT = ["Cache-Control: max-age=0", f"Last-Modified: {in_(-DAY)}"]


@pytest.mark.parametrize(
    ("stored", "answer", "expected"),
    [
        pytest.param([TAG], [TAG], REVALIDATED, id="9111 4.3.4: the same tag"),
        pytest.param(['ETag: W/"1"'], [TAG], REVALIDATED, id="9111 4.3.4: as strong as weak"),
        pytest.param([TAG], ['ETag: "2"'], MISS, id="9111 4.3.4: another tag"),
        pytest.param([SENT[1]], [SENT[1]], REVALIDATED, id="9111 4.3.4: the same date"),
        pytest.param([SENT[1]], [f"Last-Modified: {in_(-2 * DAY)}"], MISS, id="9111 4.3.4: another date"),
        pytest.param([TAG], [], REVALIDATED, id="9111 4.3.4: without a validator"),
        pytest.param(
            [TAG, SENT[1]], [TAG, f"Last-Modified: {in_(0)}"], REVALIDATED, id="9111 4.3.4: the tag counts"
        ),
        pytest.param([], [], MISS, id="9110 13: an unexpected 304"),
    ],
)
async def test_what_a_304_is_about(
    harness: FeedHarness, stored: list[str], answer: list[str], expected: str
) -> None:
    first = Raw(response(SENT[0], *stored))
    harness.server.answers = [first, Raw(response(*answer, status="304 x", body=b"")), first]
    if not stored:
        harness.server.answers[1] = first
    await harness.how()
    assert await harness.how() == expected


async def test_a_304_renews_what_is_stored(harness: FeedHarness) -> None:
    """RFC 9111 3.2 and 4.3.4: the fields of the 304, but those that describe the content; Age begins anew."""
    old = response(TAG, "Cache-Control: max-age=0", "Age: 999", "Content-Type: text/plain", "Expires: 0")
    new = response(
        TAG,
        "Cache-Control: max-age=600",
        f"Date: {in_(-5)}",
        "Content-Type: text/html",
        status="304 x",
        body=b"",
    )
    harness.server.answers = [Raw(old), Raw(new)]
    await harness.how()
    assert await harness.how() == REVALIDATED
    reply = await harness.ask()
    assert reply.headers["Cache-Status"] == "clamproxy; hit"
    assert reply.headers["Cache-Control"] == "max-age=600"
    assert reply.headers["Content-Type"] == "text/plain"
    assert int(reply.headers["Age"]) < 60
    assert len(harness.server.asked) == 2


async def test_what_is_passed_on(harness: FeedHarness) -> None:
    """RFC 9110 7.6.1: neither fields for one connection nor what they name; RFC 9111 7.3: no cookies."""
    hop = [
        "Connection: X-Hop, close",
        "X-Hop: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: close",
        "Upgrade: x",
    ]
    once = ["Set-Cookie: a=b", "Proxy-Authenticate: Basic", "Trailer: X-T", "TE: x", 'Warning: 110 - "x"']
    kept = ["Cache-Control: max-age=60", "Content-Type: text/plain", f"Last-Modified: {in_(-DAY)}"]
    harness.server.answers = [Raw(response(TAG, *hop, *once, *kept))]
    for _ in range(2):
        names = {name.lower() for name, _ in (await harness.ask()).headers}
        assert names == {
            *("etag", "cache-control", "content-type", "last-modified", "content-length", "accept-ranges"),
            *("age", "date", "via", "cache-status"),
        }


async def test_what_a_feed_is_asked_with(harness: FeedHarness) -> None:
    """RFC 9110 7.6.1: a client's fields for its own connection go no further, nor what they name."""
    harness.server.answers = [Raw(response())]
    await harness.ask(
        Connection="close, X-Hop, User-Agent",
        X_Hop="1",
        User_Agent="x",
        Keep_Alive="300",
        Proxy_Connection="keep-alive",
        Proxy_Authorization="Basic eDp5",
        TE="trailers",
        Upgrade="h2c",
        Cookie="a=b",
        Range="bytes=0-9",
        Expect="100-continue",
        Accept_Encoding="gzip",
        Via="1.0 inner",
    )
    names = [line.partition(":")[0].lower() for line in harness.server.asked[0].head.splitlines()[1:]]
    assert sorted(names) == ["accept", "accept-encoding", "connection", "host", "via"]
    assert "Accept-Encoding: identity" in harness.server.asked[0].head
    assert "Via: 1.0 inner, 1.1 clamproxy-test" in harness.server.asked[0].head
