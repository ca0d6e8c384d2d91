"""A fake gateway for the doctor, which answers correctly unless told otherwise."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate

from tests.support.forge import cvd_header, forge_cdiff, forge_keys

CDN = "database.clamav.net"
VERSION = 27800
PATCH = f"/daily-{VERSION}.cdiff"
HEADER = "/daily.cvd"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
HIT, MISS = "clamproxy; hit", "clamproxy; fwd=miss"

type Act = Callable[[socket.socket], object]
"""What is done with a connection in place of an answer."""


def answer(status: int, body: bytes = b"", length: int | None = None, /, **fields: str) -> bytes:
    """A whole answer, of `length` if not the body's; ``cache_status="x"`` becomes ``Cache-Status: x``."""
    lines = [f"HTTP/1.1 {status} Some Reason", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def from_clamproxy(
    status: int,
    body: bytes = b"",
    cache_status: str = HIT,
    at: float | None = None,
    length: int | None = None,
) -> bytes:
    """An answer of a clamproxy whose clock says `at`."""
    date = formatdate(time.time() if at is None else at, usegmt=True)
    return answer(status, body, length, cache_status=cache_status, via="1.1 clamproxy-0badc0de", date=date)


def in_words(status: int, reason: str) -> bytes:
    """An answer of clamproxy with a text instead of a file."""
    return from_clamproxy(status, f"clamproxy: {reason}\n".encode(), "clamproxy; fwd=miss; detail=error")


def header(version: int = VERSION, age: float = 3600.0) -> bytes:
    """512 bytes like the beginning of a CVD."""
    return cvd_header(version, int(time.time() - age), b"digest of 16 byt", forge_keys())


def patch(version: int = VERSION) -> bytes:
    """A signed cdiff."""
    return forge_cdiff("daily", version)


def close(_: socket.socket) -> None:
    """Close without an answer."""


def stay_silent(stream: socket.socket) -> None:
    """Say nothing until the other side leaves."""
    stream.settimeout(20)
    with contextlib.suppress(OSError):
        stream.recv(1)


def drip(stream: socket.socket) -> None:
    """Send a byte now and then, without end."""
    for byte in b"HTTP/1.1 200 " + b"x" * 200:
        stream.sendall(bytes([byte]))
        time.sleep(0.05)


@dataclass
class FakeGateway:
    """A proxy on loopback, whose attributes say what it does."""

    connect: bytes | Act = ESTABLISHED
    files: dict[str, bytes | Act] = field(default_factory=dict)
    """Whole answers by path."""
    tls: ssl.SSLContext | None = None
    """How it speaks TLS in tunnels to port 443; None: it doesn't."""
    seen: list[str] = field(default_factory=list)
    """The heads of the requests."""

    def __post_init__(self) -> None:
        self.files = {
            HEADER: from_clamproxy(206, header()),
            "/main.cvd": from_clamproxy(206, header(62, age=90 * 86400)),
            "/bytecode.cvd": from_clamproxy(206, header(339, age=90 * 86400)),
            PATCH: from_clamproxy(200, patch()),
            **self.files,
        }
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                stream.settimeout(20)
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        try:
            head = self._read(stream)
            if head and self._do(stream, self.connect) and self.connect == ESTABLISHED:
                if ":443 " in head and self.tls is not None:
                    stream = self.tls.wrap_socket(stream, server_side=True)
                if head := self._read(stream):
                    self._do(stream, self.files.get(head.split()[1], in_words(404, "no file")))
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                stream.recv(4096)  # what is unread would turn the end into a reset
            stream.close()

    def _do(self, stream: socket.socket, what: bytes | Act) -> bool:
        if isinstance(what, bytes):
            stream.sendall(what)
            return True
        what(stream)
        return False

    def _read(self, stream: socket.socket) -> str:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = stream.recv(1)
            if not piece:
                return ""
            head += piece
        self.seen.append(head.decode("latin-1"))
        return self.seen[-1]


@contextlib.contextmanager
def gateways() -> Iterator[Callable[..., FakeGateway]]:
    """Makes fake gateways, and stops them at the end."""
    opened: list[FakeGateway] = []

    def make(
        connect: bytes | Act = ESTABLISHED,
        files: dict[str, bytes | Act] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> FakeGateway:
        opened.append(FakeGateway(connect, files or {}, tls))
        return opened[-1]

    yield make
    for gateway in opened:
        gateway.close()
