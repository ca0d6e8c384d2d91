"""What RFC 9110 and 9112 ask of a recipient of requests: a server, and a proxy towards its clients.

A row is: the section and what it asks for, what is sent, and the statuses of all that comes back before the
connection ends, which it always does. In what is sent, ``|`` ends a line, and

    {f}   a file of the cache in the form of the door: a path, or a URL
    {H}   Host and ``Connection: close``
    {h}   Host alone

What a proxy has to do when it forwards is in test_rfc_proxy.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.gateway import CDN, Way
from tests.support.raw_http import RawAnswer, exchange, parse_answers
from tests.support.site import Site, open_site, signed

NAME = "test-6.cvd.sign"
SIZE = 5170
EARLY, LATE = "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2038 00:00:00 GMT"
TAG = f'"{NAME}"'


@dataclass(frozen=True)
class Row:
    """What is asked for, and what has to come of it."""

    rule: str
    sent: str
    statuses: list[int]
    fields: dict[str, str | None] = field(default_factory=dict)
    """Of the first final answer; None: not there."""
    methods: tuple[str, ...] = ()
    half_closes: bool = False


def get(rule: str, fields: str, status: int, **answered: str | None) -> Row:
    """A GET of the file with some fields."""
    named = {name.replace("_", "-"): value for name, value in answered.items()}
    return Row(rule, f"GET {{f}} HTTP/1.1|{{H}}|{fields}||", [status], named)


CHUNKED = "Transfer-Encoding: chunked"

ROWS = [
    # The request line
    Row("9112 2.2: an empty line before the request line is ignored", "|GET {f} HTTP/1.1|{H}||", [200]),
    Row("9112 2.2: several are", "|||GET {f} HTTP/1.1|{H}||", [200]),
    Row(
        "9112 2.2: so is one after content",
        "POST {f} HTTP/1.1|{h}|Content-Length: 3||abc|GET {f} HTTP/1.1|{H}||",
        [405, 200],
    ),
    Row("9112 2.2: a bare LF may end a line", "GET {f} HTTP/1.1\n{h}\nConnection: close\n\n", [200]),
    Row("9112 2.2: a bare CR is not let through", "GET {f} HTTP/1.1|{H}|X: a\rb||", [400]),
    Row("9112 2.2: nor one in the request line", "GET {f}\r HTTP/1.1|{H}||", [400]),
    Row("9112 2.2: no white space before the first field", "GET {f} HTTP/1.1| X: y|{H}||", [400]),
    Row("9112 2.3: a higher minor version is HTTP/1.1", "GET {f} HTTP/1.7|{H}||", [200]),
    Row("9110 15.6.6: another major version", "GET {f} HTTP/2.0|{H}||", [505]),
    Row("9113 3.4: the preface of HTTP/2", "PRI * HTTP/2.0||SM||", [505]),
    Row("9110 15.6.6: HTTP/0.9 with a version", "GET {f} HTTP/0.9|{H}||", [505]),
    Row("9112 3: a request line has a version", "GET {f}|{H}||", [400]),
    Row("9112 2.3: HTTP is in upper case", "GET {f} http/1.1|{H}||", [400]),
    Row("9112 2.3: a version has two digits", "GET {f} HTTP/1.10|{H}||", [400]),
    Row("9112 3: no white space in the target", "GET {f} x HTTP/1.1|{H}||", [400]),
    Row("9112 3: more white space than needed", "GET  {f}\tHTTP/1.1|{H}||", [200]),
    Row("9112 3.1: a method is a token", "G,T {f} HTTP/1.1|{H}||", [400]),
    Row("9110 9.1: methods are in one case", "get {f} HTTP/1.1|{H}||", [405]),
    Row("9110 9.1: an unknown method", "FOO {f} HTTP/1.1|{H}||", [405], {"allow": "GET, HEAD"}),
    Row("9112 3: a method longer than any", "A" * 300 + " {f} HTTP/1.1|{H}||", [405]),
    Row("9112 3: a target longer than is taken", "GET {f}?" + "a" * 9000 + " HTTP/1.1|{H}||", [414]),
    Row("6585 5: more fields than are taken", "GET {f} HTTP/1.1|{H}|X: " + "x" * 40_000 + "||", [431]),
    Row("9110 4.2.1: a query", "GET {f}?a=b HTTP/1.1|{H}||", [200]),
    Row("9110 4.2.5: a fragment is no part of a target", "GET {f}#a HTTP/1.1|{H}||", [404]),
    Row("9112 3.2.4: * is for OPTIONS", "GET * HTTP/1.1|{H}||", [400]),
    # Host
    Row("9112 3.2: no Host in HTTP/1.1", "GET {f} HTTP/1.1|Connection: close||", [400]),
    Row("9112 3.2: nor in a higher minor version", "GET {f} HTTP/1.2|Connection: close||", [400]),
    Row("9112 3.2: HTTP/1.0 needs none", "GET {f} HTTP/1.0||", [200]),
    Row("9112 3.2: two Hosts", "GET {f} HTTP/1.1|{H}|Host: other.example||", [400]),
    Row("9112 3.2: the same Host twice", "GET {f} HTTP/1.1|{H}|{h}||", [400]),
    Row("9110 7.2: an empty Host", "GET {f} HTTP/1.1|Host:|Connection: close||", [200]),
    *(
        Row(
            f"9112 3.2: not a Host: {value!r}", f"GET {{f}} HTTP/1.1|Host: {value}|Connection: close||", [400]
        )
        for value in ("a b", "a/b", "u@a", "http://a", "[::1", "a:b", "a%zz", "\xff")
    ),
    *(
        Row(f"9112 3.2: a Host: {value!r}", f"GET {{f}} HTTP/1.1|Host: {value}|Connection: close||", [200])
        for value in ("a", "a:", "a:3128", "[::1]:8080", "x_y.example.", "a%20b")
    ),
    # Fields
    get("9112 5.1: no white space before the colon", "X : y", 400),
    get("9110 5.1: a name is a token", "X(y): z", 400),
    get("9110 5.1: a name has a character", ": z", 400),
    get("9112 5: a field has a colon", "Xyz", 400),
    get("9110 5.5: NUL in a value", "X: a\0b", 400),
    get("9110 5.5: another control character", "X: a\x1bb", 400),
    Row("9112 3.2: one in the target", "GET {f}\x01 HTTP/1.1|{H}||", [400]),
    get("9110 5.5: bytes beyond ASCII are let pass", "X: \xe4", 200),
    get(
        "9112 5.2: a folded field is read as one line",
        "Range: bytes=0-|\t9",
        206,
        content_range="bytes 0-9/5170",
    ),
    get("9110 5.3: a list in several fields", 'If-None-Match: "x"|If-None-Match: ' + TAG, 304),
    get("9110 5.6.1: empty members of a list", f'If-None-Match: , "x",, {TAG},', 304),
    # Content
    Row("9112 6.3: GET with content", "GET {f} HTTP/1.1|{H}|Content-Length: 3||abc", [200]),
    Row(
        "9112 6.3: what follows content is the next request",
        "GET {f} HTTP/1.1|{h}|Content-Length: 3||abcGET {f} HTTP/1.1|{H}||",
        [200, 200],
    ),
    Row(
        "9112 6.3: refused content is read, too",
        "POST {f} HTTP/1.1|{h}|Content-Length: 3||abcGET {f} HTTP/1.1|{H}||",
        [405, 200],
    ),
    Row("9112 6.3: both lengths", "POST {f} HTTP/1.1|{h}|Content-Length: 5|" + CHUNKED + "||0||", [400]),
    Row("9112 5.1: VT is no white space", "POST {f} HTTP/1.1|{H}|Transfer-Encoding:\x0bchunked||0||", [400]),
    Row("9112 6.3: two lengths", "POST {f} HTTP/1.1|{h}|Content-Length: 3|Content-Length: 4||abcd", [400]),
    *(
        Row(
            f"9110 8.6: not a length: {value!r}",
            f"POST {{f}} HTTP/1.1|{{h}}|Content-Length: {value}||abc",
            [400],
        )
        for value in ("", "-3", "+3", "3, 4", "0x3", "3.0", "3 3", "9" * 30)
    ),
    Row("9110 8.6: a length with zeros in front", "GET {f} HTTP/1.1|{H}|Content-Length: 0003||abc", [200]),
    Row("9110 15.5.14: more content than is read", "POST {f} HTTP/1.1|{h}|Content-Length: 1000000||", [413]),
    Row("9112 7.1: chunks", "GET {f} HTTP/1.1|{H}|" + CHUNKED + "||3|abc|10|0123456789abcdef|0||", [200]),
    Row(
        "9112 7.1: more chunks than are read",
        "POST {f} HTTP/1.1|{h}|" + CHUNKED + "||11000|" + "x" * 0x11000 + "|0||",
        [413],
    ),
    Row(
        "9112 7.1.1: extensions are ignored",
        "GET {f} HTTP/1.1|{H}|" + CHUNKED + '||3;a;b=c;d="e f"|abc|0;x||',
        [200],
    ),
    Row(
        "9112 7.1.2: so are trailers",
        "GET {f} HTTP/1.1|{H}|" + CHUNKED + "|Trailer: X||3|abc|0|X: y||",
        [200],
    ),
    Row(
        "9112 7.1.2: and the connection goes on after them",
        "GET {f} HTTP/1.1|{h}|" + CHUNKED + "||0|X: y||GET {f} HTTP/1.1|{H}||",
        [200, 200],
    ),
    *(
        Row(f"9112 7.1: not a chunk: {chunk!r}", f"GET {{f}} HTTP/1.1|{{h}}|{CHUNKED}||{chunk}|0||", [400])
        for chunk in ("zz|abc", "-1|abc", "+3|abc", "0x3|abc", "|abc", "3|abcdef", "3 3|abc", "f" * 40 + "|a")
    ),
    Row(
        "9112 6.3: content that ends too early",
        "POST {f} HTTP/1.1|{h}|Content-Length: 9||abc",
        [400],
        half_closes=True,
    ),
    Row(
        "9112 6.1: chunked is not last", "POST {f} HTTP/1.1|{h}|Transfer-Encoding: chunked, gzip||0||", [400]
    ),
    Row("9112 6.1: no chunked", "POST {f} HTTP/1.1|{h}|Transfer-Encoding: gzip||x", [400]),
    Row("9112 6.1: chunked twice", "POST {f} HTTP/1.1|{h}|" + CHUNKED + "|" + CHUNKED + "||0||", [400]),
    Row("9112 6.1: an empty list", "POST {f} HTTP/1.1|{h}|Transfer-Encoding:||", [400]),
    Row("9112 6.1: an unknown coding", "POST {f} HTTP/1.1|{h}|Transfer-Encoding: foo, chunked||0||", [501]),
    Row(
        "9112 6.1: a coding that isn't understood",
        "POST {f} HTTP/1.1|{h}|Transfer-Encoding: gzip, chunked||0||",
        [501],
    ),
    Row("9110 5.6.1: an empty member", "GET {f} HTTP/1.1|{H}|Transfer-Encoding: , chunked ,||0||", [200]),
    Row("9112 5.2: a folded length", "GET {f} HTTP/1.1|{H}|Content-Length:| 3||abc", [200]),
    Row("9112 5.2: one of two parts", "GET {f} HTTP/1.1|{H}|Content-Length: 3| 4||abc", [400]),
    Row("9112 5.2: a folded Host", "GET {f} HTTP/1.1|Connection: close|Host:| x||", [200]),
    Row("9112 5.2: one of two parts, too", "GET {f} HTTP/1.1|Connection: close|{h}| x||", [400]),
    Row("9112 7: codings in any case", "GET {f} HTTP/1.1|{H}|Transfer-Encoding: Chunked||0||", [200]),
    Row("9112 6.1: chunks in HTTP/1.0", "POST {f} HTTP/1.0|{h}|" + CHUNKED + "||0||", [400]),
    # Methods
    Row("9110 9.3.2: HEAD", "HEAD {f} HTTP/1.1|{H}||", [200], {"content-length": str(SIZE)}, ("HEAD",)),
    Row("9110 14.2: HEAD has no ranges", "HEAD {f} HTTP/1.1|{H}|Range: bytes=0-9||", [200], {}, ("HEAD",)),
    *(
        Row(f"9110 15.5.6: {method}", f"{method} {{f}} HTTP/1.1|{{H}}||", [405], {"allow": "GET, HEAD"})
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
    ),
    # Expectations
    Row(
        "9110 10.1.1: 100-continue",
        "POST {f} HTTP/1.1|{H}|Expect: 100-continue|Content-Length: 3||abc",
        [100, 405],
    ),
    Row(
        "9110 10.1.1: in any case",
        "POST {f} HTTP/1.1|{H}|Expect: 100-Continue|Content-Length: 3||abc",
        [100, 405],
    ),
    Row(
        "9110 10.1.1: a final status instead",
        "POST {f} HTTP/1.1|{h}|Expect: 100-continue|Content-Length: 99999||",
        [413],
    ),
    Row("9110 10.1.1: without content", "GET {f} HTTP/1.1|{H}|Expect: 100-continue||", [200]),
    Row("9110 10.1.1: in HTTP/1.0", "POST {f} HTTP/1.0|Expect: 100-continue|Content-Length: 3||abc", [405]),
    get("9110 10.1.1: another expectation may be ignored", "Expect: miracles", 200),
    # Connections
    Row("9112 9.3: a connection goes on", "GET {f} HTTP/1.1|{h}||GET {f} HTTP/1.1|{H}||", [200, 200]),
    Row("9112 9.3.2: pipelining", "GET {f} HTTP/1.1|{h}||" * 4 + "GET {f} HTTP/1.1|{H}||", [200] * 5),
    Row("9112 9.3: it goes on after an error", "GET {f}x HTTP/1.1|{h}||GET {f} HTTP/1.1|{H}||", [404, 200]),
    Row("9112 9.6: nothing is answered after close", "GET {f} HTTP/1.1|{H}||GET {f} HTTP/1.1|{H}||", [200]),
    Row(
        "9112 9.6: nothing is answered after an error of syntax", "GET {f}|{h}||GET {f} HTTP/1.1|{H}||", [400]
    ),
    Row("9110 7.6.1: options in any case", "GET {f} HTTP/1.1|{h}|Connection: Close||", [200]),
    Row("9110 7.6.1: among others", "GET {f} HTTP/1.1|{h}|Connection: x, close, y||", [200]),
    Row("9110 7.6.1: in one of two fields", "GET {f} HTTP/1.1|{h}|Connection: x|Connection: close||", [200]),
    Row("9112 9.3: HTTP/1.0 ends", "GET {f} HTTP/1.0|{h}||", [200], {"connection": "close"}),
    Row(
        "9112 9.3: a proxy keeps no HTTP/1.0 alive",
        "GET {f} HTTP/1.0|{h}|Connection: keep-alive||",
        [200],
        {"connection": "close"},
    ),
    Row("9112 9.6: a client that has said all", "GET {f} HTTP/1.1|{h}||", [200], half_closes=True),
    Row(
        "9112 9.6: and all of several requests",
        "GET {f} HTTP/1.1|{h}||GET {f} HTTP/1.1|{h}||",
        [200, 200],
        half_closes=True,
    ),
    get("9110 7.8: an upgrade is ignored", "Upgrade: h2c, websocket", 200, upgrade=None),
    get("9110 10.1.4: TE", "TE: trailers, deflate;q=0.5", 200, transfer_encoding=None),
    # Conditions and ranges
    get("9110 13.1.2: If-None-Match", f"If-None-Match: {TAG}", 304, etag=TAG),
    get("9110 13.1.2: weak comparison", f"If-None-Match: W/{TAG}", 304),
    get("9110 13.1.2: any", "If-None-Match: *", 304),
    get("9110 13.1.2: another tag", 'If-None-Match: "x"', 200),
    get("9110 13.1.3: If-Modified-Since", f"If-Modified-Since: {LATE}", 304),
    get("9110 13.1.3: no date", "If-Modified-Since: yesterday", 200),
    get("9110 13.1.3: RFC 850's form", "If-Modified-Since: Friday, 01-Jan-38 00:00:00 GMT", 304),
    get("9110 13.1.3: asctime's form", "If-Modified-Since: Fri Jan  1 00:00:00 2038", 304),
    get("9110 13.2.2: a tag outweighs a date", f'If-None-Match: "x"|If-Modified-Since: {LATE}', 200),
    get("9110 13.1.1: If-Match", f"If-Match: {TAG}", 200),
    get("9110 13.1.1: any", "If-Match: *", 200),
    get("9110 13.1.1: another tag", 'If-Match: "x", "y"', 412),
    get("9110 13.1.1: strong comparison", f"If-Match: W/{TAG}", 412),
    get("9110 13.1.4: If-Unmodified-Since", f"If-Unmodified-Since: {LATE}", 200),
    get("9110 13.1.4: a file that is newer", f"If-Unmodified-Since: {EARLY}", 412),
    get("9110 13.2.2: If-Match first", f'If-Match: "x"|If-None-Match: {TAG}', 412),
    get("9110 13.2.2: If-Match outweighs its date", f"If-Match: {TAG}|If-Unmodified-Since: {EARLY}", 200),
    get("9110 13.2.2: 304 before 206", f"If-None-Match: {TAG}|Range: bytes=0-9", 304, content_range=None),
    get(
        "9110 14.2: a range", "Range: bytes=0-9", 206, content_range=f"bytes 0-9/{SIZE}", content_length="10"
    ),
    get(
        "9110 14.1.2: the last bytes",
        "Range: bytes=-10",
        206,
        content_range=f"bytes {SIZE - 10}-{SIZE - 1}/{SIZE}",
    ),
    get(
        "9110 14.1.2: from a place on",
        "Range: bytes=5000-",
        206,
        content_range=f"bytes 5000-{SIZE - 1}/{SIZE}",
    ),
    get("9110 14.1.2: a last byte beyond the end", "Range: bytes=5000-99999", 206),
    get("9110 15.5.17: beyond the end", "Range: bytes=99999-", 416, content_range=f"bytes */{SIZE}"),
    get("9110 14.2: several ranges may get the whole", "Range: bytes=0-9,20-29", 200, content_range=None),
    get("9110 14.2: very many, too", "Range: bytes=" + ",".join(["0-"] * 500), 200),
    get("9110 14.1.1: an invalid range is ignored", "Range: bytes=9-2", 200),
    get("9110 14.2: an unknown unit, too", "Range: lines=0-9", 200),
    get("9110 13.1.5: If-Range", f"If-Range: {TAG}|Range: bytes=0-9", 206),
    get("9110 13.1.5: with another tag", 'If-Range: "x"|Range: bytes=0-9', 200),
    get("9110 13.1.5: with a weak tag", f"If-Range: W/{TAG}|Range: bytes=0-9", 200),
    get("9110 13.1.5: with another date", f"If-Range: {EARLY}|Range: bytes=0-9", 200),
    get("9110 13.1.5: without a range", 'If-Range: "x"', 200),
]

DOORS = {
    "absolute": f"http://{CDN}/{NAME}",
    "origin": f"/{NAME}",
    "tunnel": f"/{NAME}",
    "reverse": f"/{NAME}",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that has the file; tests only read."""
    site = open_site(tmp_path_factory.mktemp("rfc"), serving={"hosts": [CDN]})
    site.publish(6)
    assert site.gateway.ask(f"/{NAME}", Way.ABSOLUTE).status == 200
    yield site
    log = site.gateway.log
    site.close()
    assert "Traceback" not in log


