"""What only leases in the bucket do, and what a site's leases do with those of its machines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.bucket.bucket import Bucket, Stored, open_bucket
from clamproxy.config.units import MIB
from clamproxy.leases import bucket_leases
from clamproxy.leases.bucket_leases import BucketLeases, path_of
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.leases.leases import Leases, WaitEnding
from clamproxy.leases.site_leases import SiteLeases
from tests.support.object_store import ObjectStore
from tests.support.stored import until

NAME = "fetch daily-27800.cdiff"
LONG = 60.0
"""Seconds that nothing here needs."""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals every 0.3 seconds, and 3 seconds to miss them all."""
    monkeypatch.setattr(bucket_leases, "RENEW_EVERY", 0.3)
    monkeypatch.setattr(bucket_leases, "EXPIRES_AFTER", 3.0)
    monkeypatch.setattr(bucket_leases, "PAUSES", (0.1, 0.1))


@pytest.fixture
async def bucket(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, patience: None
) -> AsyncIterator[Bucket]:
    bucket = open_bucket(object_store.use(monkeypatch))
    yield bucket
    bucket.stop()


@pytest.fixture
async def gateways(bucket: Bucket) -> AsyncIterator[tuple[Leases, Leases]]:
    """The leases of two gateways; the second one's bucket always works."""
    first, second = BucketLeases(bucket, "first"), BucketLeases(bucket, "second")
    yield first, second
    first.stop()
    second.stop()


async def content(bucket: Bucket, name: str = NAME) -> dict[str, object]:
    stored = await bucket.get(path_of(name))
    assert stored is not None
    found: dict[str, object] = json.loads(stored.content)
    return found


async def test_a_lease_is_renewed_for_as_long_as_the_work_takes(
    bucket: Bucket, gateways: tuple[Leases, Leases]
) -> None:
    first, second = gateways
    lease = await first.take(NAME)
    assert lease is not None
    assert path_of(NAME) == "leases/fetch_daily-27800.cdiff"
    begun = await content(bucket)
    assert begun["gateway"] == "first"
    assert (await second.wait(NAME, 5.0)).ending is WaitEnding.HELD, "longer than it would last by itself"
    assert await second.take(NAME) is None
    assert not lease.is_lost
    present = await content(bucket)
    assert present["holder"] == begun["holder"]
    assert int(str(present["number"])) > int(str(begun["number"]))
    lease.release({"a": 1})
    outcome = await second.wait(NAME, LONG)
    assert outcome.ending is WaitEnding.RELEASED
    assert (await content(bucket))["holder"] == ""
    taken = await second.take(NAME)
    assert taken is not None
    assert (await content(bucket))["learnt"] == {}, "only for those that waited"


@pytest.mark.parametrize("change", ["replaced", "deleted"])
async def test_whoever_loses_a_lease_knows_it(
    bucket: Bucket, gateways: tuple[Leases, Leases], change: str
) -> None:
    lease = await gateways[0].take(NAME)
    assert lease is not None
    if change == "replaced":
        await bucket.put(path_of(NAME), b'{"holder": "x", "gateway": "", "number": 9, "learnt": {}}')
    else:
        await bucket.delete(path_of(NAME))
    await until(lambda: lease.is_lost)
    before = await bucket.get(path_of(NAME))
    lease.release({"a": 1})
    assert (await gateways[0].wait(NAME, 0.5)).ending is not WaitEnding.FAILED
    assert await bucket.get(path_of(NAME)) == before, "it is somebody else's"


ENDLESS = b'{"holder": "", "gateway": "", "number": %s, "learnt": {}}' % (b"9" * 4300)
"""With one more, this number would be too long for JSON in Python."""


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b'{"holder": 1}', b"\xff" * 100, b"null", b"[" * 100_000, ENDLESS, b"x" * 5 * MIB],
    ids=["empty", "cut", "list", "parts", "bytes", "null", "deep", "endless", "huge"],
)
async def test_a_document_that_makes_no_sense_is_replaced_in_time(
    bucket: Bucket, gateways: tuple[Leases, Leases], garbage: bytes
) -> None:
    await bucket.put(path_of(NAME), garbage)
    assert await gateways[0].take(NAME) is None
    assert (await gateways[0].wait(NAME, LONG)).ending is WaitEnding.RELEASED
    assert await gateways[0].take(NAME) is not None


