"""A machine: a client with its own address, written as a generator that an epoll loop drives."""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.load.asking import HOST, Entry, Fetch, agent, request, tunnel_request
from clamproxy.formats.header import HEADER_SIZE

CONNECT_TIMEOUT = 30.0
"""Seconds until the tunnel, or TLS, must be established (freshclam's ConnectTimeout,
docs/protocol.md 1.1)."""
RECEIVE_TIMEOUT = 60.0
"""Seconds without a byte after which a machine gives up (ReceiveTimeout)."""

_HEAD_LIMIT = 1 << 16
_RECORD = 1 << 14
"""Size of the largest TLS record. Records are read whole, as epoll doesn't know about an unread rest."""
_TLS_BITES = 16
"""How many TLS records a machine reads before it is the next one's turn."""
_BUFFER = memoryview(bytearray(1 << 20))
_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)

type Steps = Generator[None, None, None]
"""What a machine does; it yields when it has to wait for its socket."""


class FetchError(Exception):
    """A request that failed. The message is the kind of failure that is counted."""


class Watcher(Protocol):
    """The loop, as a machine sees it."""

    def watch(self, machine: Machine, fd: int, events: int) -> None:
        """Wake the machine on these events of a new socket."""

    def change(self, fd: int, events: int) -> None:
        """Wake it on other events."""


@dataclass(slots=True)
class Tally:
    """What the machines of one process have done.

    Attributes:
        done: machines that finished without a failure.
        requests: how many got the right response.
        size: bytes of their bodies.
        failures: by kind.
        first_bytes: for each request, seconds from before its connection to the first bytes of the
            response.
    """

    done: int = 0
    requests: int = 0
    size: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_bytes: list[float] = field(default_factory=list)


