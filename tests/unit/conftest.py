"""Fixtures of the unit tests: a store, a fake CDN, and transfers between the two."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.messages import Requester, Source
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.transfer import Resources
from clamproxy.origin.transfers import Transfers
from clamproxy.origin.upstream import Upstream
from clamproxy.threads import Writer
from tests.support.forge import forge_cdiff, forge_cvd, forge_keys, forge_sign
from tests.support.notes import notes_in
from tests.support.origin import OriginServer
from tests.support.releases import Releases
from tests.support.scripted import RawOrigin

if TYPE_CHECKING:
    from tests.unit.follower_bench import Bench, MakeBench

AGENT = "ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 00000000-0000-4000-8000-000000000000)"
OLD_AGENT = (
    "ClamAV/0.103.2 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 00000000-0000-4000-8000-000000000001)"
)
NEW, OLD = Requester(AGENT), Requester(OLD_AGENT)
STIME = 1_700_000_000
"""Build time of version 1 of every forged database; each version is a day younger."""
DAY = 86400
RELEASES = Releases()
"""Versions 1, 2, … of daily; made when they are asked for, once for all tests."""
SIGNATURE = cache(forge_sign)
"""One and the same for the same data: a signature holds the time at which it was made."""

type Fill = Callable[..., None]
type MakeCvd = Callable[..., bytes]
type Write = Callable[[str], Path]
type Child = Callable[..., subprocess.CompletedProcess[str]]


def cdiff(version: int, database: str = "daily") -> ObjectId:
    return ObjectId(database, version, Kind.CDIFF)


def cvd(version: int, database: str = "daily") -> ObjectId:
    return ObjectId(database, version, Kind.CVD)


def sign(object_id: ObjectId) -> ObjectId:
    return object_id.signature


def stime_of(version: int) -> int:
    return STIME + (version - 1) * DAY


def put(store: Store, object_id: ObjectId, body: bytes = b"body", **metadata: Any) -> None:
    """Publish some bytes, which are not verified at this level."""
    path = store.partials / f"{object_id.file_name}.part"
    path.write_bytes(body)
    store.publish(object_id, path, Metadata(len(body), 1.0, **metadata))


def put_cvd(store: Store, version: int, body: bytes, database: str = "daily") -> None:
    """Publish a forged CVD with the metadata that a transfer gives it."""
    header = body[:512].decode("ascii")
    put(store, cvd(version, database), body, header=header, last_modified=float(stime_of(version) + 60))


def hold(store: Store, base: int | None, patches: Iterable[int] = (), releases: Releases = RELEASES) -> None:
    """Publish a CVD and some patches."""
    if base is not None:
        put_cvd(store, base, releases.cvd(base), releases.database)
    for version in patches:
        put(store, cdiff(version, releases.database), releases.cdiff(version))


def read(store: Store, object_id: ObjectId) -> bytes | None:
    """The content of a published object, None if there is none."""
    published = store.open(object_id)
    if published is None:
        return None
    with published:
        return os.pread(published.fileno(), published.size, 0)


async def until(condition: Callable[[], object], limit: float = 30.0) -> None:
    """Wait for something that has no event of its own; `limit` in seconds is only a guard."""
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def read_all(source: Source) -> bytes:
    """Everything, as a sender reads it."""
    return b"".join([piece async for piece in pieces(source)])


async def pieces(source: Source) -> AsyncIterator[bytes]:
    offset = 0
    while offset < source.size:
        end = await source.wait(offset)
        yield os.pread(source.fileno(), end - offset, offset)
        offset = end


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    store = Store(tmp_path / "cache")
    yield store
    store.close()


@pytest.fixture
def origin() -> Iterator[OriginServer]:
    """A fake CDN without files."""
    with OriginServer() as server:
        yield server


@pytest.fixture
def make_cvd(tmp_path: Path) -> MakeCvd:
    """Gives the bytes of forged CVDs: version, size, database."""

    def make(version: int, size: int = 0, database: str = "daily") -> bytes:
        path = tmp_path / f"forged-{database}-{version}.cvd"
        forge_cvd(path, database, version, size, stime_of(version))
        return path.read_bytes()

    return make


@pytest.fixture
def child() -> Child:
    """Runs Python code in a process of its own, with the given arguments."""

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        root = Path(__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)

    return run


@dataclass
class Rig:
    """Transfers between a fake CDN and a store."""

    origin: OriginServer
    store: Store
    writer: Writer
    upstream: Upstream
    resources: Resources
    cooldowns: Cooldowns
    transfers: Transfers
    notes: dict[str, Any] = field(default_factory=dict)


def connect(origin: OriginServer | RawOrigin, read_timeout: float = 5.0) -> Upstream:
    return Upstream(
        origin.url,
        proxy=None,
        ca_bundle=None,
        connect_timeout=5.0,
        read_timeout=read_timeout,
        via="1.1 clamproxy-test",
        count=lambda requests, length: None,
    )


@pytest.fixture
async def rig(origin: OriginServer, store: Store) -> AsyncIterator[Rig]:
    """Transfers with a stall window of half a second and 404s that are remembered for a minute."""
    writer, upstream, notes = Writer(), connect(origin), dict[str, Any]()
    resources = Resources(upstream, store, writer, forge_keys().trusted, 0.5, asyncio.Semaphore(16))
    cooldowns = Cooldowns(notes_in(notes))
    transfers = Transfers(resources, cooldowns, lambda _: 60.0, lambda _: None, lambda *_: None)
    yield Rig(origin, store, writer, upstream, resources, cooldowns, transfers, notes)
    transfers.stop()
    writer.submit(store.disconnect)
    writer.close()
    upstream.close()


@pytest.fixture
async def make_bench(
    origin: OriginServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeBench]:
    """Makes followers with all that they use; see follower_bench.py."""
    from tests.unit.follower_bench import open_benches  # which needs what is defined here

    async with open_benches(origin, store, monkeypatch) as make:
        yield make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """One of them, with the usual settings."""
    return make_bench()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """The cache on the other side."""
    store = Store(tmp_path / "other")
    yield store
    store.close()


@pytest.fixture
def fill(make_cvd: MakeCvd) -> Fill:
    """Puts a CVD and cdiffs into a store, with their signatures."""

    def do(store: Store, version: int | None, patches: range = range(0), database: str = "daily") -> None:
        if version is not None:
            body = make_cvd(version, database=database)
            put_cvd(store, version, body, database)
            put(store, sign(cvd(version, database)), SIGNATURE(body))
        for patch in patches:
            body = forge_cdiff(database, patch)
            put(store, cdiff(patch, database), body, last_modified=1.7e9 + patch)
            put(store, sign(cdiff(patch, database)), SIGNATURE(body))

    return do


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file."""

    def write_text(text: str) -> Path:
        path = tmp_path / "proxy.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text