@pytest.mark.parametrize("step", ["take", "renewal", "release"])
async def test_a_write_whose_response_got_lost_counts(
    bucket: Bucket,
    gateways: tuple[Leases, Leases],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """As after a retry: the second attempt finds what the first one has written."""
    losing: list[str] = []
    create, replace = bucket.create, bucket.replace

    async def lossy_create(path: str, content: bytes) -> str | None:
        etag = await create(path, content)
        return None if losing and losing.pop() else etag

    async def lossy_replace(path: str, content: bytes, etag: str) -> str | None:
        written = await replace(path, content, etag)
        return None if losing and losing.pop() else written

    monkeypatch.setattr(bucket, "create", lossy_create)
    monkeypatch.setattr(bucket, "replace", lossy_replace)
    first, second = gateways
    if step == "take":
        losing.append(step)
    lease = await first.take(NAME)
    assert lease is not None
    if step == "renewal":
        losing.append(step)
        await until(lambda: not losing)
        await asyncio.sleep(1)
        assert not lease.is_lost
    if step == "release":
        losing.append(step)
    lease.release({"a": 1})
    await until(lambda: not losing)
    assert (await second.wait(NAME, LONG)).ending is WaitEnding.RELEASED
    assert await second.take(NAME) is not None


async def test_a_store_that_fails_for_a_moment_costs_no_lease(
    bucket: Bucket, object_store: ObjectStore, gateways: tuple[Leases, Leases]
) -> None:
    lease = await gateways[0].take(NAME)
    assert lease is not None
    object_store.go_down()
    await until(lambda: bucket.condition.state is not None)
    assert not lease.is_lost
    object_store.come_back()
    await until(lambda: bucket.condition.state is None)
    number = (await content(bucket))["number"]
    writes = object_store.count("PUT", "leases/")
    await until(lambda: object_store.count("PUT", "leases/") > writes + 1)
    assert (await content(bucket))["number"] != number
    assert not lease.is_lost


async def test_while_the_store_fails_everybody_works_alone(
    bucket: Bucket, object_store: ObjectStore, gateways: tuple[Leases, Leases]
) -> None:
    held = await gateways[0].take("follow")
    assert held is not None
    object_store.go_down()
    for _ in range(3):
        for leases in gateways:
            lease = await leases.take(NAME)
            assert lease is not None
            assert lease.is_lost
            lease.release({"a": 1})
    assert (await gateways[1].wait("follow", LONG)).ending is WaitEnding.FAILED
    await until(lambda: held.is_lost)
    held.release({"a": 1})
    object_store.come_back()
    await until(lambda: bucket.condition.state is None)
    for _ in range(2):
        outcome = await gateways[1].wait("follow", LONG)
        assert outcome.ending is WaitEnding.RELEASED
    lease = await gateways[1].take("follow")
    assert lease is not None
    assert not lease.is_lost


async def test_a_store_that_shows_what_is_old_gives_no_lease_twice(
    object_store: ObjectStore, gateways: tuple[Leases, Leases]
) -> None:
    first, second = gateways
    lease = await first.take(NAME)
    assert lease is not None
    assert (await second.wait(NAME, 0)).ending is WaitEnding.HELD
    object_store.faults.is_replaying = True
    assert (await second.wait(NAME, LONG)).ending is WaitEnding.RELEASED, "as far as it can see"
    assert await second.take(NAME) is None
    assert not lease.is_lost


async def test_old_documents_are_deleted(
    bucket: Bucket,
    object_store: ObjectStore,
    gateways: tuple[Leases, Leases],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_leases, "SWEEP_EVERY", 2)
    monkeypatch.setattr(bucket_leases, "SWEEP_AFTER", 2.0)
    for number in range(5):
        await bucket.put(f"leases/fetch_old-{number}", b"{}")
    held = await gateways[1].take("follow")
    await asyncio.sleep(3.1)
    for number in range(2):
        lease = await gateways[0].take(f"fetch new-{number}")
        assert lease is not None
        lease.release()
    await until(lambda: object_store.count("DELETE", "old") == 5)
    assert set(await bucket.list("leases")) == {"follow", "fetch_new-0", "fetch_new-1"}
    assert held is not None
    assert not held.is_lost


# Machine and site


class Site:
    """Two machines with two workers each."""

    def __init__(self, bucket: Bucket, tmp_path: Path) -> None:
        self.workers = [
            SiteLeases(
                DirectoryLeases(_made(tmp_path / machine)),
                BucketLeases(bucket, machine),
                lambda: bucket.condition.state is not None,
            )
            for machine in ("a", "b")
            for _ in range(2)
        ]


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


async def test_of_all_workers_of_a_site_one_wins(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, looked, get = Site(bucket, tmp_path), set[object](), bucket.get

    async def noting(path: str) -> Stored | None:
        found = await get(path)
        looked.add(asyncio.current_task())
        return found

    monkeypatch.setattr(bucket, "get", noting)
    for round_ in range(5):
        name = f"fetch {round_}"
        taken = await asyncio.gather(*(one.take(name) for one in site.workers for _ in range(3)))
        (lease,) = (one for one in taken if one is not None)
        waits = [asyncio.create_task(one.wait(name, LONG)) for one in site.workers]
        # Those of the other machine. Only who has seen it held is told what was learnt.
        await until(lambda: len(looked.intersection(waits)) == 2)  # noqa: B023
        assert not any(wait.done() for wait in waits)
        assert not lease.is_lost
        lease.release({"a": 1})
        outcomes = await asyncio.gather(*waits)
        assert {one.ending for one in outcomes} == {WaitEnding.RELEASED}
        assert [one.learnt for one in outcomes] == [{"a": 1}] * 4
    for one in site.workers:
        one.stop()


async def test_a_machines_own_work_asks_the_bucket_nothing(
    bucket: Bucket, object_store: ObjectStore, tmp_path: Path
) -> None:
    a, other, b, _ = Site(bucket, tmp_path).workers
    lease = await a.take("upkeep")
    assert lease is not None
    assert await other.take("upkeep") is None
    assert (await other.wait("upkeep", 0)).ending is WaitEnding.HELD
    assert await b.take("upkeep") is not None
    assert object_store.seen == []


async def test_without_the_store_a_machines_workers_still_share_work(
    bucket: Bucket, object_store: ObjectStore, tmp_path: Path
) -> None:
    object_store.go_down()
    a, other, b, _ = Site(bucket, tmp_path).workers
    first = await a.take("follow")
    assert first is not None
    assert not first.is_lost
    assert await other.take("follow") is None
    second = await b.take("follow")
    assert second is not None, "the other machine works alone, too"
    object_store.come_back()
    await until(lambda: bucket.condition.state is None)
    assert first.is_lost, "others may have it now"
    first.release()
    assert (await other.wait("follow", LONG)).ending is WaitEnding.RELEASED
    assert await a.take("follow") is not None


async def test_site_stops(bucket: Bucket, object_store: ObjectStore, tmp_path: Path) -> None:
    a, _, b, _ = Site(bucket, tmp_path).workers
    assert await a.take(NAME) is not None
    a.stop()
    assert await a.take(NAME) is None
    assert (await a.wait(NAME, LONG)).ending is WaitEnding.FAILED
    assert (await b.wait(NAME, LONG)).ending is WaitEnding.RELEASED
    assert await b.take(NAME) is not None
    b.stop()
    await until(lambda: object_store.count("PUT", "leases/") == 4)
