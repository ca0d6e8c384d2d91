"""Objects, and how tests put them into a store and read them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from functools import cache
from typing import Any

from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.messages import Requester, Source
from clamproxy.objects import Kind, ObjectId
from tests.support.forge import forge_sign
from tests.support.releases import Releases

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
