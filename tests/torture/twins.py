"""Two gateways that differ in one setting, `serving.express`, and what the same bytes do to both."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, cast

import h11

from tests.support.data import trust_testdata
from tests.support.gateway import CDN, USER_AGENT, Way, free_ports
from tests.support.proxy_headers import binary_header, text_header
from tests.support.site import Site, open_site
from tests.torture.request_streams import NAME, Stream, target_of

WORKERS = 6
"""Streams that are under way at a time."""
BALANCER = "127.66.0.1"
PAUSE = 0.004
"""Seconds between two segments; on loopback, the second one then arrives by itself."""
QUIET = 0.7
"""Seconds without a byte after which a client that waits gives up, and says that it will send no more."""
PATIENCE = 5.0
"""The same for clients of hosts that are passed through: what they asked for is given up then."""
LEFT_OPEN = 30.0
"""Seconds without a byte, after that, that count as a connection that is left open."""
_HEAD = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_CHANGING = (b"date", b"age")
"""Fields of an answer that depend on when it was sent."""
_VIA = re.compile(rb"1\.1 clamproxy-[0-9A-Za-z-]+")
_CLIENT = re.compile(r"127\.1[0-9]{2}\.[0-9]+\.[0-9]+")
_CHANGING_IN_LOG = re.compile(r"(?<=passed 0 0B).*| [0-9.]+s |(?<=[0-9]):[0-9]+: |(?<=parse ClientHello: ).*")
_ASCII = bytes(byte if byte < 128 else ord("?") for byte in range(256))
"""Hosts accept other bytes in targets, but h11 doesn't."""
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_SCRIPT = """
from clamproxy.proxy.addon import ClamProxy

record = open({record!r}, "a", buffering=1)

class Notes:
    def requestheaders(self, flow):
        print(flow.client_conn.peername[0], file=record)

    http_connect = requestheaders

addons = [ClamProxy(), Notes()]
"""
"""Notes whose requests mitmproxy has read. Those that the lane answers never get there."""
_SENTINEL = "GET {} HTTP/1.1\r\nHost: x\r\nUser-Agent: sentinel\r\nConnection: close\r\n\r\n"


class Answer(NamedTuple):
    """One answer on a connection."""

    status: int
    """0 if it isn't HTTP."""
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Forwarded(NamedTuple):
    """A request that a host that is passed through has received."""

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stream did to one gateway."""

    answers: tuple[Answer, ...]
    forwarded: tuple[Forwarded, ...]
    unreadable: tuple[str, ...]
    """Why that isn't HTTP, if it isn't."""
    is_left_open: bool = False


@dataclass
class Recorder:
    """A host that is passed through. It answers every request, and remembers what it was sent."""

    address: str
    requests: list[Forwarded] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Why what has arrived isn't HTTP/1.1."""
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        parser, events = h11.Connection(h11.SERVER), list[h11.Event]()
        try:
            while parser.their_state is not h11.MUST_CLOSE and (data := await reader.read(65536)):
                parser.receive_data(data.translate(_ASCII))
                while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                    events.append(cast(h11.Event, event))
                    if isinstance(event, h11.EndOfMessage):
                        self.requests.append(_forwarded(events))
                        events.clear()
                        writer.write(_ANSWER)
                        _begin_anew(parser)
        except h11.RemoteProtocolError as error:
            self.errors.append(str(error))
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()

    def taken(self) -> tuple[tuple[Forwarded, ...], tuple[str, ...]]:
        """The whole requests that have arrived since the last call, and the errors."""
        requests, self.requests = tuple(self.requests), []
        errors, self.errors = tuple(self.errors), []
        return requests, errors


def _forwarded(events: list[h11.Event]) -> Forwarded:
    request = cast(h11.Request, events[0])
    body = b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data))
    return Forwarded(request.method, request.target, tuple(sorted(request.headers)), body)


def _begin_anew(parser: h11.Connection) -> None:
    parser.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
    parser.send(h11.EndOfMessage())
    if parser.our_state is h11.DONE:
        parser.start_next_cycle()