class Machine:
    """Fetches some objects, one after the other, once or repeatedly.

    Args:
        loop: wakes it.
        entry: how it reaches the server.
        fetches: what it asks for, in this order.
        tally: counts what it has done.
        address: its own address.
        tls: for an entry with TLS.
        keep_alive: use one connection for all requests; freshclam opens one for each.
        until: repeat everything until then, in monotonic seconds; None: do it once.
        verify: check SHA-256.

    Attributes:
        steps: what it does; nothing happens before the first step.
        phase: what it waits for: connect or receive.
        deadline: when that has taken too long, in monotonic seconds.
    """

    def __init__(
        self,
        loop: Watcher,
        entry: Entry,
        fetches: Sequence[Fetch],
        tally: Tally,
        *,
        address: str,
        tls: ssl.SSLContext | None = None,
        keep_alive: bool = False,
        until: float | None = None,
        verify: bool = False,
    ) -> None:
        user_agent = agent()
        self.steps = self._run()
        self.phase = "connect"
        self.deadline = 0.0
        self._loop = loop
        self._entry = entry
        self._tunnel = tunnel_request(entry, user_agent)
        self._asked = [(f, request(entry, f, user_agent, keep_alive=keep_alive)) for f in fetches]
        self._tally = tally
        self._address = address
        self._tls = tls
        self._keep_alive = keep_alive
        self._until = until
        self._verify = verify
        self._sock: socket.socket | None = None

    def _run(self) -> Steps:
        """Fetch everything. A failure is counted and ends the machine: nothing is retried."""
        try:
            while True:
                for fetch, head in self._asked:
                    yield from self._fetch(fetch, head)
                if self._until is None or time.monotonic() >= self._until:
                    break
            self._tally.done += 1
        except FetchError as error:
            self._tally.failures[str(error)] += 1
        except OSError as error:
            self._tally.failures[type(error).__name__] += 1
        finally:
            self._close()

    def _fetch(self, fetch: Fetch, head: bytes) -> Steps:
        start = time.monotonic()
        sock = self._sock
        if sock is None:
            self.phase, self.deadline = "connect", start + CONNECT_TIMEOUT
            # Without tunnel and TLS, the request is sent with the connection's first segment.
            early = not self._tunnel and not self._tls
            sock = yield from self._connect(head if early else self._tunnel)
            if not early:
                sock.send(head)
        else:
            sock.send(head)
        self.phase, self.deadline = "receive", time.monotonic() + RECEIVE_TIMEOUT
        answer, rest = yield from self._read_head(sock)
        answer = answer.lower()
        self._tally.first_bytes.append(time.monotonic() - start)
        size = _announced(answer, fetch)
        yield from self._read_body(sock, fetch, rest, size)
        self._tally.requests += 1
        self._tally.size += size
        if not self._keep_alive or b"\r\nconnection: close" in answer:
            self._close()

    def _connect(self, first: bytes) -> Generator[None, None, socket.socket]:
        """Open a connection, with its tunnel and TLS if it has any; `first` is sent before TLS."""
        sock = self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # The port is chosen when connecting, so that only the pairs of addresses must differ (ip(7)).
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        sock.bind((self._address, 0))
        sock.connect_ex(("127.0.0.1", self._entry.port))
        try:
            # Over loopback, the connection is usually established by now.
            sock.send(first)
            self._loop.watch(self, sock.fileno(), select.EPOLLIN)
        except BlockingIOError:
            self._loop.watch(self, sock.fileno(), select.EPOLLOUT)
            yield
            sock.send(first)
            self._loop.change(sock.fileno(), select.EPOLLIN)
        if self._tunnel:
            _, rest = yield from self._read_head(sock)
            if rest:
                raise FetchError("spoke first inside the tunnel")
        if self._tls is not None:
            sock = self._sock = yield from self._start_tls(sock, self._tls)
        return sock

    @staticmethod
    def _start_tls(sock: socket.socket, tls: ssl.SSLContext) -> Generator[None, None, ssl.SSLSocket]:
        secure = tls.wrap_socket(sock, server_hostname=HOST, do_handshake_on_connect=False)
        while True:
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                yield
            else:
                return secure

    @staticmethod
    def _read_head(sock: socket.socket) -> Generator[None, None, tuple[bytes, bytes]]:
        """Read up to the empty line; returns the head of a success, and what followed it."""
        data = b""
        while True:
            yield
            try:
                piece = sock.recv(_RECORD)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            if not piece:
                raise FetchError("cut in the head" if data else "closed without an answer")
            data += piece
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                break
            if len(data) > _HEAD_LIMIT:
                raise FetchError("no HTTP")
        if data[9:12] not in (b"200", b"206"):
            raise FetchError(f"status {data[9:12].decode('latin-1')}")
        return data[:end], data[end + 4 :]

    def _read_body(self, sock: socket.socket, fetch: Fetch, rest: bytes, size: int) -> Steps:
        count = len(rest)
        digest = hashlib.sha256(rest) if self._verify and fetch.sha256 else None
        header = rest[:HEADER_SIZE]
        # Bytes that aren't looked at are discarded inside the kernel, without copying them (tcp(7)).
        discard = self._tls is None and digest is None
        flags = socket.MSG_TRUNC if discard else 0
        bites = 1 if self._tls is None else _TLS_BITES
        while count < size:
            yield
            for _ in range(bites):
                wants_header = fetch.version is not None and len(header) < HEADER_SIZE
                try:
                    got = sock.recv_into(_BUFFER, len(_BUFFER), 0 if wants_header else flags)
                except (BlockingIOError, ssl.SSLWantReadError):
                    break
                if not got:
                    raise FetchError("cut in the body")
                if digest is not None:
                    digest.update(_BUFFER[:got])
                if wants_header:
                    header += _BUFFER[: min(got, HEADER_SIZE)]
                count += got
                if count >= size:
                    break
            self.deadline = time.monotonic() + RECEIVE_TIMEOUT
        if count > size or (digest is not None and digest.hexdigest() != fetch.sha256):
            raise FetchError("wrong bytes")
        if fetch.version is not None and _version(header) < fetch.version:
            raise FetchError("stale")

    def _close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _announced(head: bytes, fetch: Fetch) -> int:
    """The Content-Length; fails if it isn't the expected one."""
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        raise FetchError("no Content-Length")
    size = int(head[start + 17 :].split(b"\r\n", 1)[0])
    if fetch.size is not None and size != fetch.size:
        raise FetchError("wrong length")
    return size


def _version(header: bytes) -> int:
    fields = header.split(b":")
    return int(fields[2]) if fields[0] == b"ClamAV-VDB" else -1
