"""Ready answers: the same as from the disk, and never of what the cache doesn't hold any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers

from clamproxy.cache.index import LOOK_EVERY
from clamproxy.cache.store import Store
from clamproxy.inspection import Inspected, reject
from clamproxy.messages import Body, Request, Requester, Result
from clamproxy.objects import ObjectId
from clamproxy.releases.signs import Signs
from clamproxy.responses import complete
from clamproxy.serving.database_responses import from_object
from clamproxy.serving.ready import ReadyAnswers
from tests.harness.service import PROBE, RELEASES, ServiceHarness, open_harness, since
from tests.support.forge import forge_cdiff, forge_keys, forge_sign
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, cdiff, cvd, put, put_cvd, read, sign

PATCH = cdiff(2)
SIGNATURE = sign(PATCH)
BODIES: dict[ObjectId, Callable[[], bytes]] = {
    PATCH: lambda: RELEASES.cdiff(2),
    SIGNATURE: cache(lambda: RELEASES.cdiff_sign(2)),  # another one each time it is made
}
BOTH = pytest.mark.parametrize("asked", BODIES, ids=lambda one: one.file_name)


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    """CVD 1, cdiff 2 and its signature are cached, and looked at."""
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.hold(1, 2)
        harness.origin.put(SIGNATURE.file_name, BODIES[SIGNATURE]())
        put(harness.service.store, SIGNATURE, BODIES[SIGNATURE]())
        await harness.service.clamav.upkeep.check()
        yield harness


def spoil(store: Store, object_id: ObjectId) -> None:
    """As a bad disk does: other bytes, as many as before."""
    published = store.open(object_id)
    assert published is not None
    with published:
        path = Path(published.path)
        path.unlink()
        path.write_bytes(bytes(published.size))


@BOTH
async def test_an_answer_from_memory_is_the_one_from_the_disk(
    harness: ServiceHarness, asked: ObjectId
) -> None:
    first, content = await harness.ask(asked.upstream_path)
    assert (first.status, first.result, content) == (200, Result.HIT, BODIES[asked]())
    spoil(harness.service.store, asked)
    for method, body in (("GET", content), ("HEAD", b"")):
        response, again = await harness.ask(asked.upstream_path, method=method)
        assert again == body
        assert [*response.headers] == [*first.headers]
        assert (response.status, response.result, response.version) == (
            first.status,
            first.result,
            first.version,
        )


@BOTH
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Range": "bytes=1-5"}, 206),
        ({"If-None-Match": "*"}, 304),
        ({"If-Match": '"another"'}, 412),
        ({"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
    ],
)
async def test_conditions_and_ranges(
    harness: ServiceHarness, asked: ObjectId, fields: dict[str, str], status: int
) -> None:
    for _ in range(2):
        response, content = await harness.ask(asked.upstream_path, **fields)
        assert response.status == status
        assert content == {206: BODIES[asked]()[1:6], 200: BODIES[asked]()}.get(status, b"")
        assert (await harness.ask(asked.upstream_path))[1] == BODIES[asked]()


# What the cache doesn't hold any more


def purge(store: Store, object_id: ObjectId) -> None:
    """By another process, as `clamproxy purge` is one."""
    other = Store(store.directory, tidy=False)
    other.drop(object_id)
    other.close()
    time.sleep(LOOK_EVERY)


def evict(store: Store, object_id: ObjectId) -> None:
    """After a newer CVD has come."""
    put_cvd(store, object_id.version + 1, RELEASES.cvd(object_id.version + 1))
    store.collect_garbage(0, 0)


def put_into_quarantine(store: Store, object_id: ObjectId) -> None:
    published = store.open(object_id)
    assert published is not None
    with published:
        inode = Path(published.path).stat().st_ino
    assert reject(store, Inspected(object_id, published.size, "bad", is_damaged=True, inode=inode))


@BOTH
@pytest.mark.parametrize("drop", [purge, evict, put_into_quarantine])
async def test_what_is_dropped_is_not_answered_any_more(
    harness: ServiceHarness, asked: ObjectId, drop: Callable[[Store, ObjectId], None]
) -> None:
    for _ in range(2):
        await harness.ask(asked.upstream_path)
    harness.origin.forget()
    drop(harness.service.store, asked)
    response, content = await harness.ask(asked.upstream_path)
    assert (response.result, content) == (Result.MISS, BODIES[asked]())
    assert harness.origin.count(asked.upstream_path) == 1


@pytest.mark.parametrize("other_process", [False, True])
async def test_what_is_replaced(harness: ServiceHarness, *, other_process: bool) -> None:
    await harness.ask(PATCH.upstream_path)
    own = harness.service.store
    store = Store(own.directory, tidy=False) if other_process else own
    store.drop(PATCH)
    put(store, PATCH, forge_cdiff("daily", 2))
    await asyncio.sleep(LOOK_EVERY)
    assert (await harness.ask(PATCH.upstream_path))[1] == forge_cdiff("daily", 2)
    if other_process:
        store.close()


async def test_a_signature_is_compared_again_with_another_file(harness: ServiceHarness) -> None:
    await harness.ask(SIGNATURE.upstream_path)
    store = harness.service.store
    store.drop(PATCH)
    put(store, PATCH, forge_cdiff("daily", 2))
    harness.origin.put(SIGNATURE.file_name, forge_sign(forge_cdiff("daily", 2)))
    response, content = await harness.ask(SIGNATURE.upstream_path)
    assert (response.result, content) == (Result.MISS, read(store, SIGNATURE))
    assert content != BODIES[SIGNATURE]()


@BOTH
async def test_damage_is_found_when_a_file_is_read(harness: ServiceHarness, asked: ObjectId) -> None:
    """It was sound when the gateway began."""
    spoil(harness.service.store, asked)
    response, content = await harness.ask(asked.upstream_path)
    assert (response.result, content) == (Result.MISS, BODIES[asked]())
    await harness.settle()
    assert read(harness.service.store, asked) == BODIES[asked]()


async def test_a_404_is_over_when_the_file_is_here(harness: ServiceHarness) -> None:
    signature = sign(cvd(1))
    harness.origin.remove(signature.file_name)
    for result in (Result.MISS, Result.NEGATIVE):
        response, _ = await harness.ask(signature.upstream_path)
        assert (response.status, response.result) == (404, result)
    other = Store(harness.service.store.directory, tidy=False)
    put(other, signature, forge_sign(RELEASES.cvd(1)))
    other.close()
    await asyncio.sleep(LOOK_EVERY)
    assert (await harness.ask(signature.upstream_path))[0].status == 200


# What else happens


async def test_who_asks_is_noticed_but_for_the_doctor(harness: ServiceHarness) -> None:
    harness.restart(serving={"prefetch": "none"})
    harness.service.clamav.origin.agents._seen.clear()
    await harness.ask(PATCH.upstream_path, Clamproxy_Doctor="yes")
    await harness.ask(PATCH.upstream_path, Clamproxy_Doctor="yes")
    assert harness.service.clamav.origin.agents.requester() is None
    await harness.ask(PATCH.upstream_path)
    assert harness.service.clamav.origin.agents.requester() == Requester(AGENT)


@pytest.mark.parametrize("fields", [PROBE, PROBE | {"If-Modified-Since": since(1)}, {"If-None-Match": "*"}])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_asked_about_a_cvd_opens_no_file(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch, method: str, fields: dict[str, str]
) -> None:
    monkeypatch.setattr("clamproxy.releases.lineage.LOOK_EVERY", 0.0)  # it misses the patch at once
    harness.advertise(1)
    harness.service.store.drop(PATCH)
    response, content = await harness.ask(method=method, **fields)
    await harness.settle()  # whoever tidies up opens all of them
    harness.service.store.set_note("what", "is of no concern to it")
    opened: list[Path] = []
    monkeypatch.setattr("clamproxy.cache.published.open_to_read", opened.append)
    again, same = await harness.ask(method=method, **fields)
    del again.headers["Date"], response.headers["Date"]  # a second may have passed
    assert (again.status, [*again.headers], same) == (response.status, [*response.headers], content)
    assert opened == []


# Limits


def kept(store: Store, ready: ReadyAnswers, version: int) -> Request:
    """Have an answer of 10,000 bytes kept."""
    if not store.has(cdiff(version)):
        put(store, cdiff(version), bytes(10_000))
    published = store.open(cdiff(version))
    assert published is not None
    request = Request("GET", f"/daily-{version}.cdiff", Headers())
    response = from_object(request, cdiff(version), published.metadata, published, Result.HIT)
    assert ready.keep(request, cdiff(version), response)
    return request


def test_what_was_asked_for_longest_ago_makes_room(store: Store) -> None:
    ready = ReadyAnswers(store, Signs(store, forge_keys().trusted), limit=35_000)
    requests = [kept(store, ready, version) for version in (5, 6, 7)]
    assert ready.find(requests[0]) is not None
    kept(store, ready, 8)
    kept(store, ready, 8)
    found = [ready.find(request) is not None for request in requests]
    assert found == [True, False, True]


def test_what_the_cache_has_dropped_makes_room_first(store: Store) -> None:
    ready = ReadyAnswers(store, Signs(store, forge_keys().trusted), limit=35_000)
    requests = [kept(store, ready, version) for version in (5, 6, 7)]
    store.drop(cdiff(6))
    store.drop(cdiff(7))
    requests += [kept(store, ready, version) for version in (8, 9)]
    found = [ready.find(request) is not None for request in requests]
    assert found == [True, False, False, True, True]


def test_a_head_takes_nothing_away_from_others(store: Store) -> None:
    """Those who ask within the same second are given one response; it is complete, so nobody changes it."""
    ready = ReadyAnswers(store, Signs(store, forge_keys().trusted))
    request = kept(store, ready, 5)

    def answer(method: str) -> tuple[bytes | Body, list[str]]:
        found = ready.find(Request(method, request.path, Headers()))
        assert found is not None
        complete(found[1], method, "1.1 gateway")
        return found[1].body, sorted(name for name, _ in found[1].headers)

    body, fields = answer("GET")
    assert answer("HEAD") == (b"", fields)
    assert answer("GET") == (body, fields)
    assert body
    assert len(set(fields)) == len(fields)
