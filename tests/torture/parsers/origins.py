"""What the origin, feeds, parent proxies and name servers answer."""

from __future__ import annotations

import http.client
import io
import socket
import time
from email.message import Message
from typing import Any, cast

import urllib3
from urllib3.exceptions import InvalidHeader
from werkzeug.datastructures import Headers

from clamproxy.config.units import HttpProxy
from clamproxy.feeds import sharing_rules
from clamproxy.feeds.sharing_rules import ResponseHead
from clamproxy.feeds.target import Target, TargetError
from clamproxy.formats.version_record import LONGEST_RECORD, VersionRecord, compose, with_versions
from clamproxy.origin.errors import OriginError
from clamproxy.origin.link import Link
from clamproxy.origin.proxy_auth import Login, LoginError
from clamproxy.origin.response import OriginResponse
from clamproxy.origin.scope import CancelScope
from clamproxy.origin.strict_http import StrictResponse
from tests.torture.parsers.parser import Parser

_NOW = 1_790_000_000.0


class _Received:
    """A socket on which all of an answer has arrived."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def _response(data: bytes) -> None:
    parsed = StrictResponse(cast(socket.socket, _Received(data)), method="GET")
    parsed.begin()
    fields = urllib3.HTTPHeaderDict(cast(Message, parsed.headers).items())
    raw = urllib3.HTTPResponse(
        body=cast(Any, parsed),
        headers=fields,
        status=parsed.status,
        preload_content=False,
        decode_content=False,
    )
    with OriginResponse(raw, lambda _: None, CancelScope(), Link()) as response:
        _ = (response.encoding, response.redirects, response.retry_after, response.start, response.etag)
        _ = (response.last_modified, response.date, response.ray, response.is_forbidden)
        assert response.size is None or response.size >= 0
        assert response.words().isprintable()
        for _ in response.chunks():
            pass


def _head(data: bytes) -> ResponseHead:
    lines = (line.partition(b":")[::2] for line in data.replace(b"\r", b" ").split(b"\n") if b":" in line)
    fields = Headers([(name.decode("latin-1"), value.decode("latin-1").strip()) for name, value in lines])
    return ResponseHead(sharing_rules.kept(urllib3.HTTPHeaderDict(fields)), _NOW - 1, _NOW)


def _feed(data: bytes) -> None:
    head, request = _head(data), Headers({"Cache-Control": " ".join(data[:80].decode("latin-1").split())})
    sharing_rules.is_shareable(request, head)
    assert 0 <= sharing_rules.lifetime(head) < 2**32
    assert 0 <= sharing_rules.age(head, _NOW + 5) < 2**32
    assert sharing_rules.expires_at(head) >= _NOW
    sharing_rules.is_fresh(head, request, _NOW + 5)
    sharing_rules.serves_on_error(head, _NOW + 5, 60)
    sharing_rules.is_selected(sharing_rules.selection(head, request), request)
    renewed = sharing_rules.renewed(head, head)
    sharing_rules.is_confirmed_by(renewed, head)
    sharing_rules.validators(renewed)


def _redirect(data: bytes) -> None:
    asked = Target.parse("https://user:key@feed.example.net/list.txt?key=1")
    target = asked.follow(data.decode("latin-1"))
    assert target.credentials is None
    assert Target.parse(target.url).host == target.host.removesuffix(".")


def _record(data: bytes) -> None:
    text = data.decode("latin-1")
    composed = compose({"daily": 27800, "main": 62}, text, time.time())
    assert len(composed) <= LONGEST_RECORD
    assert composed.isascii()
    assert VersionRecord.parse(composed).versions["daily"] == 27800
    found = VersionRecord.parse(text, "other" if text.count(":") == 1 else "daily")
    assert all(0 < version < 2**31 for version in found.versions.values())
    if text.count(":") > 1:
        with_versions(text, {"daily": 1})


def _challenge(data: bytes) -> None:
    proxy = HttpProxy("http://proxy.example.net:3128", "user:secret", "ntlm")
    login = Login(proxy)
    login.first()
    login.next(data.decode("latin-1").split("\n"))


_NTLM = (
    b"NTLM TlRMTVNTUAACAAAADAAMADgAAAAFgoqiBevywvJykjAAAAAAAAAAAJgAmABEAAAACgC6RwAAAA9EAE8ATQBBAEkATgA"
    b"CAAwARABPAE0AQQBJAE4AAQAMAFMARQBSAFYARQBSAAQAFABlAHgAYQBtAHAAbABlAC4AYwBvAG0AAwAiAFMARQBSAFYARQB"
    b"SAC4AZQB4AGEAbQBwAGwAZQAuAGMAbwBtAAAAAAA="
)

PARSERS = (
    Parser(
        "response",
        _response,
        (
            b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nETag: "a"\r\n'
            b"Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\ncf-ray: 1-FRA\r\n\r\nabc",
            b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 3-5/10\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n"
            b"HTTP/1.0 429 Slow\r\nRetry-After: 120\r\nVia: 1.1 clamproxy\r\n\r\nwhy",
            b"HTTP/1.1 503 No\r\n"
            b"Cache-Status: x; hit, clamproxy; fwd=miss; fwd-status=403; detail=error\r\n\r\n",
            b"HTTP/1.1 302 Found\nLocation: /x\nContent-Encoding: gzip\nX: a\n b\n\n",
        ),
        (InvalidHeader, http.client.HTTPException, OriginError),
    ),
    Parser(
        "response of a feed",
        _feed,
        (
            b'Cache-Control: max-age=60, s-maxage="10", private\nAge: 5\nDate: Sun, 06 Nov 1994 08:49:37 GMT',
            b'Expires: 0\nVary: accept, *\nETag: W/"x"\nCache-Control: stale-if-error=10\nConnection: etag',
            b"Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\nContent-Type: text/plain",
        ),
    ),
    Parser(
        "redirect of a feed",
        _redirect,
        (b"/other", b"https://[2001:db8::1]:444/x?y", b"//u:p@host/", b"http://feed.example.net/"),
        (TargetError,),
    ),
    Parser(
        "version record",
        _record,
        (b"0.103.12:62:27800:1790000000:1:90:49192:339", b"27800:1790000000", b"::::::::"),
        (ValueError,),
    ),
    Parser(
        "challenge of a proxy", _challenge, (_NTLM, b"NTLM\nBasic realm=x", b"Negotiate YII="), (LoginError,)
    ),
)
