"""A small model of freshclam: it asks, retries and updates as docs/protocol.md says (1.2, 1.3, 2.2, 2.5)."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto

from werkzeug.http import http_date

from tests.harness.soak.plan import DATABASES, SIGN, Plan, cld_digest, digest
from tests.support.dns_server import Mode, Zone
from tests.support.gateway import CDN, Way
from tests.support.simulated_time import Timeline

ATTEMPTS = 3
PAUSE = 5.0
RECEIVE_TIMEOUT = 60.0
PROBE = "bytes=0-511"
RESULTS = {
    "collapsed": "collapsed",
    "fwd=stale": "stale",
    "detail=negative": "negative",
    "detail=refused": "refused",
    "detail=error": "errors",
    "fwd=miss": "misses",
    "hit": "hits",
}
"""What Cache-Status says of each result that is counted; the first that applies."""


class Kind(StrEnum):
    """How a machine is configured (docs/protocol.md 1.3)."""

    DNS = "dns"
    NO_DNS = "no dns"
    WHOLE = "ScriptedUpdates no"
    PRIVATE = "PrivateMirror"


@dataclass(slots=True)
class Machine:
    uuid: str
    address: str
    kind: Kind
    way: Way
    asks_signs: bool
    """Whether its freshclam is 1.5 or newer."""
    period: float
    """Seconds between two checks."""
    check_at: float
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DATABASES, 0))
    asked_at: float | None = None
    """When it last sent a request that was answered."""
    current_at: float = 0.0
    """When a check last found it up to date."""

    @property
    def agent(self) -> str:
        version = "1.5.3" if self.asks_signs else "1.4.6"
        return f"ClamAV/{version} (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {self.uuid})"


@dataclass(slots=True)
class ClientBooks:
    """What the clients have counted since the gateway was started."""

    counts: Counter[str] = field(default_factory=Counter)
    """By the names of `clamproxy stats`."""
    broken: int = 0
    """Answers that were cut off."""
    uncertain: int = 0
    """Bytes of them that didn't arrive, though the gateway may have sent them."""
    ended: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    """When the last answers ended, by the monotonic clock."""


