"""Load: many clients that download one file at once, cheap enough that the server is the limit.

Each client opens a new connection, as freshclam does for every request, and reads the whole
body. Plain bodies are discarded inside the kernel (``MSG_TRUNC``: nothing is copied); TLS
bodies are decrypted, which costs the client as much as the server. The clients are spread
over `PROCESSES` processes, each of which drives its share from a single selector loop, so
that no interpreter lock stands between two clients.
"""

from __future__ import annotations

import hashlib
import selectors
import socket
import ssl
import statistics
import sys
import time
import uuid
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from typing import Self

PROCESSES = 2
DEADLINE = 120.0
"""Seconds after which a run is given up."""

_HEAD_START = 0.05
"""Seconds between handing out a run and its start, so that all processes start together."""
_TLS_BITES = 16
"""TLS records (16 KiB each) that one client reads before the next has its turn."""
_DISCARD = socket.MSG_TRUNC if sys.platform == "linux" else 0

type Waiting[T] = Generator[int, None, T]
"""A step of a client: yields the selector event that it waits for, returns a T."""


class LoadError(Exception):
    """A download that didn't end as it should; a figure from it would be worthless."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is downloaded, and how one gets there.

    Attributes:
        address: where to connect: the server, or the proxy.
        host: the name in the URL, in SNI and in the certificate.
        path: the path in the URL.
        size: bytes of the body.
        sha256: hex digest of the body.
        proxied: ask a forward proxy: absolute-form if plain, CONNECT if TLS.
        ca_file: certificates to trust; None for plain HTTP.
    """

    address: tuple[str, int]
    host: str
    path: str
    size: int
    sha256: str
    proxied: bool = False
    ca_file: str | None = None

    def request(self) -> bytes:
        """The head of the request, in freshclam's order (protocol.md 1), a new UUID each time."""
        absolute = self.proxied and self.ca_file is None
        url = f"http://{self.host}{self.path}" if absolute else self.path
        return _head(f"GET {url} HTTP/1.1", self.host, "Accept: */*", "Connection: close")

    def connect_request(self) -> bytes:
        """The head of the CONNECT request that freshclam sends to a proxy."""
        authority = f"{self.host}:443"
        return _head(f"CONNECT {authority} HTTP/1.1", authority, "Proxy-Connection: Keep-Alive")


