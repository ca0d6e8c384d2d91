"""What a machine asks for and how it reaches a server: the bytes that freshclam sends."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum

HOST = "database.clamav.net"


class Form(StrEnum):
    """How a request names its target (RFC 9112, 3.2)."""

    ORIGIN = "origin-form"
    """``GET /path``: the server is the mirror."""
    ABSOLUTE = "absolute-form"
    """``GET http://host/path``: the server is a proxy."""
    TUNNEL = "CONNECT"
    """``CONNECT host:port`` to a proxy, then ``GET /path``: what freshclam does."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to reach a server.

    Attributes:
        port: on 127.0.0.1.
        form: the form of the requests.
        ca_file: certificates to trust; None for plain HTTP.
    """

    port: int
    form: Form
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """One request, and what the response must be.

    Attributes:
        path: the path in the URL.
        size: bytes of the body; None for whatever is announced.
        sha256: hex digest of the body, for a machine that checks it.
        probe: ask only for the first 512 bytes, as freshclam does to learn the version.
        version: the lowest acceptable version in the header of the CVD; an older one is stale.
    """

    path: str
    size: int | None = None
    sha256: str = ""
    probe: bool = False
    version: int | None = None


def agent() -> str:
    """The User-Agent of another machine, with a new UUID (docs/protocol.md 1.1)."""
    return f"ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {uuid.uuid4()})"


def tunnel_request(entry: Entry, user_agent: str) -> bytes:
    """The head of the CONNECT that opens a tunnel; empty if the entry needs none."""
    if entry.form is not Form.TUNNEL:
        return b""
    authority = f"{HOST}:{443 if entry.ca_file else 80}"
    return _head(
        f"CONNECT {authority} HTTP/1.1",
        f"Host: {authority}",
        f"User-Agent: {user_agent}",
        "Proxy-Connection: Keep-Alive",
    )


def request(entry: Entry, fetch: Fetch, user_agent: str, *, keep_alive: bool = False) -> bytes:
    """The head of a GET, with the fields in freshclam's order (docs/protocol.md 1.1)."""
    absolute = entry.form is Form.ABSOLUTE
    url = f"http://{HOST}{fetch.path}" if absolute else fetch.path
    return _head(
        f"GET {url} HTTP/1.1",
        f"Host: {HOST}",
        *(["Range: bytes=0-511"] if fetch.probe else []),
        f"User-Agent: {user_agent}",
        "Accept: */*",
        *(["Proxy-Connection: Keep-Alive"] if absolute else []),
        *([] if keep_alive else ["Connection: close"]),
    )


def _head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()
