"""A site: an origin that counts, some gateways that share an object store, and clients in other processes."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.gateways.clients import Account, Client, Released, run
from tests.support.dns_server import FakeDns
from tests.support.faketime import faketime, sweep_faketime
from tests.support.gateway import FORGED_ADDON, PATIENT_ADDON, Gateway, Settings
from tests.support.object_store import ObjectStore, moto_server
from tests.support.origin import OriginServer
from tests.support.releases import Releases

PROCESSES = 2
"""In which the clients run."""
_HEAD_START = 0.5
"""Seconds from handing out a run of the clients to its start."""
_HEADER = 512
_FIRST = {"main": 62, "daily": 27800}


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the site is, and how long the scenarios last.

    Attributes:
        gateways: how many there are.
        clients: of each gateway.
        spread: within how many seconds the clients look for updates.
        outage: for how many seconds the store is stopped.
        main_size: approximate size of main.cvd in bytes.
        daily_size: the same of daily.cvd.
        transfer: seconds that the origin needs to send main.cvd.
        refresh: after how many seconds a gateway asks DNS again (5 min by default); longer than a transfer,
            as in life, or headers would be probed again in the meantime.
        shared: whether there is an object store.
        workers: of each gateway.
        patient: whether gateways wait longer than in life, for machines that do a lot besides.
    """

    gateways: int
    clients: int
    spread: float
    outage: float
    main_size: int
    daily_size: int
    transfer: float
    refresh: float
    shared: bool = True
    workers: int = 1
    patient: bool = False


BENCHMARK = Scale(4, 1000, 40.0, 60.0, 600_000, 300_000, 4.0, 12.0)
SMALL = Scale(3, 30, 3.0, 8.0, 300_000, 100_000, 3.0, 6.0, patient=True)


