"""Signatures that belong to other files: never handed out, whoever put them where they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import HOUR
from tests.harness.service import RELEASES, ServiceHarness, open_harness
from tests.support import faults
from tests.support.forge import forge_sign
from tests.support.origin import OriginServer
from tests.support.stored import cdiff, cvd, put, read, sign, until

WRONG = forge_sign(b"another file")
CVD_SIGN, CDIFF_SIGN = sign(cvd(1)), sign(cdiff(2))
BOTH = pytest.mark.parametrize("signature", [CVD_SIGN, CDIFF_SIGN], ids=lambda one: one.file_name)


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    """CVD 1 and cdiff 2 are cached, without their signatures."""
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.hold(1, 2)
        yield harness


def right(harness: ServiceHarness, signature: ObjectId) -> bytes:
    """Put the right signature on the CDN."""
    body = forge_sign(read(harness.service.store, signature.signed) or b"")
    harness.origin.put(signature.file_name, body)
    return body


@BOTH
async def test_a_signature_of_another_file_from_the_origin(
    harness: ServiceHarness, signature: ObjectId
) -> None:
    harness.origin.put(signature.file_name, WRONG)
    for _ in range(2):
        response, _ = await harness.ask(signature.upstream_path)
        assert (response.status, response.result) == (503, Result.ERROR)
    assert not harness.service.store.has(signature)
    (rejected,) = harness.service.store.quarantined()
    assert rejected.read_bytes() == WRONG
    assert harness.origin.count(signature.upstream_path) == 1


@BOTH
async def test_a_refused_signature_is_fetched_again(harness: ServiceHarness, signature: ObjectId) -> None:
    harness.origin.put(signature.file_name, WRONG)
    await harness.ask(signature.upstream_path)
    body = right(harness, signature)
    harness.clock.ahead += HOUR
    assert (await harness.ask(signature.upstream_path))[1] == body


@BOTH
async def test_a_signature_of_another_file_in_a_cache_of_an_earlier_version(
    harness: ServiceHarness, signature: ObjectId
) -> None:
    put(harness.service.store, signature, WRONG)
    body = right(harness, signature)
    for result in (Result.MISS, Result.HIT):
        response, content = await harness.ask(signature.upstream_path)
        assert (response.status, response.result, content) == (200, result, body)


@BOTH
async def test_a_signature_of_another_file_is_dropped_at_the_start(
    harness: ServiceHarness, signature: ObjectId
) -> None:
    put(harness.service.store, signature, WRONG)
    put(harness.service.store, sign(cdiff(9)), WRONG)
    harness.restart(serving={"prefetch": "none"})
    harness.service.start()
    await until(lambda: not harness.service.store.has(signature))
    assert harness.service.store.has(sign(cdiff(9)))  # its file isn't here, so nobody knows


async def test_a_signature_that_came_before_its_file(harness: ServiceHarness) -> None:
    """It is passed on for what it is, and held against the file as soon as that is here."""
    signature = sign(cdiff(3))
    harness.origin.put(signature.file_name, WRONG)
    harness.advertise(3)
    assert (await harness.ask(signature.upstream_path))[1] == WRONG
    harness.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    await harness.ask("/daily-3.cdiff")
    await harness.settle()
    harness.origin.put(signature.file_name, RELEASES.cdiff_sign(3))
    _, content = await harness.ask(signature.upstream_path)
    assert content != WRONG
    assert (await harness.ask(signature.upstream_path))[0].result is Result.HIT


async def test_a_signature_that_is_asked_for_while_its_file_is_published(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client has the last bytes of a file a moment before the cache has it."""
    harness.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    harness.origin.put("daily-3.cdiff.sign", WRONG)
    harness.advertise(3)
    store = harness.service.store
    verified, publish = asyncio.Event(), store.publish
    loop = asyncio.get_running_loop()

    def slow_publish(*arguments: object) -> None:
        loop.call_soon_threadsafe(verified.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result()
        publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "publish", slow_publish)
    client = asyncio.create_task(harness.ask("/daily-3.cdiff"))
    await verified.wait()
    response, _ = await harness.ask("/daily-3.cdiff.sign")
    assert response.status == 503
    await client


async def test_a_signature_of_a_damaged_file_stays(harness: ServiceHarness) -> None:
    """The signature may be the one that is right."""
    store = harness.service.store
    put(store, CDIFF_SIGN, RELEASES.cdiff_sign(2))
    store.drop(cdiff(2))
    put(store, cdiff(2), RELEASES.cdiff(2)[:-3] + b"xyz")
    response, _ = await harness.ask(CDIFF_SIGN.upstream_path)
    assert (response.status, response.result) == (200, Result.HIT)


async def test_many_who_ask_for_a_signature_at_once_wait_for_one_look(harness: ServiceHarness) -> None:
    put(harness.service.store, CVD_SIGN, WRONG)
    body = right(harness, CVD_SIGN)
    responses = await asyncio.gather(*(harness.ask(CVD_SIGN.upstream_path) for _ in range(20)))
    assert {content for _, content in responses} == {body}
    assert harness.origin.count(CVD_SIGN.upstream_path) == 1


async def test_a_file_under_another_name(harness: ServiceHarness) -> None:
    """The signature of each file is that of the others' only."""
    harness.origin.put(CVD_SIGN.file_name, RELEASES.cdiff_sign(2))
    harness.origin.put(CDIFF_SIGN.file_name, RELEASES.cvd_sign(1))
    for signature in (CVD_SIGN, CDIFF_SIGN):
        assert (await harness.ask(signature.upstream_path))[0].status == 503


async def test_the_follower_replaces_a_signature_of_another_file(harness: ServiceHarness) -> None:
    store, signatures = harness.service.store, (CDIFF_SIGN, sign(cvd(2)))
    for signature in signatures:
        put(store, signature, WRONG)
    await harness.service.clamav.renew("daily")
    for signature in signatures:
        assert read(store, signature) not in (None, WRONG)


async def test_an_answer_that_is_no_signature(harness: ServiceHarness) -> None:
    harness.origin.rule("*", faults.html())
    assert (await harness.ask(CVD_SIGN.upstream_path))[0].status == 503