def filled(text: str, door: str) -> bytes:
    for place, value in {"{f}": DOORS[door], "{H}": "{h}|Connection: close", "{h}": f"Host: {CDN}"}.items():
        text = text.replace(place, value)
    return text.replace("|", "\r\n").encode("latin-1")


def assert_decent(answers: list[RawAnswer], *, half_closed: bool = False) -> None:
    """What holds for all answers (RFC 9110 6.6.1, 8.6, 15.5.6, 15.6.6; trap 20).

    An answer may be on its way before it is known that the client will say no more.
    """
    for answer in answers:
        assert answer.version == "HTTP/1.1"
        assert answer.status not in (403, 429)
        assert ("date" in answer.headers) == (answer.status >= 200)
        assert ("content-length" in answer.headers) == (answer.status not in (100, 204, 304))
        assert ("allow" in answer.headers) == (answer.status in (204, 405))
        assert "cache-status" in answer.headers or answer.status < 200
    assert [answer.headers.get("connection") for answer in answers[:-1]] == [None] * (len(answers) - 1)
    assert answers[-1].headers.get("connection") in (("close", None) if half_closed else ("close",))


@pytest.mark.parametrize("row", ROWS, ids=[row.rule for row in ROWS])
@pytest.mark.parametrize("door", DOORS)
def test_row(site: Site, door: str, row: Row) -> None:
    port = site.gateway.reverse_port if door == "reverse" else site.gateway.port
    inside = f"{CDN}:80" if door == "tunnel" else None
    received = exchange(port, filled(row.sent, door), inside=inside, half_closes=row.half_closes)
    answers = parse_answers(received, row.methods)
    assert [answer.status for answer in answers] == row.statuses
    assert_decent(answers, half_closed=row.half_closes)
    (first, *_) = [answer for answer in answers if answer.status >= 200]
    assert {name: first.headers.get(name) for name in row.fields} == row.fields
    if first.status == 200 and not row.methods:
        assert first.body == signed(NAME)


