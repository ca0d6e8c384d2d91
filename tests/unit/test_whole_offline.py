"""What a gateway answers that never asks anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from tests.support import faults
from tests.support.origin import OriginServer
from tests.unit.whole_site import NEWEST, OFFLINE, RELEASES, Site, open_site, since


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        yield site


async def test_offline_the_newest_that_is_cached_is_all_there_is(site: Site) -> None:
    await site.hold()
    site.restart(**OFFLINE)
    site.advertise(NEWEST + 1)
    site.release(NEWEST + 1)
    asked = len(site.dns.queries)
    assert await site.shown() == NEWEST
    response, content = await site.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
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
    response, _ = await site.ask(If_Modified_Since=since(version))
    assert response.status in (304, 404, 503) or (response.version or 0) > version


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
    response, _ = await site.ask(If_Modified_Since=since(version))
    assert response.status in (304, 404, 503) or (response.version or 0) > version


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


async def see_a_newer_head(site: Site) -> None:
    """Online, the header of a version was seen to which no patch leads, and which nobody fetched."""
    await site.hold()
    site.release(NEWEST + 1)
    site.origin.remove(f"daily-{NEWEST + 1}.cdiff")
    assert await site.shown() == NEWEST + 1
    await site.settle()
    assert site.origin.count("W") == 0


async def test_offline_what_was_seen_at_the_origin_does_not_count(site: Site) -> None:
    await see_a_newer_head(site)
    site.restart(**OFFLINE)
    site.origin.forget()
    for _ in range(2):
        assert await site.shown() == await site.shown("/daily.cld") == NEWEST
        response, content = await site.ask()
        assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
        for version in range(2, NEWEST + 1):
            assert (await site.ask(f"/daily-{version}.cdiff"))[1] == RELEASES.cdiff(version)
    head, _ = await site.ask(method="HEAD", If_Modified_Since=since(NEWEST))
    assert (head.status, head.version) == (304, NEWEST)
    assert site.service._current.announced("daily") == NEWEST
    assert site.origin.requests() == []


async def test_offline_a_base_alone_is_shown_and_sent(site: Site) -> None:
    await site.begin()
    site.release(2)
    site.origin.remove("daily-2.cdiff")
    assert await site.shown() == 2
    site.restart(**OFFLINE)
    assert await site.shown() == 1
    for fields in ({}, {"Range": "bytes=0-"}, {"agent": "curl/8.5.0"}, {"If_Modified_Since": since(0)}):
        response, content = await site.ask(**fields)
        assert (response.version, content) == (1, RELEASES.cvd(1))


async def test_online_again_it_counts_again(site: Site) -> None:
    await see_a_newer_head(site)
    site.restart(**OFFLINE)
    assert await site.shown() == NEWEST
    site.restart()
    assert await site.shown() == NEWEST + 1


@pytest.mark.parametrize("failure", [faults.status(429, retry_after="7200"), faults.status(403)])
async def test_offline_no_cooldown_matters(site: Site, failure: faults.Fault) -> None:
    await site.hold()
    site.origin.rule("P", failure)
    await site.ask(If_Modified_Since=since(1))
    await site.settle()
    assert site.service._origin.cooldowns.in_force()
    site.restart(**OFFLINE)
    assert await site.shown() == NEWEST
    response, content = await site.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
    assert (await site.ask("/daily.cld"))[0].version == NEWEST
    assert await site.refused("/daily-1.cvd.sign")
    assert await site.refused("/main.cvd")
    site.restart()
    assert site.service._origin.cooldowns.in_force(), "it goes on when the origin may be asked again"
