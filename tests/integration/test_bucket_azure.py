"""The bucket in Azure Blob Storage, with Microsoft's own server for developers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.bucket.bucket import Bucket, open_bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.bucket.bucket_requests import PART
from clamproxy.leases.bucket_leases import BucketLeases
from clamproxy.leases.leases import WaitEnding
from tests.support.azurite import CONTAINER, azurite


@pytest.fixture
async def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: None) -> AsyncIterator[Bucket]:
    with azurite(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        bucket = open_bucket(f"az://{CONTAINER}/prefix")
        yield bucket
        bucket.stop()


async def test_azure(bucket: Bucket, tmp_path: Path) -> None:
    assert await bucket.check() is None
    assert await bucket.list("checks") == {}
    assert await bucket.get("a/b c") is None

    made = await asyncio.gather(*(bucket.create("a/b c", str(number).encode()) for number in range(16)))
    (first,) = (one for one in made if one is not None)
    changed = await asyncio.gather(
        *(bucket.replace("a/b c", f"new {number}".encode(), first) for number in range(16))
    )
    (second,) = (one for one in changed if one is not None)
    assert await bucket.replace("a/gone", b"", first) is None
    stored = await bucket.get("a/b c")
    assert stored is not None
    assert (stored.content, stored.etag) == (f"new {changed.index(second)}".encode(), second)
    assert (await bucket.list("a"))["b c"].etag == second, "as a response's header has it"

    content = bytes(range(251)) * (2 * PART // 251)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        assert await bucket.upload("objects/x", file.fileno(), {"modified": "12.5"})
        assert not await bucket.upload("objects/x", file.fileno())
    found = await bucket.open("objects/x", len(content))
    assert found is not None
    assert found.about == {"modified": "12.5"}
    assert b"".join([chunk async for chunk in found]) == content

    leases, others = BucketLeases(bucket, "first"), BucketLeases(bucket, "second")
    lease = await leases.take("follow")
    assert lease is not None
    assert await others.take("follow") is None
    lease.release({"a": 1})
    assert (await others.wait("follow", 60)).ending is WaitEnding.RELEASED
    assert await others.take("follow") is not None
    others.stop()

    await bucket.delete("a/b c")
    await bucket.delete("a/b c")
    assert bucket.condition.state is None


async def test_a_container_that_is_not_there(bucket: Bucket) -> None:
    missing = open_bucket("az://nothing/prefix")
    with pytest.raises(BucketError, match="there is no such bucket"):
        await missing.check()
    for call in (missing.get("a"), missing.delete("a")):
        with pytest.raises(BucketError, match="there is no such bucket"):
            await call
    missing.stop()