@dataclass(frozen=True)
class Form:
    """A request whose target has a form of its own."""

    rule: str
    sent: str
    statuses: list[int]
    inside: str | None = None


C = f"{CDN}:80"
FORMS = [
    Form("9112 3.2.2: a scheme in any case", f"GET HTTP://{CDN}/{NAME} HTTP/1.1|{{H}}||", [200]),
    Form("9110 4.2.3: a host in any case", f"GET http://{CDN.upper()}/{NAME} HTTP/1.1|{{H}}||", [200]),
    Form("9110 4.2.3: the default port", f"GET http://{CDN}:80/{NAME} HTTP/1.1|{{H}}||", [200]),
    Form(
        "9112 3.2.2: Host doesn't count",
        f"GET http://{CDN}/{NAME} HTTP/1.1|Host: x|Connection: close||",
        [200],
    ),
    Form("9112 3.2.2: nor for the better", f"GET http://x.example/{NAME} HTTP/1.1|{{H}}||", [502]),
    Form("9112 3.2.2: no path", f"GET http://{CDN} HTTP/1.1|{{H}}||", [404]),
    Form("9112 3.2.2: no path, but a query", f"GET http://{CDN}?a=b HTTP/1.1|{{H}}||", [404]),
    Form("9110 4.2.1: no host", "GET http:///x HTTP/1.1|{H}||", [400]),
    Form("9110 4.2.4: userinfo", f"GET http://u:p@{CDN}/{NAME} HTTP/1.1|{{H}}||", [400]),
    Form("9110 4.2: another scheme", f"GET ftp://{CDN}/{NAME} HTTP/1.1|{{H}}||", [400]),
    Form("9110 4.2.1: a port that can't be one", f"GET http://{CDN}:99999/{NAME} HTTP/1.1|{{H}}||", [400]),
    Form("9110 4.2.1: an address in brackets", "GET http://[::1]:80/x HTTP/1.1|{H}||", [502]),
    Form("9112 3.2.1: a path may begin with two slashes", f"GET //{NAME} HTTP/1.1|{{H}}||", [200]),
    Form("9112 3.2.4: OPTIONS *", "OPTIONS * HTTP/1.1|{H}||", [204]),
    Form("9112 3.2.3: CONNECT has a port", f"CONNECT {CDN} HTTP/1.1|{{H}}||", [400]),
    Form("9112 3.2.3: of digits", f"CONNECT {CDN}: HTTP/1.1|{{H}}||", [400]),
    Form("9112 3.2.3: from 1", f"CONNECT {CDN}:0 HTTP/1.1|{{H}}||", [400]),
    Form("9112 3.2.3: to 65535", f"CONNECT {CDN}:65536 HTTP/1.1|{{H}}||", [400]),
    Form("9112 3.2.3: and no user", f"CONNECT u@{C} HTTP/1.1|{{H}}||", [400]),
    Form("9112 3.2.3: no path", f"CONNECT {C}/x HTTP/1.1|{{H}}||", [400]),
    Form("9112 3.2.3: no scheme", f"CONNECT http://{C} HTTP/1.1|{{H}}||", [400]),
    Form("9112 3.2.3: no origin form", "CONNECT / HTTP/1.1|{H}||", [400]),
    Form("9112 3.2.3: an address in brackets", "CONNECT [::1]:80 HTTP/1.1|{H}||", [502]),
    Form("9112 3.2.3: an address without", "CONNECT ::1:80 HTTP/1.1|{H}||", [400]),
    Form("9110 9.1: connect is another method", f"connect {C} HTTP/1.1|{{H}}||", [400]),
    Form("9110 9.3.6: CONNECT has no content", f"CONNECT {C} HTTP/1.1|{{H}}|Content-Length: 3||abc", [400]),
    Form("9110 9.3.6: nor chunks", f"CONNECT {C} HTTP/1.1|{{H}}|{CHUNKED}||0||", [400]),
    Form(
        "9112 9.3: a refused CONNECT ends nothing",
        f"CONNECT x.example:80 HTTP/1.1|{{h}}||GET http://{CDN}/{NAME} HTTP/1.1|{{H}}||",
        [502, 200],
    ),
    Form("9112 3.2.2: absolute form in a tunnel", f"GET http://{CDN}/{NAME} HTTP/1.1|{{H}}||", [200], C),
    Form("9110 7.4: one that leads elsewhere", f"GET http://x.example/{NAME} HTTP/1.1|{{H}}||", [421], C),
    Form("9110 7.4: or to another port", f"GET http://{CDN}:81/{NAME} HTTP/1.1|{{H}}||", [421], C),
    Form("9110 9.3.6: no CONNECT in a tunnel", f"CONNECT {C} HTTP/1.1|{{H}}||", [400], C),
]


