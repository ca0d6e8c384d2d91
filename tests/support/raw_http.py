"""HTTP byte by byte: requests that nobody would write, and everything that comes back."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.gateway import tunnel

LOCALHOST = "127.0.0.1"
LIMIT = 40.0
"""Seconds without a byte after which a connection counts as left open."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """One of several responses on a connection."""

    version: str
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


def exchange(
    port: int,
    data: bytes,
    *,
    inside: str | None = None,
    half_closes: bool = False,
    pause_at: int = 0,
    source: str = LOCALHOST,
) -> bytes:
    """Send bytes, perhaps inside a tunnel, and read until the other side closes the connection.

    Args:
        port: on loopback.
        data: what is sent.
        inside: the target of a CONNECT that is sent first.
        half_closes: whether to signal that no more will be sent.
        pause_at: this many bytes are sent first, and the rest a moment later.
        source: the client's address.

    Raises:
        TimeoutError: the connection is left open.
    """
    received = b""
    with socket.create_connection((LOCALHOST, port), LIMIT, source_address=(source, 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if inside is not None:
            tunnel(connection, inside)
        with contextlib.suppress(ConnectionError):
            if pause_at:
                connection.sendall(data[:pause_at])
                time.sleep(0.02)
            connection.sendall(data[pause_at:])
            if half_closes:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
    return received


def parse_answers(received: bytes, methods: Sequence[str] = ()) -> list[RawAnswer]:
    """Split what arrived on one connection into responses; fails if bytes belong to none.

    Args:
        received: all bytes.
        methods: of the requests, in order; GET for further ones.
    """
    answers: list[RawAnswer] = []
    asked = iter(methods)
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        assert end, head
        line, *fields = head.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)
        }
        is_final = int(status) >= 200
        method = next(asked, "GET") if is_final else ""
        has_body = is_final and method != "HEAD" and status not in ("204", "304")
        length = int(headers.get("content-length", len(received))) if has_body else 0
        assert len(received) >= length, head
        answers.append(RawAnswer(version, int(status), headers, received[:length]))
        received = received[length:]
    return answers


def listed(text: str) -> list[bytes]:
    """Byte strings that are written one after the other, for tables of odd requests.

    Args:
        text: raw, with Python's escapes. " ~ " or a line end separates two; <nothing> is an empty one.
    """
    written = (one.strip(" ") for line in text.strip("\n ").split("\n") for one in line.split(" ~ "))
    return [
        ("" if one == "<nothing>" else one).encode().decode("unicode_escape").encode("latin-1")
        for one in written
    ]
