"""Heads of requests that the express lane takes, and those that it leaves to mitmproxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.proxy.ordinary import read_head
from clamproxy.proxy.syntax import check_head, unfold

HOST = "database.clamav.net"


def head(line: str, *fields: str) -> bytes:
    return "".join(f"{one}\r\n" for one in (line, *fields, "")).encode("latin-1")


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (f"CONNECT {HOST}:443 HTTP/1.1", ("", HOST, 443, "")),
        (f"GET http://{HOST}/daily.cvd?a=b HTTP/1.1", ("http", HOST, 80, "/daily.cvd?a=b")),
        (f"HEAD http://{HOST}:81/ HTTP/1.0", ("http", HOST, 81, "/")),
        ("GET /daily-27800.cdiff HTTP/1.1", ("", "", 80, "/daily-27800.cdiff")),
    ],
)
def test_ordinary(line: str, target: tuple[str, str, int, str]) -> None:
    read = read_head(head(line, f"Host:{HOST} ", "User-Agent: ClamAV/1.4.6 (OS: Linux)\t"))
    assert read is not None
    asked, sent = read
    assert (asked.scheme, asked.host, asked.port, asked.path) == target
    assert (asked.method, asked.closes) == (line.split(maxsplit=1)[0], line.endswith("1.0"))
    assert list(sent) == [("Host", HOST), ("User-Agent", "ClamAV/1.4.6 (OS: Linux)")]


@pytest.mark.parametrize(
    ("field", "closes"),
    [("close", True), ("x, Close ,y", True), ("keep-alive", False), ("closed", False), ("", False)],
)
def test_connection(field: str, closes: bool) -> None:
    read = read_head(head("GET / HTTP/1.1", "Host: x", f"Connection: {field}"))
    assert read is not None
    assert read[0].closes == closes


@pytest.mark.parametrize(
    "fields",
    [
        ("User-Agent: * ", "Host: x", "User-Agent: a"),
        ("Host: x", "User-Agent: a", "User-Agent: b"),
        ("User-Agent: *", "Host: x", "X: User-Agent: a"),
        ("Host: x", "User-Agent: a", "Proxy-Authorization: Basic a"),
    ],
)
def test_heads_that_differ_by_the_user_agent_alone(fields: tuple[str, ...]) -> None:
    """They are parsed once; each keeps its own."""
    for number in (1, 2):
        sent = [field.replace("a", f"Agent-{number}") if field.endswith("a") else field for field in fields]
        read = read_head(head("GET / HTTP/1.1", *sent))
        assert read is not None
        assert list(read[1]) == [tuple(field.rstrip().split(": ", 1)) for field in sent]


GET = "GET / HTTP/1.1"


@pytest.mark.parametrize(
    "odd",
    [
        *(head(line, "Host: x") for line in ("get / HTTP/1.1", "POST / HTTP/1.1", "GET /")),
        *(head(line, "Host: x") for line in ("GET / HTTP/1.2", "GET / HTTP/2.0", "GET / HTTP/0.9")),
        *(head(line, "Host: x") for line in ("GET / RTSP/1.0", "GET / ICE/1.0", "GET  / HTTP/1.1")),
        *(head(line, "Host: x") for line in ("GET /#a HTTP/1.1", "GET * HTTP/1.1", "GET http://x HTTP/1.1")),
        *(head(line, "Host: x") for line in ("GET http://u@x/ HTTP/1.1", "GET https://x/ HTTP/1.1")),
        *(
            head(line, "Host: x")
            for line in ("CONNECT x HTTP/1.1", "CONNECT x:0 HTTP/1.1", "CONNECT / HTTP/1.1")
        ),
        *(head(f"CONNECT x:{port} HTTP/1.1", "Host: x") for port in (65536, 99999, 123456)),
        head(GET),
        head(GET, "Host: x", "Host: x"),
        head(GET, "Host: a b"),
        head(GET, "Host: x", "X : y"),
        head(GET, "Host: x", "X: a\0"),
        head(GET, "Host: x", "X: a\rb"),
        head(GET, "Host: x", "X: a\x01"),
        head(GET, "Host: x", "X: a\x7f"),
        head(GET, "Host: x", "X: a", "  b"),
        head(GET, "Host: x", "Content-Length: 0"),
        head(GET, "Host: x", "Transfer-Encoding: chunked"),
        head(GET, "Host: x", "Expect: 100-continue"),
        head(GET, "Host: x", "Connection: upgrade", "Upgrade: h2c"),
        b"\r\n" + head(GET, "Host: x"),
        head(GET, "Host: x").replace(b"\r\n", b"\n"),
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_odd(odd: bytes) -> None:
    assert read_head(odd) is None


_texts = st.text(st.characters(max_codepoint=255, exclude_characters="\n"), max_size=12)
_fields = st.lists(
    st.sampled_from(["Host: x", "Host: ", "X: y", " z", "X:", "Connection: close", "User-Agent: *"])
    | st.builds("User-Agent: {}".format, _texts)
    | _texts,
    max_size=5,
)


@given(
    line=st.sampled_from([GET, "HEAD /a HTTP/1.0", f"CONNECT {HOST}:80 HTTP/1.1"]) | _texts, fields=_fields
)
def test_what_is_ordinary_is_right(line: str, fields: list[str]) -> None:
    """Nothing passes that the gateway's own rules refuse, and nothing is read in another way."""
    raw = head(line, *fields)
    raw = raw[: raw.index(b"\r\n\r\n") + 4]
    read = read_head(raw)
    if read is not None:
        lines = raw.split(b"\r\n")[:-2]
        assert unfold(lines) == lines
        check_head(lines)
        said = [one.decode("latin-1").partition(":")[::2] for one in lines[1:]]
        assert list(read[1]) == [(name, value.strip(" \t")) for name, value in said]
