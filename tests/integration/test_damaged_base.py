"""A cached CVD whose bytes rotted on the disk: its size is still right, so only a reader notices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from clamproxy.objects import Kind, ObjectId
from tests.harness.service import NEWEST, OFFLINE, PROBE, RELEASES, ServiceHarness, open_harness, since
from tests.support.origin import OriginServer
from tests.support.stored import cvd, put_cvd, read

type Damage = Callable[[bytes], bytes]

ENOUGH = 2
"""Requests: the first one finds the damage."""
DAMAGES = [
    pytest.param(lambda body: b"<" * 512 + body[512:], id="the header"),
    pytest.param(lambda body: body[:-100] + b"x" * 100, id="the end"),
    pytest.param(bytes, id="zeros"),
    pytest.param(lambda body: body[:520] + b"x" * (len(body) - 520), id="all behind the header"),
]
REQUESTS = [
    pytest.param("/daily.cvd", {}, id="a new client"),
    pytest.param("/daily.cvd", PROBE, id="a probe"),
    pytest.param("/daily.cvd", {"method": "HEAD"}, id="HEAD"),
    pytest.param("/daily.cvd", {"Range": "bytes=0-"}, id="somebody who resumes"),
    pytest.param("/daily.cvd", {"If_Modified_Since": since(1, -86400)}, id="a client with an older one"),
    pytest.param("/daily.cvd", {"agent": "curl/8.5.0"}, id="no freshclam"),
]


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        yield harness


def rot(harness: ServiceHarness, version: int, damage: Damage) -> None:
    """Spoil a cached CVD in place."""
    body = RELEASES.cvd(version)
    (file,) = (path for path in harness.directory.glob("objects/*/*") if path.read_bytes() == body)
    spoilt = damage(body) if damage is not bytes else bytes(len(body))
    assert len(spoilt) == len(body)
    file.chmod(0o600)
    file.write_bytes(spoilt)


async def hold_two(harness: ServiceHarness) -> None:
    """The CVDs of versions 1 and 2, of which the second one is advertised and the newest."""
    await harness.begin()
    harness.release(2)
    put_cvd(harness.service.store, 2, RELEASES.cvd(2))
    assert (await harness.ask())[1] == RELEASES.cvd(2)
    await harness.settle()
    harness.origin.forget()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("path", "fields"), REQUESTS)
async def test_the_origin_takes_over(
    harness: ServiceHarness,
    path: str,
    fields: dict[str, Any],
    damage: Damage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await harness.begin()
    rot(harness, 1, damage)
    harness.restart()
    for _ in range(ENOUGH):
        response, content = await harness.ask(path, **fields)
        await harness.settle()
    assert (response.status, response.version) in ((200, 1), (206, 1))
    assert content in RELEASES.cvd(1)
    assert caplog.text.count("was damaged, and has been dropped from the cache") == 1
    # All others get it, too.
    assert (await harness.ask())[1] == RELEASES.cvd(1)
    await harness.settle()
    assert read(harness.service.store, cvd(1)) == RELEASES.cvd(1)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("path", "fields"), REQUESTS)
async def test_while_the_origin_is_gone_the_older_cvd_takes_over(
    harness: ServiceHarness,
    path: str,
    fields: dict[str, Any],
    damage: Damage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await hold_two(harness)
    rot(harness, 2, damage)
    harness.restart()
    harness.origin.refuse()
    for _ in range(ENOUGH):
        response, content = await harness.ask(path, **fields)
        await harness.settle()
    assert (response.status, response.version) in ((200, 1), (206, 1))
    assert content in RELEASES.cvd(1)
    assert caplog.text.count("was damaged, and has been dropped from the cache") == 1
    assert harness.service.store.newest_version("daily") == 1


async def test_patches_lead_on_from_the_older_cvd(harness: ServiceHarness) -> None:
    """What was the base is gone: from the one before, patches lead to the same version."""
    await hold_two(harness)
    rot(harness, 2, bytes)
    harness.restart()
    for _ in range(ENOUGH):
        response, content = await harness.ask()
        await harness.settle()
    assert (response.status, content) == (200, RELEASES.cvd(1))
    assert await harness.shown() == 2
    assert harness.origin.count("W") == 0


@pytest.mark.parametrize("damage", DAMAGES)
async def test_no_cld_is_built_from_a_damaged_base(harness: ServiceHarness, damage: Damage) -> None:
    await harness.hold()
    rot(harness, 1, damage)
    harness.restart()
    for _ in range(ENOUGH):
        response, _ = await harness.ask("/daily.cld")
        await harness.settle()
    assert response.status == 404
    _, content = await harness.ask()
    assert content == RELEASES.cvd(NEWEST)


async def test_patches_are_served_all_the_same(harness: ServiceHarness) -> None:
    await harness.hold()
    rot(harness, 1, bytes)
    harness.restart()
    for version in range(2, NEWEST + 1):
        assert (await harness.ask(f"/daily-{version}.cdiff"))[1] == RELEASES.cdiff(version)


async def test_offline_the_older_cvd_is_what_there_is(harness: ServiceHarness) -> None:
    await hold_two(harness)
    rot(harness, 2, bytes)
    harness.restart(**OFFLINE)
    for _ in range(ENOUGH):
        response, content = await harness.ask()
    assert (response.status, content) == (200, RELEASES.cvd(1))
    assert await harness.announced() == await harness.shown()


async def test_offline_without_another_there_is_none(harness: ServiceHarness) -> None:
    await harness.begin()
    rot(harness, 1, bytes)
    harness.restart(**OFFLINE)
    for _ in range(ENOUGH):
        response, _ = await harness.ask()
    assert response.status == 404
    assert not harness.service.store.has(ObjectId("daily", 1, Kind.CVD))
