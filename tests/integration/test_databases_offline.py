"""What a gateway answers that never asks anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from tests.harness.service import NEWEST, OFFLINE, RELEASES, ServiceHarness, open_harness, since
from tests.support import faults
from tests.support.origin import OriginServer


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        yield harness


async def test_offline_the_newest_that_is_cached_is_all_there_is(harness: ServiceHarness) -> None:
    await harness.hold()
    harness.restart(**OFFLINE)
    harness.advertise(NEWEST + 1)
    harness.release(NEWEST + 1)
    asked = len(harness.dns.queries)
    assert await harness.shown() == NEWEST
    response, content = await harness.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
    for version in range(2, NEWEST + 1):
        assert (await harness.ask(f"/daily-{version}.cdiff"))[1] == RELEASES.cdiff(version)
    assert (await harness.ask("/daily.cld"))[0].version == NEWEST
    for path in (f"/daily-{NEWEST + 1}.cdiff", "/daily-4.cdiff.sign", "/main.cvd", "/main.cld"):
        assert await harness.refused(path), path
    assert harness.origin.requests() == []
    assert len(harness.dns.queries) == asked


@pytest.mark.parametrize("version", [1, 2, 3, NEWEST, NEWEST + 1])
async def test_offline_no_client_is_set_back(harness: ServiceHarness, version: int) -> None:
    await harness.hold()
    harness.restart(**OFFLINE)
    response, _ = await harness.ask(If_Modified_Since=since(version))
    assert response.status in (304, 404, 503) or (response.version or 0) > version


@pytest.mark.parametrize("version", [2, 3, NEWEST])
async def test_offline_no_client_is_set_back_by_a_base_that_was_uploaded_late(
    harness: ServiceHarness, version: int
) -> None:
    """The Last-Modified of a mirror is the time when it fetched the file."""
    harness.release(1)
    harness.origin.put("daily.cvd", RELEASES.cvd(1), since(NEWEST + 5))
    await harness.ask()
    await harness.settle()
    harness.release(NEWEST)
    await harness.ask()
    await harness.settle()
    harness.restart(**OFFLINE)
    response, _ = await harness.ask(If_Modified_Since=since(version))
    assert response.status in (304, 404, 503) or (response.version or 0) > version


async def test_offline_with_nothing_cached(harness: ServiceHarness) -> None:
    harness.release(1)
    harness.restart(**OFFLINE)
    for _ in range(2):
        for path in ("/daily.cvd", "/daily-1.cdiff", "/daily.cld", "/daily.cvd?version=1"):
            assert await harness.refused(path), path
    response, content = await harness.ask("/daily-1.cdiff")
    assert (response.status, response.result) == (404, Result.MISS)
    assert b"this gateway is offline" in content
    assert harness.origin.requests() == []


async def test_online_again(harness: ServiceHarness) -> None:
    await harness.hold()
    harness.restart(**OFFLINE)
    await harness.ask()
    harness.restart()
    harness.release(NEWEST + 1)
    assert await harness.shown() == NEWEST + 1
    assert harness.origin.trace == f"D{NEWEST + 1}"


async def see_a_newer_head(harness: ServiceHarness) -> None:
    """Online, the header of a version was seen to which no patch leads, and which nobody fetched."""
    await harness.hold()
    harness.release(NEWEST + 1)
    harness.origin.remove(f"daily-{NEWEST + 1}.cdiff")
    assert await harness.shown() == NEWEST + 1
    await harness.settle()
    assert harness.origin.count("W") == 0


async def test_offline_what_was_seen_at_the_origin_does_not_count(harness: ServiceHarness) -> None:
    await see_a_newer_head(harness)
    harness.restart(**OFFLINE)
    harness.origin.forget()
    for _ in range(2):
        assert await harness.shown() == await harness.shown("/daily.cld") == NEWEST
        response, content = await harness.ask()
        assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
        for version in range(2, NEWEST + 1):
            assert (await harness.ask(f"/daily-{version}.cdiff"))[1] == RELEASES.cdiff(version)
    head, _ = await harness.ask(method="HEAD", If_Modified_Since=since(NEWEST))
    assert (head.status, head.version) == (304, NEWEST)
    assert await harness.announced() == NEWEST
    assert harness.origin.requests() == []


async def test_offline_a_base_alone_is_shown_and_sent(harness: ServiceHarness) -> None:
    await harness.begin()
    harness.release(2)
    harness.origin.remove("daily-2.cdiff")
    assert await harness.shown() == 2
    harness.restart(**OFFLINE)
    assert await harness.shown() == 1
    for fields in ({}, {"Range": "bytes=0-"}, {"agent": "curl/8.5.0"}, {"If_Modified_Since": since(0)}):
        response, content = await harness.ask(**fields)
        assert (response.version, content) == (1, RELEASES.cvd(1))


async def test_online_again_what_was_seen_at_the_origin_counts(harness: ServiceHarness) -> None:
    await see_a_newer_head(harness)
    harness.restart(**OFFLINE)
    assert await harness.shown() == NEWEST
    harness.restart()
    assert await harness.shown() == NEWEST + 1


@pytest.mark.parametrize("failure", [faults.status(429, retry_after="7200"), faults.status(403)])
async def test_offline_no_cooldown_matters(harness: ServiceHarness, failure: faults.Fault) -> None:
    await harness.hold()
    harness.origin.rule("P", failure)
    await harness.ask(If_Modified_Since=since(1))
    await harness.settle()
    assert harness.service.clamav.origin.cooldowns.in_force()
    harness.restart(**OFFLINE)
    assert await harness.shown() == NEWEST
    response, content = await harness.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
    assert (await harness.ask("/daily.cld"))[0].version == NEWEST
    assert await harness.refused("/daily-1.cvd.sign")
    assert await harness.refused("/main.cvd")
    harness.restart()
    assert harness.service.clamav.origin.cooldowns.in_force(), "it goes on when the origin may be asked again"