@dataclass
class Twin:
    """One of the two gateways, and the hosts that it passes through, one for each worker."""

    site: Site
    recorders: list[Recorder]
    upstream_port: int
    record: Path

    def read_by_mitmproxy(self) -> set[str]:
        """Addresses of clients of which mitmproxy has read a request, be it a CONNECT."""
        return set(self.record.read_text().split())

    def own(self) -> str:
        return f"127.0.0.1:{self.site.gateway.port}"

    def tls(self, *protocols: str) -> ssl.SSLContext:
        """For a client that offers these protocols (ALPN)."""
        context = ssl.create_default_context(cafile=str(self.site.gateway.ca))
        context.set_alpn_protocols(protocols)
        return context

    async def send(self, stream: Stream, number: int, worker: int) -> Outcome:
        """Send a stream as the client with this number.

        Returns:
            What came of it, without what differs between the twins or from moment to moment.
        """
        recorder = self.recorders[worker]
        upstream = f"{recorder.address}:{self.upstream_port}"
        client = _Client(self, stream, upstream, number)
        received, is_left_open = await client.run()
        for _ in range(500):
            if not recorder.open:
                break
            await asyncio.sleep(0.01)
        forwarded, unreadable = recorder.taken()
        names = {upstream.encode(): b"upstream", self.own().encode(): b"own"}
        return Outcome(
            _answers(
                _plain(received, names),
                ignored=(*_CHANGING, *((b"connection",) if stream.half_closes else ())),
            ),
            tuple(_plain_request(one, names) for one in forwarded),
            unreadable,
            is_left_open,
        )

    def log_by_client(self) -> dict[str, list[str]]:
        """What the log says of each client, without times."""
        lines: dict[str, list[str]] = {}
        for line in self.site.gateway.log.splitlines():
            if match := _CLIENT.search(line):
                text = _CHANGING_IN_LOG.sub(" ", line[match.start() :])
                for recorder in self.recorders:
                    text = text.replace(f"{recorder.address}:{self.upstream_port}", "upstream")
                    text = text.replace(recorder.address, "upstream")
                lines.setdefault(match[0], []).append(text.replace(self.own(), "own"))
        return {client: sorted(said) for client, said in lines.items()}


