"""Transfers from a fake CDN into a store: one that runs, one that has ended, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from clamproxy.cache.partial import PartialFile, Validators
from clamproxy.cache.store import Store
from clamproxy.messages import Requester
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.errors import TransferError
from clamproxy.origin.link import Link
from clamproxy.origin.transfer import Resources, Transfer
from clamproxy.origin.transfers import Transfers
from clamproxy.origin.upstream import Upstream
from clamproxy.threads import Writer
from tests.support.forge import forge_keys
from tests.support.notes import notes_in
from tests.support.origin import OriginServer
from tests.support.scripted import RawOrigin
from tests.support.stored import NEW, read, until

SIZE = 512 * 1024
LIMIT = 30
"""Seconds; only a guard."""


@dataclass
class TransferHarness:
    """Transfers between a fake CDN and a store."""

    origin: OriginServer
    store: Store
    writer: Writer
    upstream: Upstream
    resources: Resources
    cooldowns: Cooldowns
    transfers: Transfers
    notes: dict[str, Any] = field(default_factory=dict)


def connect(
    origin: OriginServer | RawOrigin, read_timeout: float = 5.0, link: Link | None = None
) -> Upstream:
    return Upstream(
        origin.url,
        proxy=None,
        ca_bundle=None,
        connect_timeout=5.0,
        read_timeout=read_timeout,
        via="1.1 clamproxy-test",
        count=lambda requests, length: None,
        link=link,
    )


@asynccontextmanager
async def open_harness(
    origin: OriginServer, store: Store, stall_window: float = 0.5
) -> AsyncIterator[TransferHarness]:
    """Transfers with a stall window in seconds, and 404s that are remembered for a minute."""
    writer, upstream, notes = Writer(), connect(origin), dict[str, Any]()
    resources = Resources(upstream, store, writer, forge_keys().trusted, stall_window, asyncio.Semaphore(16))
    cooldowns = Cooldowns(notes_in(notes))
    transfers = Transfers(resources, cooldowns, lambda _: 60.0, lambda _: None, lambda *_: None)
    yield TransferHarness(origin, store, writer, upstream, resources, cooldowns, transfers, notes)
    transfers.stop()
    writer.submit(store.disconnect)
    writer.close()
    upstream.close()


@asynccontextmanager
async def running(
    harness: TransferHarness, expected: ObjectId, oldest: int | None = None
) -> AsyncIterator[Transfer]:
    """A transfer whose task is running."""
    transfer = Transfer(expected, NEW, harness.resources, oldest)
    task = asyncio.create_task(transfer.run())
    try:
        async with asyncio.timeout(LIMIT):
            yield transfer
            await asyncio.wait({task})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def fetch(harness: TransferHarness, expected: ObjectId, oldest: int | None = None) -> Transfer:
    """A transfer that has ended."""
    async with running(harness, expected, oldest) as transfer:
        pass
    return transfer


async def failure_of(
    harness: TransferHarness, expected: ObjectId, oldest: int | None = None
) -> TransferError:
    transfer = await fetch(harness, expected, oldest)
    assert not transfer.published
    assert harness.store.open(transfer.object_id) is None
    with pytest.raises(TransferError) as caught:
        await transfer.ready()
    return caught.value


def stored(harness: TransferHarness, object_id: ObjectId) -> bytes | None:
    return read(harness.store, object_id)


def leave_partial(harness: TransferHarness, object_id: ObjectId, data: bytes, validators: Validators) -> None:
    partial = PartialFile.claim(harness.store.partials, object_id)
    partial.begin(validators)
    partial.append(data)
    partial.release()


async def validators_of(harness: TransferHarness, path: str) -> Validators:
    """What the fake CDN says of a file."""

    def ask() -> Validators:
        with harness.upstream.get(path, NEW) as answer:
            return Validators(answer.size, answer.etag, answer.last_modified)

    validators = await asyncio.to_thread(ask)
    harness.origin.forget()
    return validators


def partial_names(harness: TransferHarness) -> list[str]:
    return sorted(path.name for path in harness.store.partials.iterdir())


async def ended(harness: TransferHarness) -> None:
    """Wait until no transfer runs."""
    await until(lambda: not harness.transfers.under_way())


async def ask(harness: TransferHarness, object_id: ObjectId, requester: Requester = NEW) -> Transfer:
    """Join and wait, as a request does."""
    async with asyncio.timeout(LIMIT):
        transfer, _ = harness.transfers.join(object_id, requester)
        try:
            await transfer.ready()
        finally:
            await ended(harness)
    return transfer
