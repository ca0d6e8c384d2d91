"""Checks the head of a request as RFC 9110 and 9112 require of a server. Pure: bytes in, verdict out.

mitmproxy's own parser runs after this and accepts more: it was made to show traffic, not to judge it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?")
"""RFC 3986 3.2.2 and 3.2.3, without userinfo. Host may be empty: RFC 9110 7.2."""
CONTROL = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Control characters, except HTAB and those that end a line."""
_NO_PATH = re.compile(rb"(\S+\s+[A-Za-z]+://[^/?#\s]+)(\?\S*\s.*|\s.*)")
"""A request line with a target in absolute form that has no path, with or without a query."""

type Fields = list[tuple[bytes, bytes]]
"""Names in lower case, and values without surrounding white space."""


class Refusal(Exception):
    """A request that is answered with an error before anything looks at what it asks for."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def unfold(lines: Sequence[bytes]) -> list[bytes]:
    """Join each field that is folded over several lines into one line (RFC 9112 5.2).

    Raises:
        Refusal: a continuation line has no field to belong to (2.2).
    """
    unfolded: list[bytes] = []
    for line in lines:
        if not unfolded or not line.startswith((b" ", b"\t")):
            unfolded.append(line)
        elif len(unfolded) == 1:
            raise Refusal(400, "white space before the first field")
        else:
            unfolded[-1] += b" " + line.strip(b" \t")
    return unfolded


def check_head(lines: Sequence[bytes]) -> None:
    """Check the head of a request.

    Args:
        lines: the request line and the fields, unfolded and without line ends.

    Raises:
        Refusal: it is malformed or not supported; the status is 400, 501 or 505.
    """
    if any(b"\r" in line or CONTROL.search(line) for line in lines):
        # RFC 9112 2.2 and 3.2, RFC 9110 5.5
        raise Refusal(400, "a bare CR or another control character in the header")
    method, version = _check_request_line(lines[0])
    fields = list(_fields(lines[1:]))
    _check_host(fields, version)
    _check_length(fields, method, version)


def with_path(line: bytes) -> tuple[bytes, bool]:
    """A request line with a path added if its target had none, and whether it had one (RFC 9110 4.2.3)."""
    match = _NO_PATH.fullmatch(line)
    return (b"/".join(match.groups()), False) if match else (line, True)


def options(fields: Sequence[tuple[bytes, bytes]], name: bytes) -> Iterator[bytes]:
    """The members of a list field, in lower case (RFC 9110 5.6.1).

    Args:
        fields: of a message, names in any case.
        name: of the field, in lower case; it may occur several times.
    """
    for one, value in fields:
        if one.lower() == name:
            yield from (member.lower() for part in value.split(b",") if (member := part.strip(b" \t")))


def _check_request_line(line: bytes) -> tuple[bytes, bytes]:
    parts = line.split()
    if len(parts) != 3:
        raise Refusal(400, "a request line has a method, a target and a version")
    method, target, version = parts
    match = _VERSION.fullmatch(version)
    if match is None:
        raise Refusal(400, "the version of HTTP can't be read")
    if match[1] != b"1":
        raise Refusal(505, "only HTTP/1.0 and HTTP/1.1")
    if not _TOKEN.fullmatch(method):
        raise Refusal(400, "the method is not a token")
    is_connect = method.upper() == b"CONNECT"
    if is_connect and (method != b"CONNECT" or target.startswith((b"/", b"*")) or b"://" in target):
        raise Refusal(400, "CONNECT takes HOST:PORT")  # RFC 9112 3.2.3
    if target == b"*" and method != b"OPTIONS":
        raise Refusal(400, "* is for OPTIONS")  # RFC 9112 3.2.4
    return method, version


def _fields(lines: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise Refusal(400, "a line of the header is not a field")  # RFC 9112 5.1
        yield name.lower(), value.strip(b" \t")


def _check_host(fields: Fields, version: bytes) -> None:
    """Require one valid Host (RFC 9112 3.2)."""
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1:
        raise Refusal(400, "more than one Host")
    if not hosts and version != b"HTTP/1.0":
        raise Refusal(400, "no Host")
    if hosts and not HOST.fullmatch(hosts[0]):
        raise Refusal(400, "Host is neither a name nor an address")


def _check_length(fields: Fields, method: bytes, version: bytes) -> None:
    """Require that there is no doubt where the content ends (RFC 9112 6.1 to 6.3)."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = list(options(fields, b"transfer-encoding"))
    is_coded = any(name == b"transfer-encoding" for name, _ in fields)
    if is_coded and lengths:
        raise Refusal(400, "both Transfer-Encoding and Content-Length")
    if is_coded and version == b"HTTP/1.0":
        raise Refusal(400, "Transfer-Encoding in HTTP/1.0")
    if is_coded and (not codings or codings[-1] != b"chunked" or b"chunked" in codings[:-1]):
        raise Refusal(400, "Transfer-Encoding does not end in one chunked")
    if len(codings) > 1:
        raise Refusal(501, "chunked is the only transfer coding that is supported")
    if len(lengths) > 1 or any(re.fullmatch(rb"[0-9]{1,18}", length) is None for length in lengths):
        raise Refusal(400, "Content-Length is not one number of bytes")
    if method == b"CONNECT" and (is_coded or any(int(length) for length in lengths)):
        raise Refusal(400, "CONNECT has no content")  # RFC 9110 9.3.6
