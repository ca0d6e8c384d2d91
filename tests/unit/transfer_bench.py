"""Transfers from a fake CDN into a store: one that runs, one that has ended, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clamproxy.cache.partial import PartialFile, Validators
from clamproxy.messages import Requester
from clamproxy.objects import ObjectId
from clamproxy.origin.transfer import Transfer, TransferError
from tests.unit.conftest import NEW, Rig, read, until

SIZE = 512 * 1024
LIMIT = 30
"""Seconds; only a guard."""


@asynccontextmanager
async def running(rig: Rig, expected: ObjectId, oldest: int | None = None) -> AsyncIterator[Transfer]:
    """A transfer whose task is running."""
    transfer = Transfer(expected, NEW, rig.resources, oldest)
    task = asyncio.create_task(transfer.run())
    try:
        async with asyncio.timeout(LIMIT):
            yield transfer
            await asyncio.wait({task})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def fetch(rig: Rig, expected: ObjectId, oldest: int | None = None) -> Transfer:
    """A transfer that has ended."""
    async with running(rig, expected, oldest) as transfer:
        pass
    return transfer


async def failure_of(rig: Rig, expected: ObjectId, oldest: int | None = None) -> TransferError:
    transfer = await fetch(rig, expected, oldest)
    assert not transfer.published
    assert rig.store.open(transfer.object_id) is None
    with pytest.raises(TransferError) as caught:
        await transfer.ready()
    return caught.value


def stored(rig: Rig, object_id: ObjectId) -> bytes | None:
    return read(rig.store, object_id)


def leave_partial(rig: Rig, object_id: ObjectId, data: bytes, validators: Validators) -> None:
    partial = PartialFile.claim(rig.store.partials, object_id)
    partial.begin(validators)
    partial.append(data)
    partial.release()


async def validators_of(rig: Rig, path: str) -> Validators:
    """What the fake CDN says of a file."""

    def ask() -> Validators:
        with rig.upstream.get(path, NEW) as answer:
            return Validators(answer.size, answer.etag, answer.last_modified)

    validators = await asyncio.to_thread(ask)
    rig.origin.forget()
    return validators


def partial_names(rig: Rig) -> list[str]:
    return sorted(path.name for path in rig.store.partials.iterdir())


async def ended(rig: Rig) -> None:
    """Wait until no transfer runs."""
    await until(lambda: not rig.transfers._running)


async def ask(rig: Rig, object_id: ObjectId, requester: Requester = NEW) -> Transfer:
    """Join and wait, as a request does."""
    async with asyncio.timeout(LIMIT):
        transfer, _ = rig.transfers.join(object_id, requester)
        try:
            await transfer.ready()
        finally:
            await ended(rig)
    return transfer