def _head(first_line: str, host: str, *others: str) -> bytes:
    agent = f"ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {uuid.uuid4()})"
    return "\r\n".join([first_line, f"Host: {host}", f"User-Agent: {agent}", *others, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class Sample:
    """One download; times in seconds of the machine's monotonic clock.

    Attributes:
        start: before the connection is opened.
        first_byte: when the first byte of the body had come: after connecting, CONNECT,
            TLS handshake and request.
        end: when the last byte of the body had come.
        cipher: protocol and cipher suite, or "plain".
    """

    start: float
    first_byte: float
    end: float
    cipher: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: the downloads of all its clients."""

    samples: list[Sample]
    size: int

    @property
    def wall(self) -> float:
        """Seconds from the first client's start to the last client's end."""
        return max(s.end for s in self.samples) - min(s.start for s in self.samples)

    @property
    def rate(self) -> float:
        """Throughput of all clients together, in bytes per second."""
        return self.size * len(self.samples) / self.wall

    @property
    def first_byte(self) -> float:
        """Median seconds to the first byte of the body."""
        return statistics.median(s.first_byte - s.start for s in self.samples)

    @property
    def cipher(self) -> str:
        """Protocol and cipher suite of the first client."""
        return self.samples[0].cipher


class Client:
    """One download, as a generator that a selector loop drives."""

    def __init__(self, target: Target, tls: ssl.SSLContext | None, buffer: bytearray, verify: bool) -> None:
        self._target = target
        self._tls = tls
        self._buffer = buffer
        self._digest = hashlib.sha256() if verify else None
        self._sock = socket.socket()
        self._sock.setblocking(False)
        self._received = 0
        self._first_byte = 0.0

    def fileno(self) -> int:
        """The descriptor that the loop watches; it stays the same under TLS."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def download(self) -> Waiting[Sample]:
        """Connect, request, read all.

        Raises:
            LoadError: not a 200 of the right length, or the wrong bytes.
        """
        start = time.monotonic()
        yield from self._connect()
        if self._tls is not None:
            yield from self._start_tls(self._tls)
        self._sock.sendall(self._target.request())
        yield from self._read_reply_head()
        yield from self._read_body()
        end = time.monotonic()
        if self._digest is not None and self._digest.hexdigest() != self._target.sha256:
            raise LoadError("the body has the right length and the wrong SHA-256")
        return Sample(start, self._first_byte, end, self._cipher())

    def _connect(self) -> Waiting[None]:
        self._sock.connect_ex(self._target.address)
        yield selectors.EVENT_WRITE
        if error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise LoadError(f"connecting failed with errno {error}")

    def _start_tls(self, tls: ssl.SSLContext) -> Waiting[None]:
        if self._target.proxied:
            self._sock.sendall(self._target.connect_request())
            _, rest = yield from self._read_head()
            if rest:
                raise LoadError("the proxy speaks first inside the tunnel")
        sock = tls.wrap_socket(self._sock, server_hostname=self._target.host, do_handshake_on_connect=False)
        self._sock = sock
        while True:
            try:
                return sock.do_handshake()
            except ssl.SSLWantReadError:
                yield selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                yield selectors.EVENT_WRITE

    def _read_head(self) -> Waiting[tuple[str, bytes]]:
        """Read up to the empty line.

        Returns:
            The head, and what came behind it.
        """
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                piece = self._sock.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                yield selectors.EVENT_READ
                continue
            data += piece
            if not piece or len(data) > 1 << 20:
                raise LoadError(f"no HTTP answer, but {data[:80]!r}")
        head, _, rest = data.partition(b"\r\n\r\n")
        text = head.decode("latin-1")
        if text.split(" ", 2)[1] != "200":
            raise LoadError(f"answered with {text.splitlines()[0]!r}")
        return text, rest

    def _read_reply_head(self) -> Waiting[None]:
        head, rest = yield from self._read_head()
        if f"content-length: {self._target.size}" not in head.lower().split("\r\n"):
            raise LoadError(f"not announced with its {self._target.size} bytes: {head!r}")
        if rest:
            self._take(memoryview(rest), len(rest))

    def _read_body(self) -> Waiting[None]:
        discard = self._tls is None and self._digest is None
        flags = _DISCARD if discard else 0
        bites = 1 if self._tls is None else _TLS_BITES
        buffer, room, size = memoryview(self._buffer), len(self._buffer), self._target.size
        while self._received < size:
            yield selectors.EVENT_READ
            for _ in range(bites):
                try:
                    count = self._sock.recv_into(buffer, room, flags)
                except (BlockingIOError, ssl.SSLWantReadError):
                    break
                self._take(buffer, count)
                if self._received >= size:
                    break
        if self._received > size:
            raise LoadError(f"{self._received} bytes instead of {size}")

    def _take(self, buffer: memoryview, count: int) -> None:
        if not count:
            raise LoadError(f"cut after {self._received} of {self._target.size} bytes")
        if not self._received:
            self._first_byte = time.monotonic()
        self._received += count
        if self._digest is not None:
            self._digest.update(buffer[:count])

    def _cipher(self) -> str:
        used = self._sock.cipher() if isinstance(self._sock, ssl.SSLSocket) else None
        return f"{used[1]} {used[0]}" if used else "plain"


def drive(clients: list[Client], deadline: float) -> list[Sample]:
    """Run clients to their ends in one selector loop.

    Args:
        clients: not yet started.
        deadline: when to give up, in seconds of the monotonic clock.

    Raises:
        LoadError: a download failed, or the deadline came.
    """
    samples: list[Sample] = []
    with selectors.DefaultSelector() as selector:
        for client in clients:
            steps = client.download()
            selector.register(client, next(steps), steps)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise LoadError(f"{len(selector.get_map())} clients had not ended after {DEADLINE:.0f} s")
            for key, _ in ready:
                try:
                    events = next(key.data)
                except StopIteration as end:
                    samples.append(end.value)
                    selector.unregister(key.fileobj)
                else:
                    if events != key.events:
                        selector.modify(key.fileobj, events, key.data)
    return samples


def run_clients(target: Target, count: int, verify: bool, start_at: float) -> list[Sample]:
    """Run one process's share of the clients.

    Args:
        target: what is downloaded.
        count: number of clients.
        verify: the first client checks the SHA-256.
        start_at: when to start, in seconds of the monotonic clock.
    """
    tls = None
    if target.ca_file is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(target.ca_file)
    buffer = bytearray(1 << 20)
    clients = [Client(target, tls, buffer, verify and not index) for index in range(count)]
    try:
        time.sleep(max(0.0, start_at - time.monotonic()))
        return drive(clients, start_at + DEADLINE)
    except OSError as error:
        raise LoadError(f"{type(error).__name__}: {error}") from None
    finally:
        for client in clients:
            client.close()


class LoadGenerator:
    """The processes that the clients live in; a context manager."""

    def __init__(self) -> None:
        context = get_context("spawn")
        together = context.Barrier(PROCESSES, timeout=DEADLINE)
        self._pool = ProcessPoolExecutor(PROCESSES, context, initializer=together.wait)

    def __enter__(self) -> Self:
        # One process is started per job; the barrier in each makes all wait for the last.
        list(self._pool.map(time.sleep, [0.0] * PROCESSES))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, target: Target, clients: int, *, verify: bool = False) -> Outcome:
        """Let a number of clients download the target, all starting at the same moment.

        Args:
            target: what is downloaded.
            clients: how many clients.
            verify: one of them checks the SHA-256; it has to copy and hash what it reads.

        Raises:
            LoadError: a download failed.
        """
        first = -(-clients // PROCESSES)
        shares = [share for share in (first, clients - first) if share]
        start_at = time.monotonic() + _HEAD_START
        runs = [
            self._pool.submit(run_clients, target, share, verify and not index, start_at)
            for index, share in enumerate(shares)
        ]
        samples = [sample for run in runs for sample in run.result(DEADLINE + 10)]
        return Outcome(samples, target.size)
