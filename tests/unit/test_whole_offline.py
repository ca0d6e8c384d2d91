"""What a gateway answers that never asks anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from tests.support.origin import Origin
from tests.unit.whole_site import NEWEST, OFFLINE, RELEASES, Site, open_site, since


@pytest.fixture
async def site(tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        yield site


async def test_offline_the_newest_that_is_cached_is_all_there_is(site: Site) -> None:
    await site.hold()
    site.restart(**OFFLINE)
    site.advertise(NEWEST + 1)
    site.release(NEWEST + 1)
    asked = len(site.dns.queries)
    assert await site.shown() == NEWEST
    reply, content = await site.ask()
    assert (reply.result, content) == (Result.HIT, RELEASES.cvd(1))
    for version in range(2, NEWEST + 1):
        assert (await site.ask(f"/daily-{version}.cdiff"))[1] == RELEASES.cdiff(version)
    assert (await site.ask("/daily.cld"))[0].version == NEWEST
    for path in (f"/daily-{NEWEST + 1}.cdiff", "/daily-4.cdiff.sign", "/main.cvd", "/main.cld"):
        assert await site.refused(path), path
    assert site.origin.requests() == []
    assert len(site.dns.queries) == asked


@pytest.mark.parametrize("version", [1, 2, 3, NEWEST, NEWEST + 1])
async def test_offline_no_client_is_set_back(site: Site, version: int) -> None:
    await site.hold()
    site.restart(**OFFLINE)
    reply, _ = await site.ask(If_Modified_Since=since(version))
    assert reply.status in (304, 404, 503) or (reply.version or 0) > version


@pytest.mark.parametrize("version", [2, 3, NEWEST])
async def test_offline_nor_by_a_base_that_was_uploaded_late(site: Site, version: int) -> None:
    """The Last-Modified of a mirror is the time when it fetched the file."""
    site.release(1)
    site.origin.put("daily.cvd", RELEASES.cvd(1), since(NEWEST + 5))
    await site.ask()
    await site.settle()
    site.release(NEWEST)
    await site.ask()
    await site.settle()
    site.restart(**OFFLINE)
    reply, _ = await site.ask(If_Modified_Since=since(version))
    assert reply.status in (304, 404, 503) or (reply.version or 0) > version


async def test_offline_with_nothing_cached(site: Site) -> None:
    site.release(1)
    site.restart(**OFFLINE)
    for _ in range(2):
        for path in ("/daily.cvd", "/daily-1.cdiff", "/daily.cld", "/daily.cvd?version=1"):
            assert await site.refused(path), path
    assert site.origin.requests() == []


async def test_online_again(site: Site) -> None:
    await site.hold()
    site.restart(**OFFLINE)
    await site.ask()
    site.restart()
    site.release(NEWEST + 1)
    assert await site.shown() == NEWEST + 1
    assert site.origin.trace == f"D{NEWEST + 1}"