class _Client:
    def __init__(self, twin: Twin, stream: Stream, upstream: str, number: int) -> None:
        self._stream, self._twin, self._upstream, self._number = stream, twin, upstream, number
        self._gateway = twin.site.gateway
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.received = b""

    async def run(self) -> tuple[bytes, bool]:
        """Everything that arrives until the gateway closes the connection, and whether it never does."""
        stream, gateway = self._stream, self._gateway
        is_announced = stream.door.endswith("header")
        with socket.socket() as self._socket:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
            self._socket.bind((BALANCER if is_announced else address_of(self._number), 0))
            port = gateway.reverse_port if stream.door == "reverse" else gateway.port
            await self._loop.sock_connect(self._socket, ("127.0.0.1", port))
            with suppress(OSError):  # the gateway has closed the connection
                await self._enter()
            reading = asyncio.create_task(self._read())
            with suppress(OSError):  # the gateway has closed the connection
                await self._say(reading)
            try:
                await asyncio.wait_for(reading, LEFT_OPEN)
            except TimeoutError:
                return self.received, True
            return self.received, False

    def _filled(self, data: bytes) -> bytes:
        return data.replace(b"{upstream}", self._upstream.encode()).replace(
            b"{own}", self._twin.own().encode()
        )

    async def _enter(self) -> None:
        match self._stream.door:
            case "text header":
                await self._send(text_header(address_of(self._number)))
            case "binary header":
                await self._send(binary_header(address_of(self._number)))
            case "tunnel":
                await self._connect(f"{CDN}:80")
            case "passed":
                await self._connect(self._upstream)
            case "tls" | "h2":
                await self._connect(f"{CDN}:443")
                context = self._twin.tls(*(["h2"] if self._stream.door == "h2" else []), "http/1.1")
                self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=CDN)
                await self._shake_hands(self._tls)

    async def _connect(self, target: str) -> None:
        fields = f"Host: {target}\r\nUser-Agent: {USER_AGENT}"
        await self._send(f"CONNECT {target} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await self._loop.sock_recv(self._socket, 1)
        assert answer.startswith(b"HTTP/1.1 200 "), answer

    async def _shake_hands(self, tls: ssl.SSLObject) -> None:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                self._incoming.write(await self._loop.sock_recv(self._socket, 65536))
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._loop.sock_sendall(self._socket, data)

    async def _send(self, data: bytes) -> None:
        if self._tls is None:
            await self._loop.sock_sendall(self._socket, data)
        else:
            self._tls.write(data)
            await self._flush()

    async def _say(self, reading: asyncio.Task[None]) -> None:
        for number, segment in enumerate(self._stream.segments(self._filled(self._stream.data))):
            if number and self._stream.cuts != (-1,):
                await asyncio.sleep(PAUSE)
            await self._send(segment)
        if not self._stream.half_closes:
            await self._send(_SENTINEL.format(target_of(self._stream.door)).encode())
            heard = -1
            while heard < len(self.received) and not reading.done():
                heard = len(self.received)
                await asyncio.wait([reading], timeout=PATIENCE if self._stream.may_be_given_up else QUIET)
        if not reading.done():
            self._socket.shutdown(socket.SHUT_WR)

    async def _read(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            if self._tls is not None:
                self._decrypt(self._tls)
            while data := await self._loop.sock_recv(self._socket, 65536):
                if self._tls is None:
                    self.received += data
                else:
                    self._incoming.write(data)
                    self._decrypt(self._tls)

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while data := tls.read(65536):
                self.received += data


def address_of(number: int) -> str:
    """The address of a client; all have different ones, by which the log tells them apart."""
    return f"127.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _plain(data: bytes, names: dict[bytes, bytes]) -> bytes:
    """Bytes without what differs between the twins, or from moment to moment."""
    for name, replacement in names.items():
        # Of the same length, so that no Content-Length becomes wrong.
        data = data.replace(name, replacement.ljust(len(name), b"."))
    return _VIA.sub(b"1.1 clamproxy", data)


def _plain_request(one: Forwarded, names: dict[bytes, bytes]) -> Forwarded:
    fields = tuple((name, _plain(value, names)) for name, value in one.fields)
    return Forwarded(one.method, _plain(one.target, names), fields, one.body)


def _answers(received: bytes, ignored: Sequence[bytes]) -> tuple[Answer, ...]:
    """Split what has arrived into answers, however much of a body belongs to each.

    Those that say 100 are left out: a server needn't say so if content has arrived by then (RFC 9110 10.1.1).
    """
    answers: list[Answer] = []
    heads = list(_HEAD.finditer(received))
    if received and (not heads or heads[0].start()):
        answers.append(Answer(0, (), received))
    for head, following in zip_longest(heads, heads[1:]):
        fields = [line.partition(b": ") for line in head[2].splitlines()]
        told = sorted((name.lower(), value) for name, _, value in fields if name.lower() not in ignored)
        body = received[head.end() : following.start() if following else None]
        answers.append(Answer(int(head[1]), tuple(told), body))
    return tuple(answer for answer in answers if answer.status != 100)


@dataclass
class Twins:
    """Both gateways."""

    express: Twin
    plain: Twin

    async def send(self, stream: Stream, number: int, worker: int) -> tuple[Outcome, Outcome]:
        """Send a stream to both at once."""
        express, plain = self.express, self.plain
        return await asyncio.gather(express.send(stream, number, worker), plain.send(stream, number, worker))

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[Iterable[int]]:
        """Let the hosts that are passed through listen; gives the numbers of the workers."""
        servers = [
            await asyncio.start_server(recorder.serve, recorder.address, twin.upstream_port)
            for twin in (self.express, self.plain)
            for recorder in twin.recorders
        ]
        try:
            yield range(WORKERS)
        finally:
            for server in servers:
                server.close()

    def logs(self) -> tuple[dict[str, list[str]], ...]:
        """What each log says of each client."""
        return self.express.log_by_client(), self.plain.log_by_client()


@contextmanager
def open_twins(directory: Path) -> Iterator[Twins]:
    """Start two gateways that have the same files in their caches, and the same settings but one."""
    with ExitStack() as stack:
        sites = []
        hosts = [f"127.77.{side}.{worker}" for side in (1, 2) for worker in range(1, WORKERS + 1)]
        for is_express in (True, False):
            script, record = (directory / f"express-{is_express}.{end}" for end in ("py", "txt"))
            script.write_text(_SCRIPT.format(record=str(record)))
            site = open_site(
                directory / f"express-{is_express}",
                script=str(script),
                serving={"hosts": [CDN], "pass_through": hosts, "express": is_express, "prefetch": "none"},
                access={"proxy_protocol": [BALANCER]},
                upstream={"cvd_certs_directory": str(trust_testdata(directory / "roots"))},
            )
            stack.callback(site.close)
            site.publish(6)
            for path in (f"/{NAME}", "/test.cvd", "/test-5.cdiff", "/test-6.cdiff"):
                assert site.gateway.ask(path, Way.ABSOLUTE).status == 200
            sites.append((site, record))
        (port,) = free_ports(1)
        yield Twins(
            *(
                Twin(
                    *(site, [Recorder(host) for host in hosts if host.startswith(f"127.77.{side}.")]),
                    *(port, record),
                )
                for side, (site, record) in enumerate(sites, 1)
            )
        )