@dataclass(slots=True)
class Wrongs:
    """What must not happen at all."""

    content: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    """403 and 429."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    is_complete: bool

    @property
    def is_good(self) -> bool:
        return self.is_complete and self.status in (200, 206)


NOTHING = Answer(0, b"", is_complete=False)


class Outcome(Enum):
    DONE = auto()
    AGAIN = auto()
    """A whole CVD is older than advertised: the update starts over from it (docs/protocol.md 2.5)."""
    FAILED = auto()


class Freshclam:
    """Does the checks of all machines.

    Args:
        tls: what those that use https trust.
    """

    def __init__(self, plan: Plan, timeline: Timeline, zone: Zone, tls: ssl.SSLContext) -> None:
        self._plan, self._timeline, self._zone, self._tls = plan, timeline, zone, tls
        self.books = ClientBooks()
        self.wrongs = Wrongs()
        self.shown: dict[str, int] = {}
        """The newest version of each database that a header probe has shown."""

    async def check(self, machine: Machine) -> None:
        """One run of freshclam."""
        with self._timeline.guest():
            told = self._told() if machine.kind in (Kind.DNS, Kind.WHOLE) else {}
            for database in DATABASES:
                if not await self._update(machine, database, told.get(database)):
                    return  # after a hard failure none of the rest is tried (docs/protocol.md 1.1)

    async def _update(self, machine: Machine, database: str, told: int | None) -> bool:
        for _ in range(ATTEMPTS):
            outcome = await self._attempt(machine, database, told)
            if outcome is Outcome.AGAIN:
                outcome = await self._attempt(machine, database, told)
            if outcome is not Outcome.FAILED:
                return True
            await asyncio.sleep(PAUSE)
        return False

    def _told(self) -> dict[str, int]:
        """What DNS says; nothing if it can't be used."""
        return dict(self._zone.versions) if self._zone.mode is Mode.RIGHT else {}

    async def _attempt(self, machine: Machine, database: str, told: int | None) -> Outcome:
        name, have = f"{database}.cvd", machine.versions[database]
        if told is None:
            probed = None
            if machine.kind is Kind.PRIVATE:
                name = f"{database}.cld"
                if (probed := await self._probe(machine, name, have)) is None:
                    name = f"{database}.cvd"
            probed = await self._probe(machine, name, have) if probed is None else probed
            if probed is None:
                return Outcome.FAILED
            told = probed
        if told <= have:
            return Outcome.DONE
        if have == 0 or machine.kind in (Kind.WHOLE, Kind.PRIVATE):
            return await self._whole(machine, name, told)
        return await self._patches(machine, database, told)

    async def _probe(self, machine: Machine, name: str, have: int) -> int | None:
        """The version that the gateway shows; None if it shows none."""
        database = name.partition(".")[0]
        shown_before = self.shown.get(database, 0)
        answer = await self._get(machine, name, have, Range=PROBE)
        if answer.status == 304:
            return have
        if not answer.is_good or not answer.body.startswith(b"ClamAV-VDB:"):
            return None
        version = _version(answer.body)
        if version < shown_before:
            self.wrongs.older.append(f"{name} shows {version} after {shown_before}")
        self.shown[database] = max(version, shown_before)
        return version

    async def _whole(self, machine: Machine, name: str, told: int) -> Outcome:
        database, _, kind = name.partition(".")
        have = machine.versions[database]
        answer = await self._get(machine, name, have)
        if answer.status == 304:
            return Outcome.DONE
        if not answer.is_good:
            return Outcome.FAILED
        version = _version(answer.body)
        self._judge(f"{database}-{version}.{kind}", answer.body)
        if version < have:
            self.wrongs.older.append(f"{machine.uuid} had {have} and was given {database}-{version}.{kind}")
        if machine.asks_signs and kind == "cvd":
            await self._sign(machine, f"{database}-{version}.cvd")
        machine.versions[database] = version
        return Outcome.AGAIN if version < told and machine.kind is not Kind.PRIVATE else Outcome.DONE

    async def _patches(self, machine: Machine, database: str, told: int) -> Outcome:
        have = machine.versions[database]
        for version in range(have + 1, told + 1):
            name = f"{database}-{version}.cdiff"
            for _ in range(ATTEMPTS):
                answer = await self._get(machine, name)
                if answer.is_good:
                    break
            if answer.is_good and not answer.body:
                return await self._whole(machine, f"{database}.cvd", told)
            if not answer.is_good:
                if version == have + 1 and told > version:
                    return await self._whole(machine, f"{database}.cvd", told)
                return Outcome.DONE
            self._judge(name, answer.body)
            if machine.asks_signs:
                await self._sign(machine, name)
            machine.versions[database] = version
        return Outcome.DONE

    async def _sign(self, machine: Machine, name: str) -> None:
        answer = await self._get(machine, name + SIGN)
        if answer.is_good:
            self._judge(name + SIGN, answer.body)

    def _judge(self, name: str, content: bytes) -> None:
        try:
            found = cld_digest(content) if name.endswith(".cld") else digest(content)
        except Exception as error:  # a tar archive can be wrong in many ways
            found = f"{type(error).__name__}: {error}"
        if found != self._plan.digests.get(name):
            self.wrongs.content.append(f"{name}: {found}")

    # One request

    async def _get(self, machine: Machine, name: str, have: int = 0, **fields: str) -> Answer:
        if have:
            database = name.partition(".")[0]
            fields["If-Modified-Since"] = http_date(self._plan.stimes[f"{database}-{have}.cvd"])
        try:
            async with asyncio.timeout(RECEIVE_TIMEOUT):
                return await self._exchange(machine, name, fields)
        except (OSError, EOFError, TimeoutError):
            self.books.broken += 1
            return NOTHING

    async def _exchange(self, machine: Machine, name: str, fields: dict[str, str]) -> Answer:
        reverse = machine.way is Way.REVERSE
        port = self._plan.ports[1 if reverse else 0]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(machine.address, 0))
        try:
            if machine.way in (Way.CONNECT_HTTP, Way.CONNECT_HTTPS):
                await self._tunnel(machine, reader, writer)
            target = f"http://{CDN}/{name}" if machine.way is Way.ABSOLUTE else f"/{name}"
            host = f"127.0.0.1:{port}" if reverse else CDN
            first, last = {"Range": fields.pop("Range")} if "Range" in fields else {}, fields
            head = {"Host": host, **first, "User-Agent": machine.agent, "Accept": "*/*", **last}
            lines = [f"GET {target} HTTP/1.1", *(f"{key}: {value}" for key, value in head.items())]
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())
            return await self._answer(machine, reader)
        finally:
            writer.transport.abort()

    async def _tunnel(
        self, machine: Machine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        is_tls = machine.way is Way.CONNECT_HTTPS
        authority = f"{CDN}:{443 if is_tls else 80}"
        lines = (f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", f"User-Agent: {machine.agent}")
        writer.write("\r\n".join([*lines, "Proxy-Connection: Keep-Alive", "", ""]).encode())
        status = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        if status != b"200":
            raise OSError(f"CONNECT: {status!r}")
        if is_tls:
            await writer.start_tls(self._tls, server_hostname=CDN)

    async def _answer(self, machine: Machine, reader: asyncio.StreamReader) -> Answer:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:])}
        status = int(head[0].split()[1])
        length, body = 0 if status == 304 else int(fields["content-length"]), bytearray()
        try:
            while len(body) < length:
                if not (piece := await reader.read(length - len(body))):
                    raise EOFError
                body += piece
        finally:
            self._note(machine, status, fields.get("cache-status", ""), len(body))
            self.books.uncertain += length - len(body)
        return Answer(status, bytes(body), is_complete=True)

    def _note(self, machine: Machine, status: int, cache_status: str, length: int) -> None:
        books = self.books
        result = next((name for sign, name in RESULTS.items() if sign in cache_status), "unknown")
        books.counts.update({"requests": 1, result: 1, "bytes_served": length})
        books.ended.append(self._timeline.monotonic())
        machine.asked_at = self._timeline.time()
        if status in (403, 429):
            self.wrongs.statuses[status] += 1


def _version(content: bytes) -> int:
    return int(content[:512].split(b":")[2])
