"""Heads of requests, before mitmproxy sees them. The rules one by one: tests/e2e/test_rfc_server.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.net.http import http1

from clamproxy.proxy.syntax import Refusal, check_head, options, unfold, with_path

PARTS = st.sampled_from(
    [
        *(
            b"GET",
            b"CONNECT",
            b"OPTIONS",
            b" ",
            b"\t",
            b"/",
            b"//x",
            b"*",
            b"http://a",
            b"http://a/b",
            b"a:80",
        ),
        *(
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"HTTP/2.0",
            b"Host",
            b":",
            b"a",
            b"[::1]",
            b"Content-Length",
            b"3",
            b"0",
        ),
        *(b"Transfer-Encoding", b"chunked", b",", b"gzip", b"\r", b"\0", b"\xff", b"\n"),
    ]
)
LINES = st.lists(st.builds(b"".join, st.lists(PARTS, max_size=8)), min_size=1, max_size=6)
GOOD_LINES = st.lists(
    st.sampled_from(
        [b"X: y", b" folded", b"Content-Length: 0", b"Connection: close", b"Te: x", b"X-\xe4: y"]
    ),
    max_size=4,
)


@given(LINES)
def test_any_bytes_are_refused_or_let_pass(lines: list[bytes]) -> None:
    try:
        check_head(unfold(lines))
    except Refusal as error:
        refusal = error
    else:
        return
    assert refusal.status in (400, 501, 505)
    assert str(refusal).isascii()


@given(GOOD_LINES)
def test_what_passes_has_one_length_and_one_host(lines: list[bytes]) -> None:
    """mitmproxy and the check read the same head: where a request ends can't be understood in two ways."""
    try:
        head = unfold([b"GET / HTTP/1.1", b"Host: a", *lines])
        check_head(head)
    except Refusal:
        return
    request = http1.read_request_head(head)
    assert http1.expected_http_body_size(request) in (0, None)
    assert len(request.headers.get_all("host")) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET http://a HTTP/1.1", (b"GET http://a/ HTTP/1.1", False)),
        (b"GET http://a:80?x=/y HTTP/1.1", (b"GET http://a:80/?x=/y HTTP/1.1", False)),
        (b"GET http://a/ HTTP/1.1", (b"GET http://a/ HTTP/1.1", True)),
        (b"GET http://a/b?c HTTP/1.1", (b"GET http://a/b?c HTTP/1.1", True)),
        (b"GET / HTTP/1.1", (b"GET / HTTP/1.1", True)),
        (b"GET /http://a HTTP/1.1", (b"GET /http://a HTTP/1.1", True)),
        (b"CONNECT a:80 HTTP/1.1", (b"CONNECT a:80 HTTP/1.1", True)),
        (b"", (b"", True)),
    ],
)
def test_with_path(line: bytes, expected: tuple[bytes, bool]) -> None:
    assert with_path(line) == expected


def test_unfold() -> None:
    assert unfold([b"GET / HTTP/1.1", b"A: b", b"  c", b"\td", b"E: f"]) == [
        b"GET / HTTP/1.1",
        b"A: b c d",
        b"E: f",
    ]
    with pytest.raises(Refusal):
        unfold([b"GET / HTTP/1.1", b" A: b"])


def test_options() -> None:
    fields = [(b"Connection", b" Close , x"), (b"Other", b"y"), (b"CONNECTION", b",Z,\x0bz")]
    assert list(options(fields, b"connection")) == [b"close", b"x", b"z", b"\x0bz"]
