"""What clients, their balancers and the viewers of the pages send."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from functools import cache
from struct import error as StructError  # noqa: N812  (a class, whatever its name)
from typing import Any

from mitmproxy.net.http import http1
from mitmproxy.proxy.context import Context
from mitmproxy.test import taddons, tflow
from werkzeug.datastructures import Headers

from clamproxy.access.balancers import Balancers
from clamproxy.access.users import Users
from clamproxy.announcement import Announcer
from clamproxy.dates import http_date, parse_http_date
from clamproxy.feeds.sharing_rules import request_directives, wants_no_store
from clamproxy.fleet.agent import parse_agent, shown_address
from clamproxy.fleet.support import explain_end_of_life, is_end_of_life
from clamproxy.front.client_request import Caller, ClientRequest
from clamproxy.notes import UNKEPT
from clamproxy.objects import ObjectId, parse_path
from clamproxy.origin.agents import Agents
from clamproxy.proxy.dns_queries import CarefulLayer, Names
from clamproxy.proxy.ordinary import read_head
from clamproxy.proxy.proxy_protocol import LONGEST, ProxyProtocolError, announces, read_header
from clamproxy.proxy.syntax import Refusal, check_head, unfold, with_path
from clamproxy.ranges import Representation, is_precondition_met, select
from clamproxy.web.machines import Query
from clamproxy.web.pages import host_of, is_page
from tests.support.proxy_headers import LOCAL, binary_header, raw_header, text_header
from tests.torture.parsers.parser import Parser

_AGENT = b"ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 12345678-9abc-4def-8012-3456789abcde)"
_SIZE = 1000
_REPRESENTATIONS = (
    Representation(_SIZE, "tag", 1.7e9),
    Representation(None, None, 1.7e9),
    Representation(0, "tag"),
)


def _lane(data: bytes) -> None:
    # As `clamproxy.proxy.lane_connection` divides what arrives.
    found = read_head(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    if found is not None:
        request, fields = found
        assert request.method in ("GET", "HEAD", "CONNECT")
        assert 0 < request.port < 2**16
        assert not any("\r" in value or "\n" in value or "\0" in value for _, value in fields)


def _mitmproxy(data: bytes) -> None:
    """As `clamproxy.proxy.header_limits` reads the head, before mitmproxy goes on with it."""
    lines = unfold([line.removesuffix(b"\r") for line in data.partition(b"\r\n\r\n")[0].split(b"\n")])
    check_head(lines)
    lines[0], _ = with_path(lines[0])
    try:
        request = http1.read_request_head(lines)
        request.data.authority.decode("ascii")
    except ValueError:
        raise Refusal(400, "the target can't be read") from None


def _headers(data: bytes) -> Headers:
    lines = (
        line.partition(b":")[::2]
        for line in data.replace(b"\0", b" ").replace(b"\r", b" ").split(b"\n")
        if b":" in line
    )
    return Headers([(name.decode("latin-1"), value.strip().decode("latin-1")) for name, value in lines])


def _fields(data: bytes) -> None:
    caller = Caller("192.0.2.1", "192.0.2.2", 8080)
    request = ClientRequest("GET", "/daily.cvd", _headers(data), "http", "h", 80, caller=caller, started_at=0)
    assert request.content_length >= 0
    assert request.requester.version
    _ = (request.is_freshclams, request.is_doctors, request.is_relayed, request.asks_for_host)
    request_directives(request.headers)
    wants_no_store(request.headers)
    host_of(request.fields.get("host", ""))


def _ranges(data: bytes) -> None:
    headers = _headers(data)
    for representation in _REPRESENTATIONS:
        is_precondition_met(headers, representation)
        selection = select(headers, representation)
        assert selection.status in (200, 206, 304, 416)
        if representation.size is not None:
            assert 0 <= selection.start <= selection.start + selection.length <= representation.size


def _date(data: bytes) -> None:
    seconds = parse_http_date(data.decode("latin-1"))
    if seconds is not None:
        assert parse_http_date(http_date(seconds)) == int(seconds)


def _path(data: bytes) -> None:
    path = data.decode("latin-1")
    is_page(path)
    target = parse_path(path, frozenset({"daily", "main"}))
    if isinstance(target, ObjectId):
        assert ObjectId.parse(target.file_name) == target
        assert "/" not in target.file_name


def _user_agent(data: bytes) -> None:
    text = data.decode("latin-1")
    agent = parse_agent(text)
    Agents(None, UNKEPT).see(text)
    if agent is not None:
        assert all(part is None or part.isprintable() for part in (agent.uuid, agent.os, agent.arch))
        is_end_of_life(agent.freshclam, time.time())
        explain_end_of_life(agent.freshclam, time.time())


def _forwarded_for(data: bytes) -> None:
    balancers = Balancers()
    balancers.forwarding = [ipaddress.ip_network("192.0.2.0/24")]
    client = balancers.client_of("192.0.2.1", data.decode("latin-1").split("\n"))
    assert shown_address(client).isprintable()
    ipaddress.ip_address(client)


@cache
def _users() -> Users:
    """One user, with a hash that is quick to compare; to make the users takes some 100 ms."""
    return Users(["user:pbkdf2:sha256:1$salt$00"])


def _password(data: bytes) -> None:
    assert not asyncio.run(_users().admit(data.decode("latin-1")))


def _proxy_header(data: bytes) -> None:
    announces(data)
    header = read_header(data)
    if header is not None:
        assert header.length <= min(len(data), LONGEST)
        for address, port in header.ends or ():
            ipaddress.ip_address(address)
            assert 0 <= port < 2**16


async def _no_news(*_: object) -> None:
    """Nobody is asked."""


def _dns(data: bytes) -> None:
    names = Names(["current.cvd.clamav.net"], ["main", "daily", "other"], forwards_others=False)
    announcer = Announcer(lambda database, _: {"daily": 27800}.get(database), lambda: None, _no_news)
    with taddons.context() as context:  # type: ignore[no-untyped-call]
        layer = CarefulLayer(Context(tflow.tclient_conn(), context.options))
        for query in layer.unpack_message(data, from_client=True):
            answer = asyncio.run(names.answer(query, announcer))
            assert answer is not None
            assert len(answer.packed) <= 65535


def _dns_query(name: str, *more: bytes) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    head = bytes.fromhex("123401000001000000000000")
    return head[:11] + bytes([len(more)]) + labels + bytes.fromhex("0000100001") + b"".join(more)


def _query(data: bytes) -> Any:
    return Query.parse(data.decode("latin-1"))


_HEAD = (
    b"GET http://database.clamav.net/daily.cvd HTTP/1.1\r\nHost: database.clamav.net\r\n"
    b"User-Agent: "
    + _AGENT
    + b"\r\nConnection: close\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    b"Range: bytes=0-511\r\n\r\n"
)
_HEADS = (
    _HEAD,
    b"CONNECT database.clamav.net:443 HTTP/1.1\r\nHost: database.clamav.net:443\r\n"
    b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n",
    b"POST / HTTP/1.0\r\nHost: [::1]:80\r\nContent-Length: 3\r\nX: a\r\n b\r\n\r\nabc",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET http://h?q HTTP/1.1\nHost: h\n\n",
)

PARSERS = (
    Parser("request head, express lane", _lane, _HEADS),
    Parser("request head, mitmproxy", _mitmproxy, _HEADS, (Refusal,)),
    Parser(
        "request fields",
        _fields,
        (
            _HEAD,
            b"Content-Length: 12\nVia: 1.1 clamproxy, 1.0 a\nCache-Control: max-age=0\nPragma: no-cache",
            b"Content-Length: " + b"9" * 5000,
            b"Cache-Control: max-age=1, min-fresh=2, max-stale\nHost: gateway:8080\nConnection: close",
        ),
    ),
    Parser(
        "Range and If-*",
        _ranges,
        (
            b"Range: bytes=0-511",
            b"Range: bytes=-5\nIf-Range: Sun, 06 Nov 1994 08:49:37 GMT",
            b'Range: bytes=1-2,4-\nIf-Range: "tag"',
            b'If-None-Match: "a", W/"tag", *\nIf-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT',
            b'If-Match: "x"\nIf-Unmodified-Since: Sunday, 06-Nov-94 08:49:37 GMT',
        ),
    ),
    Parser(
        "HTTP date",
        _date,
        (
            b"Sun, 06 Nov 1994 08:49:37 GMT",
            b"Sunday, 06-Nov-94 08:49:37 GMT",
            b"Sun Nov  6 08:49:37 1994",
            b"Fri, 31 Dec 9999 23:59:59 -0001",
        ),
    ),
    Parser(
        "path of a database", _path, (b"/daily.cvd?version=27800", b"//daily-27800.cdiff", b"/main.cvd.sign")
    ),
    Parser("User-Agent", _user_agent, (_AGENT, b"ClamAV/0.103.0 (OS: a)", b"CVDUPDATE/1.2 (x)")),
    Parser(
        "X-Forwarded-For",
        _forwarded_for,
        (b"10.0.0.1, 192.0.2.7", b"[2001:db8::1]:80", b"fe80::1%eth0\n1.2.3.4:5"),
    ),
    Parser(
        "Proxy-Authorization",
        _password,
        (b"Basic dXNlcjp4", b"basic OjoK", b"Bearer x", b'Digest a=b, c="d"'),
    ),
    Parser(
        "PROXY header",
        _proxy_header,
        (
            text_header("192.0.2.9"),
            text_header("2001:db8::9", gateway=("2001:db8::1", 80)),
            b"PROXY UNKNOWN whatever\r\n",
            binary_header("192.0.2.9"),
            binary_header("2001:db8::9", gateway=("::1", 80), extra=b"\x04\0\1x"),
            LOCAL,
            raw_header(0x21, 0x11, b"short"),
        ),
        (ProxyProtocolError,),
    ),
    Parser(
        "DNS query",
        _dns,
        (
            _dns_query("current.cvd.clamav.net"),
            _dns_query("other.cvd.clamav.net", bytes.fromhex("00002904d0000000000000")),
            _dns_query("xn--mnchen-3ya.example"),
            bytes.fromhex("12340100000100000000000003777777c00c0001c00c"),
        ),
        (StructError,),
    ),
    Parser(
        "query of a page",
        _query,
        (b"q=a+b&state=behind&sort=-address&offset=10&limit=5&gateway=all", b"group=x%00&limit=%F0%9F"),
        (ValueError,),
    ),
)
