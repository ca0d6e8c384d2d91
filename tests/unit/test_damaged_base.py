"""A cached CVD whose bytes rotted on the disk: its size is still right, so only a reader notices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from clamproxy.objects import Kind, ObjectId
from tests.support.origin import OriginServer
from tests.unit.conftest import cvd, put_cvd, read
from tests.unit.whole_site import NEWEST, OFFLINE, PROBE, RELEASES, Site, open_site, since

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
async def site(tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        yield site


def rot(site: Site, version: int, damage: Damage) -> None:
    """Spoil a cached CVD in place."""
    body = RELEASES.cvd(version)
    (file,) = (path for path in site.directory.glob("objects/*/*") if path.read_bytes() == body)
    spoilt = damage(body) if damage is not bytes else bytes(len(body))
    assert len(spoilt) == len(body)
    file.chmod(0o600)
    file.write_bytes(spoilt)


async def hold_two(site: Site) -> None:
    """The CVDs of versions 1 and 2, of which the second one is advertised and the newest."""
    await site.begin()
    site.release(2)
    put_cvd(site.service.store, 2, RELEASES.cvd(2))
    assert (await site.ask())[1] == RELEASES.cvd(2)
    await site.settle()
    site.origin.forget()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("path", "fields"), REQUESTS)
async def test_the_origin_takes_over(
    site: Site, path: str, fields: dict[str, Any], damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    await site.begin()
    rot(site, 1, damage)
    site.restart()
    for _ in range(ENOUGH):
        response, content = await site.ask(path, **fields)
        await site.settle()
    assert (response.status, response.version) in ((200, 1), (206, 1))
    assert content in RELEASES.cvd(1)
    assert caplog.text.count("was damaged, and has been dropped from the cache") == 1
    # All others get it, too.
    assert (await site.ask())[1] == RELEASES.cvd(1)
    await site.settle()
    assert read(site.service.store, cvd(1)) == RELEASES.cvd(1)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("path", "fields"), REQUESTS)
async def test_while_the_origin_is_gone_the_older_cvd_takes_over(
    site: Site, path: str, fields: dict[str, Any], damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    await hold_two(site)
    rot(site, 2, damage)
    site.restart()
    site.origin.refuse()
    for _ in range(ENOUGH):
        response, content = await site.ask(path, **fields)
        await site.settle()
    assert (response.status, response.version) in ((200, 1), (206, 1))
    assert content in RELEASES.cvd(1)
    assert caplog.text.count("was damaged, and has been dropped from the cache") == 1
    assert site.service.store.newest_version("daily") == 1


async def test_patches_lead_on_from_the_older_cvd(site: Site) -> None:
    """What was the base is gone: from the one before, patches lead to the same version."""
    await hold_two(site)
    rot(site, 2, bytes)
    site.restart()
    for _ in range(ENOUGH):
        response, content = await site.ask()
        await site.settle()
    assert (response.status, content) == (200, RELEASES.cvd(1))
    assert await site.shown() == 2
    assert site.origin.count("W") == 0


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_cld_is_not_built_from_it(site: Site, damage: Damage) -> None:
    await site.hold()
    rot(site, 1, damage)
    site.restart()
    for _ in range(ENOUGH):
        response, _ = await site.ask("/daily.cld")
        await site.settle()
    assert response.status == 404
    _, content = await site.ask()
    assert content == RELEASES.cvd(NEWEST)


async def test_patches_are_served_all_the_same(site: Site) -> None:
    await site.hold()
    rot(site, 1, bytes)
    site.restart()
    for version in range(2, NEWEST + 1):
        assert (await site.ask(f"/daily-{version}.cdiff"))[1] == RELEASES.cdiff(version)


async def test_offline_the_older_cvd_is_what_there_is(site: Site) -> None:
    await hold_two(site)
    rot(site, 2, bytes)
    site.restart(**OFFLINE)
    for _ in range(ENOUGH):
        response, content = await site.ask()
    assert (response.status, content) == (200, RELEASES.cvd(1))
    assert site.service._current.announced("daily") == await site.shown()


async def test_offline_without_another_there_is_none(site: Site) -> None:
    await site.begin()
    rot(site, 1, bytes)
    site.restart(**OFFLINE)
    for _ in range(ENOUGH):
        response, _ = await site.ask()
    assert response.status == 404
    assert not site.service.store.has(ObjectId("daily", 1, Kind.CVD))
