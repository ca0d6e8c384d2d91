"""Signatures that belong to other files: never handed out, whoever put them where they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from clamproxy.objects import ObjectId
from tests.support import faults
from tests.support.forge import forge_sign
from tests.support.origin import OriginServer
from tests.unit.conftest import NEW, cdiff, cvd, put, read, sign, until
from tests.unit.whole_site import RELEASES, Site, open_site

WRONG = forge_sign(b"another file")
CVD_SIGN, CDIFF_SIGN = sign(cvd(1)), sign(cdiff(2))
BOTH = pytest.mark.parametrize("signature", [CVD_SIGN, CDIFF_SIGN], ids=lambda one: one.file_name)


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """CVD 1 and cdiff 2 are cached, without their signatures."""
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        await site.hold(1, 2)
        yield site


def right(site: Site, signature: ObjectId) -> bytes:
    """Put the right signature on the CDN."""
    body = forge_sign(read(site.service.store, signature.signed) or b"")
    site.origin.put(signature.file_name, body)
    return body


@BOTH
async def test_of_the_origin(site: Site, signature: ObjectId) -> None:
    site.origin.put(signature.file_name, WRONG)
    for _ in range(2):
        response, _ = await site.ask(signature.upstream_path)
        assert (response.status, response.result) == (503, Result.ERROR)
    assert not site.service.store.has(signature)
    (rejected,) = site.service.store.quarantined()
    assert rejected.read_bytes() == WRONG
    assert site.origin.count(signature.upstream_path) == 1


@BOTH
async def test_it_is_fetched_again(site: Site, signature: ObjectId) -> None:
    site.origin.put(signature.file_name, WRONG)
    await site.ask(signature.upstream_path)
    body = right(site, signature)
    site.service._origin.cooldowns._active.clear()  # its time is over
    assert (await site.ask(signature.upstream_path))[1] == body


@BOTH
async def test_in_a_cache_of_an_earlier_version(site: Site, signature: ObjectId) -> None:
    put(site.service.store, signature, WRONG)
    body = right(site, signature)
    for result in (Result.MISS, Result.HIT):
        response, content = await site.ask(signature.upstream_path)
        assert (response.status, response.result, content) == (200, result, body)


@BOTH
async def test_is_dropped_at_the_start(site: Site, signature: ObjectId) -> None:
    put(site.service.store, signature, WRONG)
    put(site.service.store, sign(cdiff(9)), WRONG)
    site.restart(serving={"prefetch": "none"})
    site.service.start()
    await until(lambda: not site.service.store.has(signature))
    assert site.service.store.has(sign(cdiff(9)))  # its file isn't here, so nobody knows


async def test_that_came_before_its_file(site: Site) -> None:
    """It is passed on for what it is, and held against the file as soon as that is here."""
    signature = sign(cdiff(3))
    site.origin.put(signature.file_name, WRONG)
    site.advertise(3)
    assert (await site.ask(signature.upstream_path))[1] == WRONG
    site.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    await site.ask("/daily-3.cdiff")
    await site.settle()
    site.origin.put(signature.file_name, RELEASES.cdiff_sign(3))
    _, content = await site.ask(signature.upstream_path)
    assert content != WRONG
    assert (await site.ask(signature.upstream_path))[0].result is Result.HIT


async def test_that_is_asked_for_while_its_file_is_published(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client has the last bytes of a file a moment before the cache has it."""
    site.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    site.origin.put("daily-3.cdiff.sign", WRONG)
    site.advertise(3)
    transfers, store = site.service._transfers, site.service.store
    verified, publish = asyncio.Event(), store.publish
    loop = asyncio.get_running_loop()

    def slow_publish(*arguments: object) -> None:
        loop.call_soon_threadsafe(verified.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result()
        publish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "publish", slow_publish)
    transfers.join(cdiff(3), NEW)
    await verified.wait()
    response, _ = await site.ask("/daily-3.cdiff.sign")
    assert response.status == 503


async def test_of_a_damaged_file_stays(site: Site) -> None:
    """The signature may be the one that is right."""
    store = site.service.store
    put(store, CDIFF_SIGN, RELEASES.cdiff_sign(2))
    store.drop(cdiff(2))
    put(store, cdiff(2), RELEASES.cdiff(2)[:-3] + b"xyz")
    response, _ = await site.ask(CDIFF_SIGN.upstream_path)
    assert (response.status, response.result) == (200, Result.HIT)


async def test_many_who_ask_at_once_wait_for_one_look(site: Site) -> None:
    put(site.service.store, CVD_SIGN, WRONG)
    body = right(site, CVD_SIGN)
    responses = await asyncio.gather(*(site.ask(CVD_SIGN.upstream_path) for _ in range(20)))
    assert {content for _, content in responses} == {body}
    assert site.origin.count(CVD_SIGN.upstream_path) == 1


async def test_a_file_under_another_name(site: Site) -> None:
    """The signature of each file is that of the others' only."""
    site.origin.put(CVD_SIGN.file_name, RELEASES.cdiff_sign(2))
    site.origin.put(CDIFF_SIGN.file_name, RELEASES.cvd_sign(1))
    for signature in (CVD_SIGN, CDIFF_SIGN):
        assert (await site.ask(signature.upstream_path))[0].status == 503


async def test_the_follower_replaces_it(site: Site) -> None:
    store, signatures = site.service.store, (CDIFF_SIGN, sign(cvd(2)))
    for signature in signatures:
        put(store, signature, WRONG)
    await site.service.renew("daily")
    for signature in signatures:
        assert read(store, signature) not in (None, WRONG)


async def test_an_answer_that_is_no_signature(site: Site) -> None:
    site.origin.rule("*", faults.html())
    assert (await site.ask(CVD_SIGN.upstream_path))[0].status == 503
