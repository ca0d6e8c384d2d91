"""The client's side of a connection, without one: whatever bytes come, a request or a refusal comes of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders
from mitmproxy.test.tflow import tclient_conn

from clamproxy.proxy.header_limits import HeadLimits, LimitedServer

SNIPPETS = st.sampled_from(
    [
        *(
            b"GET ",
            b"OPTIONS ",
            b"CONNECT ",
            b"/",
            b"//a",
            b"*",
            b"http://a",
            b"http://a:80/b",
            b"http://a:\xd9\xa3/",
            b"a:80",
            b"?x",
        ),
        *(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b"\xff", b":", b","),
        *(
            b"Host: a\r\n",
            b"Content-Length: 3\r\n",
            b"Content-Length:\r\n",
            b"3",
            b"abc",
            b"zz\r\n",
            b"0\r\n\r\n",
        ),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"Connection: close\r\n",
        ),
        *(b"Expect: 100-continue\r\n", b"Transfer-Encoding:", b"chunked"),
    ]
)


def received(*pieces: bytes, mode: HTTPMode = HTTPMode.regular) -> list[object]:
    """What comes of the bytes: requests, and what is sent back."""
    context = Context(tclient_conn(), options.Options())
    context.client.sockname = ("192.0.2.1", 8080)
    context.server.address = ("a", 80) if mode is HTTPMode.transparent else None
    server = LimitedServer(context, HeadLimits(), mode)
    found: list[object] = []
    for event in (events.Start(), *(events.DataReceived(context.client, piece) for piece in pieces)):
        for command in server.handle_event(event):
            if isinstance(command, ReceiveHttp):
                found.append(command.event)
            elif isinstance(command, commands.SendData):
                found.append(command.data)
    return found


@pytest.mark.parametrize("mode", [HTTPMode.regular, HTTPMode.transparent])
@given(data=st.lists(SNIPPETS, max_size=16), ends=st.booleans())
def test_any_bytes(mode: HTTPMode, data: list[bytes], ends: bool) -> None:
    """Nothing is raised, and at most one answer is sent, which is a refusal."""
    head = b"".join(data) + (b"\r\n\r\n" if ends else b"")
    answers = [one for one in received(head, mode=mode) if isinstance(one, bytes)]
    assert len(answers) <= 1
    assert all(answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")) for answer in answers)


@given(st.lists(st.integers(1, 60), max_size=5))
def test_a_head_may_come_in_pieces(cuts: list[int]) -> None:
    head = b"\r\nGET /daily.cvd HTTP/1.0\r\nHost: x\r\nX: a\r\n  b\r\n\r\n"
    places = sorted({0, *(cut for cut in cuts if cut < len(head)), len(head)})
    pieces = [head[start:end] for start, end in itertools.pairwise(places)]
    (request,) = [one.request for one in received(*pieces) if isinstance(one, RequestHeaders)]
    assert (request.path, request.headers["x"]) == ("/daily.cvd", "a b")
    assert not request.scheme
    assert (request.host, request.port) == ("192.0.2.1", 8080)


@pytest.mark.parametrize(
    ("line", "host", "expected"),
    [
        (b"GET http://b.example:81/x HTTP/1.1", "b.example", "b.example:81"),
        (b"GET https://b.example/x HTTP/1.1", "b.example", "b.example"),
        (b"GET http://[::1]:81/x HTTP/1.1", "::1", "[::1]:81"),
    ],
)
def test_absolute_form(line: bytes, host: str, expected: str) -> None:
    """RFC 9112 3.2.2: Host is what the target says."""
    (found,) = received(line + b"\r\nHost: x\r\n\r\n")[:1]
    assert isinstance(found, RequestHeaders)
    assert found.request.scheme
    assert (found.request.host, found.request.headers["host"]) == (host, expected)


@pytest.mark.parametrize(
    "target", [b"http://a:\xd9\xa3/", b"http://\xe4/", b"http://a\xff.example/x", b"http://a:/"]
)
def test_targets_that_are_none(target: bytes) -> None:
    """mitmproxy takes Arabic digits for those of a port."""
    (answer,) = received(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert isinstance(answer, bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
