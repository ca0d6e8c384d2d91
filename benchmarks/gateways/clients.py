"""Clients that update as freshclam does, and check each byte that they get; thousands in one process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.load.asking import Entry, Fetch, Form, agent, request, tunnel_request
from benchmarks.load.generator import allow_files
from clamproxy.formats.header import HEADER_SIZE

STALE = "fwd=stale"
"""In Cache-Status: the gateway couldn't find out in time whether there is a newer version."""
ATTEMPTS = 3
"""MaxAttempts: for a database, and for each patch (docs/protocol.md 1.3)."""
PAUSE = 5.0
"""Seconds between two attempts for a database."""
_CONNECT_TIMEOUT = 30.0
_RECEIVE_TIMEOUT = 60.0
_PIECE = 1 << 16
_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
_COOLING = (403, 429)


@dataclass(frozen=True, slots=True)
class Released:
    """What ClamAV has released.

    Attributes:
        advertised: the newest version of each database.
        digests: by path: SHA-256 of each content that is right, and the version that it leads to.
    """

    advertised: Mapping[str, int]
    digests: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Client:
    """A machine with a freshclam.

    Attributes:
        address: its own, on loopback.
        ports: of the gateways that it reaches, the next one after each failure.
        versions: of its databases; it has none of those that are missing.
        start: when it looks for updates, in seconds after the start of the run.
        has_dns: whether it knows the advertised versions; if not, it probes the headers.
    """

    address: str
    ports: tuple[int, ...]
    versions: Mapping[str, int] = field(default_factory=dict)
    start: float = 0.0
    has_dns: bool = True


@dataclass(slots=True)
class Account:
    """What some clients have seen.

    Attributes:
        requests: how many they sent.
        received: bytes of all bodies.
        results: how many responses had each kind of Cache-Status.
        outdated: how many of those that the gateway calls stale were older than advertised.
        retries: of each client that had any.
        failures: what went wrong for good, by client and database.
        troubles: what was tried again, by kind.
        probed: when each header probe began and ended (Unix seconds), the database, and its version.
        longest: seconds that the slowest client needed.
    """

    requests: int = 0
    received: int = 0
    results: Counter[str] = field(default_factory=Counter)
    outdated: int = 0
    retries: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)
    probed: list[tuple[float, float, str, int]] = field(default_factory=list)
    longest: float = 0.0

    def add(self, other: Account) -> None:
        self.requests += other.requests
        self.received += other.received
        self.results += other.results
        self.outdated += other.outdated
        self.retries += other.retries
        self.failures += other.failures
        self.troubles += other.troubles
        self.probed += other.probed
        self.longest = max(self.longest, other.longest)


class _Failed(Exception):
    """A request that freshclam repeats. The message is its kind."""


class _Stopped(Exception):
    """A response after which freshclam stops for hours, or wrong bytes."""


def run(clients: Sequence[Client], released: Released, begin: float) -> tuple[list[Client], Account]:
    """Let clients look for updates once; returns them as they are afterwards.

    Args:
        begin: when the first one starts, in monotonic seconds.
    """
    allow_files()
    return asyncio.run(_run(clients, released, begin))


async def _run(clients: Sequence[Client], released: Released, begin: float) -> tuple[list[Client], Account]:
    account = Account()
    updates = [_Update(client, released, account) for client in clients]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(update.run(begin)) for update in updates]
    return [task.result() for task in tasks], account