class Mirror:
    """The origin and what it has released, signed with test keys."""

    def __init__(self, scale: Scale) -> None:
        self.origin = OriginServer()
        self.dns = FakeDns()
        self.origin.rate = scale.main_size / scale.transfer
        sizes = {"main": scale.main_size, "daily": scale.daily_size}
        # About three quarters of the filler are left after compression.
        self._releases = {
            name: Releases(database=name, first=first, filler=sizes[name] * 4 // 3)
            for name, first in _FIRST.items()
        }
        self._digests: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.versions = dict(_FIRST)
        for name in self.versions:
            self._put_cvd(name)
        self.dns.versions = dict(self.versions)

    def close(self) -> None:
        self.dns.close()
        self.origin.close()

    @property
    def released(self) -> Released:
        """What clients can know at this moment."""
        return Released(dict(self.versions), {path: dict(each) for path, each in self._digests.items()})

    def release(self, database: str = "daily") -> None:
        """The next version: its patch, the whole file, their signatures, and the advertisement."""
        self.versions[database] += 1
        version, releases = self.versions[database], self._releases[database]
        name = f"{database}-{version}.cdiff"
        self._put(name, releases.cdiff(version), version)
        self._put(f"{name}.sign", releases.cdiff_sign(version), version)
        self._put_cvd(database)
        self.dns.versions[database] = version

    def save_keys(self, directory: Path) -> None:
        self._releases["daily"].keys.save(directory)

    def asked(self) -> dict[str, int]:
        """How often the origin was asked for each thing, header probes apart from whole files."""
        counts: Counter[str] = Counter()
        for seen in self.origin.requests():
            is_probe = seen.headers.get("range") == f"bytes=0-{_HEADER - 1}"
            counts[f"{seen.path}{' (header)' if is_probe else ''}"] += 1
        return dict(counts)

    def _put_cvd(self, database: str) -> None:
        version, releases = self.versions[database], self._releases[database]
        self._put(f"{database}.cvd", releases.cvd(version), version)
        self._put(f"{database}-{version}.cvd.sign", releases.cvd_sign(version), version)

    def _put(self, name: str, content: bytes, version: int) -> None:
        self._digests[f"/{name}"][hashlib.sha256(content).hexdigest()] = version
        self.origin.put(name, content)


class Site:
    """The running parts.

    Args:
        store: what the gateways share; None: each is alone.
        clocks: by how many seconds each gateway's clock is ahead; those that aren't named are right.
    """

    def __init__(
        self,
        work: Path,
        scale: Scale,
        mirror: Mirror,
        store: ObjectStore | None,
        pool: ProcessPoolExecutor,
        clocks: Sequence[float] = (),
    ) -> None:
        self.scale = scale
        self.mirror = mirror
        self.store = store
        self.gateways: list[Gateway] = []
        self._work = work
        self._pool = pool
        self._clocks = clocks
        mirror.save_keys(work / "keys")

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.kill()
        sweep_faketime()

    def start(self, count: int) -> None:
        """Start more gateways, each with an empty disk."""
        first = len(self.gateways)
        self.gateways += [self._gateway(number) for number in range(first, first + count)]
        with ThreadPoolExecutor() as threads:
            list(threads.map(Gateway.start, self.gateways[first:]))

    def _gateway(self, number: int) -> Gateway:
        environment = {"CLAMPROXY_TEST_KEYS": str(self._work / "keys")}
        if self.store is not None:
            environment |= {"CLAMPROXY_FLEET_STORE": self.store.url, **self.store.environment}
        ahead = self._clocks[number] if number < len(self._clocks) else 0.0
        if ahead:
            environment |= faketime(FAKETIME=f"{ahead:+.0f}s")
        settings: Settings = {
            "upstream": {"url": self.mirror.origin.url, "connect_timeout": "5s", "read_timeout": "10s"},
            "versions": {
                "nameservers": [self.mirror.dns.nameserver],
                "refresh": f"{self.scale.refresh:.0f}s",
            },
        }
        return Gateway(
            self._work / f"gateway-{number}",
            settings,
            script=PATIENT_ADDON if self.scale.patient else FORGED_ADDON,
            environment=environment,
            # A fork has been started already when LD_PRELOAD takes effect.
            is_command=bool(ahead),
            workers=self.scale.workers,
        )

    # Clients

    def clients(self, *, balanced: bool = False) -> list[Client]:
        """New machines with no databases; every tenth has no DNS.

        Args:
            balanced: a client whose gateway fails reaches another one, as behind a load balancer.
        """
        ports = [gateway.port for gateway in self.gateways]
        total = self.scale.clients * len(ports)
        return [
            Client(
                address=f"127.{64 + (index >> 16)}.{index >> 8 & 255}.{index & 255}",
                ports=tuple(
                    ports[index % len(ports) :] + ports[: index % len(ports)]
                    if balanced
                    else ports[index % len(ports) : index % len(ports) + 1]
                ),
                start=self.scale.spread * index / total,
                has_dns=index % 10 != 0,
            )
            for index in range(total)
        ]

    def begin(self, clients: Sequence[Client]) -> Running:
        """Let clients look for updates; returns at once."""
        released, start = self.mirror.released, time.monotonic() + _HEAD_START
        shares = [clients[number::PROCESSES] for number in range(PROCESSES)]
        return Running([self._pool.submit(run, share, released, start) for share in shares if share], start)

    # Gateways

    def wait_for_transfer(self, name: str, share: float) -> Gateway:
        """Wait until a gateway has received a part of an object from the origin; returns that gateway.

        Args:
            name: how the object's name begins, such as ``main-``.
            share: of the bytes of main.cvd.
        """
        size = share * self.scale.main_size

        def look() -> Gateway | None:
            for gateway in self.gateways:
                parts = (gateway.cache / "partial").glob(f"{name}*")
                if any(_size(part) >= size for part in parts):
                    return gateway
            return None

        return wait_for(look, f"a transfer of {name}")

    def wait_for_store(self, *, works: bool) -> None:
        """Wait until each gateway says that the store works, or that it doesn't."""
        for gateway in self.gateways:
            wait_for(partial(_store_is, gateway, works), f"a store that works: {works}")

    def wait_for_versions(self) -> None:
        """Wait until each gateway serves what is advertised now, of the databases that it has."""
        for gateway in self.gateways:
            for database, version in self.mirror.versions.items():
                wait_for(partial(_has_reached, gateway, database, version), f"{database} {version}")


@dataclass(slots=True)
class Running:
    """Clients that look for updates in other processes."""

    parts: list[Future[tuple[list[Client], Account]]]
    start: float
    """In monotonic seconds."""
    account: Account = field(default_factory=Account)

    def finish(self) -> list[Client]:
        """Wait for all; returns them as they are then. Their account is in `account`."""
        clients: list[Client] = []
        for part in self.parts:
            share, account = part.result(600)
            clients += share
            self.account.add(account)
        return sorted(clients, key=lambda client: client.start)

    def cancel(self) -> None:
        """Give up those that haven't begun yet."""
        for part in self.parts:
            part.cancel()


@contextmanager
def open_site(work: Path, scale: Scale, *, clocks: Sequence[float] = ()) -> Iterator[Site]:
    """Start a site with empty disks and an empty store.

    Args:
        work: an empty directory.
        clocks: see `Site`.
    """
    with ExitStack() as stack:
        mirror = stack.enter_context(closing(Mirror(scale)))
        store = None
        if scale.shared:
            store = stack.enter_context(ObjectStore(stack.enter_context(moto_server())))
        pool = stack.enter_context(ProcessPoolExecutor(PROCESSES, get_context("spawn")))
        site = stack.enter_context(closing(Site(work, scale, mirror, store, pool, clocks)))
        site.start(scale.gateways)
        mirror.origin.forget()
        yield site


def page(gateway: Gateway, path: str) -> tuple[int, bytes]:
    """Status and body of one of a gateway's pages."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}{path}", timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def status(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page(gateway, "/status.json")[1])
    return found


def _has_reached(gateway: Gateway, database: str, version: int) -> bool:
    rows = [row["reached"] for row in status(gateway)["databases"] if row["name"] == database]
    return all(reached is None or reached >= version for reached in rows)


def _store_is(gateway: Gateway, works: bool) -> bool:
    return bool(status(gateway).get("fleet_store", {}).get("failure")) is not works


def wait_for[T](look: Callable[[], T | None], what: str, limit: float = 90.0) -> T:
    """Look repeatedly until there is something.

    Raises:
        TimeoutError: there wasn't.
    """
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"waited {limit:.0f} s for {what}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