@pytest.mark.parametrize("form", FORMS, ids=[form.rule for form in FORMS])
def test_form(site: Site, form: Form) -> None:
    received = exchange(site.gateway.port, filled(form.sent, "origin"), inside=form.inside)
    answers = parse_answers(received)
    assert [answer.status for answer in answers] == form.statuses
    assert_decent(answers)


@pytest.mark.parametrize("data", ["", "Content-Length: 0\r\n"])
def test_a_tunnel_opens(site: Site, data: str) -> None:
    """9110 9.3.6: no length in the answer, and what comes at once is inside."""
    connect = f"CONNECT {C} HTTP/1.1\r\nHost: {C}\r\nConnection: close\r\n{data}\r\n"
    received = exchange(site.gateway.port, connect.encode() + filled("GET {f} HTTP/1.1|{H}||", "tunnel"))
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 200 Connection established"
    assert parse_answers(rest)[0].body == signed(NAME)


def test_a_tunnel_of_a_client_that_has_said_all(site: Site) -> None:
    """9112 9.6: it has its answer, and the connection ends."""
    sent = f"CONNECT {C} HTTP/1.1\r\nHost: {C}\r\n\r\n".encode() + filled("GET {f} HTTP/1.1|{h}||", "tunnel")
    for odd in (b"", b"Upgrade: x\r\n"):
        received = exchange(site.gateway.port, sent[:-2] + odd + sent[-2:], half_closes=True)
        assert parse_answers(received.partition(b"\r\n\r\n")[2])[0].body == signed(NAME)


@pytest.mark.parametrize("content", [b"x\r\nabc", b"4\r\nabc"])
def test_content_that_cannot_be_read_after_100(site: Site, content: bytes) -> None:
    """9110 15.5.1: the client is told, although it was told to go on."""
    head = filled("GET {f} HTTP/1.1|{h}|Expect: 100-continue|Transfer-Encoding: chunked||", "origin")
    with socket.create_connection(("127.0.0.1", site.gateway.port), timeout=60) as client:
        client.sendall(head)
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as received:
            assert b"HTTP/1.1 400 " in received.read()
