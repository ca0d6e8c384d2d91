"""Reads the heads of ordinary requests, the kind that machines send. Pure.

A request that is unusual in any way is not ordinary. The parser, llhttp from Node.js, is strict: no bare
LF, no folded field, no bare CR. This module rejects the odd requests that llhttp accepts all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from clamproxy.proxy.syntax import CONTROL, HOST, options

_ODD = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
"""Fields that announce content, or ask for more than a plain response."""
_PLAIN = re.compile(rb"(?:(http)://([0-9A-Za-z._-]+)(?::([0-9]{1,5}))?)?(/[!\"$-~]*)")
_TUNNEL = re.compile(rb"()([0-9A-Za-z._-]+):([0-9]{1,5})()")
_AGENT = re.compile(rb"\r\nUser-Agent: ([!-~](?:[ -~]*[!-~])?)\r\n")
_ANY_AGENT = b"*"
"""Replaces the User-Agent in a head that is remembered."""
_REMEMBERED = 256
"""Heads that are remembered; each takes a few KiB."""
_FIRST_LINE = re.compile(rb"(?:GET|HEAD) (?:http://[0-9A-Za-z._:-]+)?/[0-9A-Za-z._-]{1,40} HTTP/|CONNECT ")
"""How heads that are remembered start, such as those for ClamAV's files. A feed's URL may hold a key."""
_SECRET = b"authorization"
"""No head with a password is remembered."""
_TARGETS = {b"GET": _PLAIN, b"HEAD": _PLAIN, b"CONNECT": _TUNNEL}
"""What the target must look like, by method. The groups are scheme, host, port and path."""


type Fields = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What an ordinary request asks for."""

    method: str
    scheme: str
    """Empty in origin form and for CONNECT."""
    host: str
    """Empty in origin form."""
    port: int
    path: str
    fields: Fields
    """As they were parsed: the User-Agent may be another client's. `read_head` returns the client's own."""
    closes: bool
    """Whether the connection ends with the response, because the client wants that or speaks HTTP/1.0."""


class _Collector:
    """Collects what the parser finds."""

    __slots__ = ("fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, piece: bytes) -> None:
        self.target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def read_head(raw: bytes) -> tuple[RequestHead, Fields] | None:
    """Read the head of a request.

    The machines of a fleet all send the same heads, except for the UUID in their User-Agent. So the head
    is parsed with a placeholder for the client's User-Agent, once for all of them.

    Args:
        raw: up to and including the first empty line.

    Returns:
        What the request asks for, and its fields. None if it isn't an ordinary request.
    """
    match = _AGENT.search(raw)
    if match is None or _FIRST_LINE.match(raw) is None or _SECRET in raw.lower():
        head = _parse(raw)
        return None if head is None else (head, head.fields)
    start, end = match.span(1)
    head = _parse_once(raw[:start] + _ANY_AGENT + raw[end:])
    if head is None:
        return None
    fields = [*head.fields]
    fields[raw.count(b"\r\n", 0, start) - 1] = ("User-Agent", match[1].decode("ascii"))
    return head, fields


def _parse(raw: bytes) -> RequestHead | None:
    if CONTROL.search(raw) is not None:
        return None
    collector = _Collector()
    parser = HttpRequestParser(collector)
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:  # raised for CONNECT as well
        pass
    except HttpParserError:
        return None
    method, version = parser.get_method(), parser.get_http_version()
    form = _TARGETS.get(method)
    match = form.fullmatch(collector.target) if form is not None else None
    if match is None or version not in ("1.0", "1.1"):
        return None
    # The parser skips empty lines, and takes RTSP for HTTP.
    if not raw.startswith(b"%b %b HTTP/%b\r\n" % (method, collector.target, version.encode())):
        return None
    scheme, host, digits, path = match.groups(b"")
    port = int(digits or 80)
    closes = _read_fields(collector.fields)
    if closes is None or not 0 < port < 2**16:
        return None
    return RequestHead(
        method.decode("ascii"),
        scheme.decode("ascii"),
        host.decode("ascii"),
        port,
        path.decode("ascii"),
        tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in collector.fields),
        closes or version == "1.0",
    )


_parse_once = lru_cache(_REMEMBERED)(_parse)


def _read_fields(fields: list[tuple[bytes, bytes]]) -> bool | None:
    """Trim the values; returns whether the client wants the connection closed, or None if a field is odd."""
    hosts, closes = 0, False
    for number, (name, value) in enumerate(fields):
        field = name.lower()
        if field in _ODD:
            return None
        if value.endswith((b" ", b"\t")):
            fields[number] = (name, value := value.rstrip(b" \t"))
        if field == b"host":
            hosts += 1
            if HOST.fullmatch(value) is None:
                return None
        elif field == b"connection":
            closes = closes or b"close" in options([(field, value)], field)
    return closes if hosts == 1 else None