class _Update:
    """One client's look for updates."""

    def __init__(self, client: Client, released: Released, account: Account) -> None:
        self._client = client
        self._released = released
        self._account = account
        self._agent = agent()
        self._versions = dict(client.versions)
        self._turn = 0
        self._retries = 0
        self._result = ""
        """Of the last response."""

    async def run(self, begin: float) -> Client:
        await asyncio.sleep(begin + self._client.start - time.monotonic())
        started = time.monotonic()
        for database, version in self._released.advertised.items():
            if failure := await self._update(database, version):
                self._account.failures.append(f"{self._client.address} {database}: {failure}")
        if self._retries:
            self._account.retries.append(self._retries)
        self._account.longest = max(self._account.longest, time.monotonic() - started)
        return replace(self._client, versions=self._versions)

    async def _update(self, database: str, advertised: int) -> str:
        """Try as often as freshclam does; returns why the client isn't up to date, "" if it is."""
        failure = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(PAUSE)
            try:
                # Without DNS, a client goes by what the gateway says.
                wanted = advertised if self._client.has_dns else await self._probe(database)
                await self._reach(database, wanted)
            except _Failed as error:
                failure = str(error)
                self._again(failure)
            except _Stopped as error:
                return str(error)
            else:
                reached = self._versions[database]
                return "" if reached >= wanted else f"still has {reached} instead of {wanted}"
        return failure

    async def _reach(self, database: str, wanted: int) -> None:
        if not self._versions.get(database):
            await self._whole(database)
        while self._versions[database] < wanted:
            if not await self._patch(database, self._versions[database] + 1):
                # More than one version behind, it takes the whole file (docs/protocol.md 2.5).
                if wanted - self._versions[database] > 1:
                    await self._whole(database)
                return

    async def _probe(self, database: str) -> int:
        begun = time.time()
        # The header of a version that patches lead to has no MD5.
        header = await self._get(f"/{database}.cvd", probe=True)
        if len(header) != HEADER_SIZE or not header.startswith(b"ClamAV-VDB:"):
            raise _Stopped(f"/{database}.cvd has a bad header: {header[:40]!r}")
        version = int(header.split(b":")[2])
        self._judge(database, version)
        self._account.probed.append((begun, time.time(), database, version))
        return version

    async def _whole(self, database: str) -> None:
        version = await self._file(f"/{database}.cvd")
        self._judge(database, version)
        self._versions[database] = max(version, self._versions.get(database, 0))
        await self._signature(f"/{database}-{version}.cvd.sign")

    def _judge(self, database: str, version: int) -> None:
        if self._result == STALE and version < self._released.advertised[database]:
            self._account.outdated += 1

    async def _patch(self, database: str, version: int) -> bool:
        """Take a patch, which is tried again at once; returns whether that was possible."""
        path = f"/{database}-{version}.cdiff"
        for _ in range(ATTEMPTS):
            try:
                await self._file(path)
            except _Failed as error:
                self._again(str(error))
            else:
                await self._signature(f"{path}.sign")
                self._versions[database] = version
                return True
        return False

    async def _signature(self, path: str) -> None:
        """Ask once; freshclam goes on without (docs/protocol.md 6)."""
        try:
            await self._file(path)
        except _Failed as error:
            self._account.troubles[f"signature: {error}"] += 1

    async def _file(self, path: str) -> int:
        """Fetch a file and prove its content; returns the version that it leads to."""
        digest = hashlib.sha256(await self._get(path)).hexdigest()
        version = self._released.digests.get(path, {}).get(digest)
        if version is None:
            raise _Stopped(f"wrong bytes of {path}")
        return version

    def _again(self, failure: str) -> None:
        self._retries += 1
        self._turn += 1
        self._account.troubles[failure] += 1

    async def _get(self, path: str, *, probe: bool = False) -> bytes:
        """Fetch something on a connection of its own, through a tunnel, as freshclam does."""
        ports = self._client.ports
        entry = Entry(ports[self._turn % len(ports)], Form.TUNNEL)
        self._account.requests += 1
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                reader, writer = await self._connect(entry)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise _Failed(f"no connection ({type(error).__name__})") from None
        try:
            writer.write(request(entry, Fetch(path, probe=probe), self._agent))
            return await self._body(reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise _Failed(f"cut ({type(error).__name__})") from None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connect(self, entry: Entry) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setblocking(False)
        # The port is chosen when connecting, so that only the pairs of addresses must differ (ip(7)).
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        try:
            sock.bind((self._client.address, 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", entry.port))
            reader, writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(tunnel_request(entry, self._agent))
            status, _ = await _head(reader)
        except BaseException:
            writer.close()
            raise
        if status != 200:
            writer.close()
            raise _Failed(f"CONNECT {status}")
        return reader, writer

    async def _body(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(_RECEIVE_TIMEOUT) as limit:
            status, fields = await _head(reader)
            self._result = _result(fields.get("cache-status", ""))
            self._account.results[self._result] += 1
            if status in _COOLING:
                raise _Stopped(f"status {status}")
            if status not in (200, 206):
                raise _Failed(f"status {status}")
            size = int(fields["content-length"])
            body = bytearray()
            while len(body) < size:
                limit.reschedule(asyncio.get_running_loop().time() + _RECEIVE_TIMEOUT)
                piece = await reader.read(min(size - len(body), _PIECE))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", size)
                body += piece
                self._account.received += len(piece)
        return bytes(body)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and header fields, whose names are in lower case."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


def _result(cache_status: str) -> str:
    """The part of Cache-Status that says how the response came about."""
    for word in (STALE, "detail=error", "detail=negative", "collapsed", "hit", "fwd=miss"):
        if word in cache_status:
            return word
    return cache_status or "none"
