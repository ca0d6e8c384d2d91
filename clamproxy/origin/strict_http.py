"""How a response is read: what RFC 9110 and RFC 9112 ask of a recipient, beneath urllib3.

http.client takes a truncated head for a complete one, loses all fields after a line that isn't one, knows
no interim response except 100, and guesses if the length makes no sense. So each head is read and put in
order here before http.client sees it.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any, BinaryIO

from urllib3.connection import HTTPConnection
from urllib3.exceptions import InvalidHeader

LARGEST_HEAD = 256 * 1024
"""The largest head in bytes, including the interim responses before it."""

# 101 isn't one of them: it ends HTTP on the connection, and nothing here asks for that.
_INTERIM = re.compile(rb"HTTP/1\.\d +1(?!01)\d\d\b")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(rb"\d{1,18}")
_CONTENT_LENGTH, _TRANSFER_ENCODING = b"content-length", b"transfer-encoding"

type _Fields = list[tuple[bytes, bytes]]


class StrictResponse(http.client.HTTPResponse):
    """A response on a connection.

    Args:
        is_last: whether the request had ``Connection: close``, so that no other may follow it.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, is_last: bool = False, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._socket = sock
        self._is_last = is_last

    def begin(self) -> None:
        """Read the head.

        Raises:
            InvalidHeader: the end of the content can't be determined, or the head doesn't end.
            http.client.HTTPException: the connection ended before the head did, or it isn't a head.
        """
        if self.headers is not None:
            return
        stream = self.fp
        status_line, fields = _read_head(stream)
        framing, is_doubtful = _framing(fields)
        kept = [field for field in fields if field[0].lower() not in (_CONTENT_LENGTH, _TRANSFER_ENCODING)]
        self.fp = io.BytesIO(_joined(status_line, kept + framing))
        try:
            super().begin()
        finally:
            self.fp = stream
        # RFC 9112 6.1 and 9.6.
        is_doubtful |= self.version == 10 and self.chunked
        self.will_close |= self._is_last or is_doubtful
        if self.length is None and not self.chunked and hasattr(self._socket, "suppress_ragged_eofs"):
            # Only close_notify tells the end from a cut: RFC 9112 9.8.
            self._socket.suppress_ragged_eofs = False


def _read_head(stream: BinaryIO) -> tuple[bytes, _Fields]:
    """The status line and fields of the final response; both empty if the connection has ended."""
    room = LARGEST_HEAD
    while True:
        lines: list[bytes] = []
        while True:
            line = stream.readline(room + 1)
            room -= len(line)
            if room < 0:
                raise InvalidHeader("a header without an end")
            if not line.endswith(b"\n"):
                if room + len(line) == LARGEST_HEAD and not line:
                    return b"", []
                raise http.client.IncompleteRead(line)
            if not line.strip(b"\r\n"):
                break
            lines.append(line)
        if not lines or not _INTERIM.match(lines[0]):
            return (lines[0] if lines else b"\r\n"), _parsed(lines[1:])


def _parsed(lines: list[bytes]) -> _Fields:
    """The fields, unfolded and without lines that aren't fields (RFC 9112 2.2, 5.1, 5.2)."""
    fields: _Fields = []
    is_field = False
    for line in lines:
        text = line.rstrip(b"\r\n").replace(b"\r", b" ").replace(b"\0", b" ")
        if text.startswith((b" ", b"\t")):
            if is_field:
                name, value = fields[-1]
                fields[-1] = (name, value + b" " + text.strip())
            continue
        name, colon, value = text.partition(b":")
        is_field = bool(colon) and _NAME.fullmatch(name.rstrip()) is not None
        if is_field:
            fields.append((name.rstrip(), value.strip()))
    return fields


def _framing(fields: _Fields) -> tuple[_Fields, bool]:
    """The one field that tells where the content ends, and whether another contradicts it (RFC 9112 6.3).

    Raises:
        InvalidHeader: it makes no sense.
    """
    codings, lengths = _members(fields, _TRANSFER_ENCODING), set(_members(fields, _CONTENT_LENGTH))
    if codings:
        if codings != [b"chunked"]:
            raise InvalidHeader("an unexpected Transfer-Encoding")
        return [(b"Transfer-Encoding", b"chunked")], bool(lengths)
    if not lengths:
        return [], False
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise InvalidHeader("an invalid Content-Length")
    return [(b"Content-Length", length)], False


def _members(fields: _Fields, wanted: bytes) -> list[bytes]:
    return [
        member.strip().lower()
        for name, value in fields
        if name.lower() == wanted
        for member in value.split(b",")
    ]


def _joined(status_line: bytes, fields: _Fields) -> bytes:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    return status_line + lines + b"\r\n" if status_line else b""


class StrictConnection(HTTPConnection):
    """A connection that reads its responses strictly, and ends after a request with ``Connection: close``."""

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        is_last = "close" in (headers or {}).get("Connection", "").lower()
        self.response_class = partial(StrictResponse, is_last=is_last)  # type: ignore[assignment]
        super().request(method, url, body, headers, **options)
