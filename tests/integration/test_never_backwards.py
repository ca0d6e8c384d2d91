"""What the cache has forgotten stays known: no older version is taken, or shown as the newest."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from clamproxy.cache.layout import INDEX, NEWEST_PROVEN
from clamproxy.objects import Kind
from clamproxy.releases.lineage import LOOK_EVERY
from tests.harness.service import NEWEST, RELEASES, ServiceHarness, open_harness, since
from tests.support.faults import Fault, html
from tests.support.origin import OriginServer
from tests.support.stored import until

OLD = 2
"""A version that the origin sends again: correctly signed, and older than `NEWEST`."""


@pytest_asyncio.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        yield harness


def purge(harness: ServiceHarness, *kinds: Kind) -> None:
    store = harness.service.store
    for object_id in list(store.object_ids()):
        if not kinds or object_id.kind in kinds:
            store.drop(object_id)


async def take_in(harness: ServiceHarness, *, by_patches: bool) -> None:
    """Have proven the newest version, as a whole or by patches."""
    if by_patches:
        await harness.hold()
    else:
        await harness.begin(NEWEST)


def replay(harness: ServiceHarness) -> None:
    """Origin and DNS go back to an old version; what was known about the origin's header is too old."""
    for version in range(OLD + 1, NEWEST + 1):
        harness.origin.remove(f"daily-{version}.cdiff")
    harness.origin.put("daily.cvd", RELEASES.cvd(OLD))
    harness.advertise(OLD)
    harness.service.clamav.origin.heads.forget("daily")
    harness.clock.ahead += 3600


def lose_nothing(_: ServiceHarness) -> None:
    pass


def lose_objects(harness: ServiceHarness) -> None:
    purge(harness)


def lose_objects_over_a_restart(harness: ServiceHarness) -> None:
    purge(harness)
    harness.restart()


def lose_objects_and_index(harness: ServiceHarness) -> None:
    purge(harness)
    harness.service.stop()
    shutil.rmtree(harness.directory / INDEX)
    harness.service = harness.make()


def lose_all_but_what_was_proven(harness: ServiceHarness) -> None:
    harness.service.stop()
    for path in harness.directory.iterdir():
        if path.is_dir() and path.name != NEWEST_PROVEN:
            shutil.rmtree(path)
    harness.service = harness.make()


def lose_what_was_proven(harness: ServiceHarness) -> None:
    """The file is deleted under the running gateway, which still knows it."""
    shutil.rmtree(harness.directory / NEWEST_PROVEN)
    purge(harness)


LOSSES = [
    lose_nothing,
    lose_objects,
    lose_objects_over_a_restart,
    lose_objects_and_index,
    lose_all_but_what_was_proven,
    lose_what_was_proven,
]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("by_patches", [False, True])
async def test_no_older_version_is_taken(
    harness: ServiceHarness, lose: Callable[[ServiceHarness], None], by_patches: bool
) -> None:
    await take_in(harness, by_patches=by_patches)
    lose(harness)
    replay(harness)
    for fields in ({}, {"Range": "bytes=0-511"}, {"If-Modified-Since": since(1)}):
        response, _ = await harness.ask(**fields)
        await harness.settle()
        if lose is lose_nothing:
            assert response.version in {1, NEWEST}, "the base from which patches lead on, or the newest"
        else:
            assert response.status == 503, response
    assert harness.service.store.newest_version("daily") != OLD
    # Once the origin has what was here before, that is taken without a restart.
    harness.release(NEWEST)
    harness.clock.ahead += 3600
    assert await harness.shown() == NEWEST


async def test_what_is_left_is_served_as_stale_and_sends_nobody_back(harness: ServiceHarness) -> None:
    """Machines without a database are better off with an older one than without any."""
    await take_in(harness, by_patches=True)
    purge(harness, Kind.CDIFF, Kind.CDIFF_SIGN)
    await asyncio.sleep(LOOK_EVERY)
    replay(harness)
    response, content = await harness.ask()
    assert (response.status, content) == (200, RELEASES.cvd(1))
    assert "stale" in response.headers["Cache-Status"]
    response, _ = await harness.ask(If_Modified_Since=since(NEWEST))
    assert response.status == 304


async def test_purged_patches_are_fetched_again_whatever_dns_says(harness: ServiceHarness) -> None:
    await take_in(harness, by_patches=True)
    purge(harness, Kind.CDIFF, Kind.CDIFF_SIGN)
    await asyncio.sleep(LOOK_EVERY)
    harness.advertise(OLD)
    harness.clock.ahead += 3600
    assert await harness.shown() == NEWEST


async def test_an_administrator_can_begin_from_nothing(harness: ServiceHarness) -> None:
    await take_in(harness, by_patches=False)
    harness.service.stop()
    shutil.rmtree(harness.directory)
    harness.service = harness.make()
    replay(harness)
    assert await harness.shown() == OLD


async def test_a_cache_of_an_earlier_version_knows_its_own(harness: ServiceHarness) -> None:
    await take_in(harness, by_patches=False)
    harness.service.stop()
    shutil.rmtree(harness.directory / NEWEST_PROVEN)
    harness.service = harness.make()
    lose_objects(harness)
    replay(harness)
    assert (await harness.ask())[0].status == 503


def asked(harness: ServiceHarness) -> list[Any]:
    return [seen.short_name for seen in harness.origin.requests()]


async def test_an_origin_that_stays_behind_is_asked_less_and_less_often(harness: ServiceHarness) -> None:
    await take_in(harness, by_patches=False)
    purge(harness)
    replay(harness)
    harness.origin.forget()
    for _ in range(120):  # two hours
        assert (await harness.ask())[0].status == 503
        harness.clock.ahead += 60
    assert 4 <= len(asked(harness)) <= 20, asked(harness)


# A header and a file that differ


async def fetch_while(harness: ServiceHarness, comes: Fault, *, shown: int) -> None:
    """Ask for version `OLD` as a whole, and look what is the newest version before the origin answers."""
    harness.restart(delta={"enabled": False})
    harness.release(OLD)
    harness.origin.rule("W", replace(comes, held=True))
    client = asyncio.create_task(harness.ask())
    await until(lambda: harness.origin.count("W"))
    RELEASES.publish(harness.origin, shown)
    harness.advertise(shown)
    assert await harness.shown() == shown
    harness.origin.heal()
    await client
    await harness.settle()
    harness.origin.forget()


@pytest.mark.parametrize("comes", [Fault(body=RELEASES.cvd(OLD)), html()], ids=["the older file", "a page"])
async def test_a_header_that_was_seen_after_the_file_was_asked_for_is_kept(
    harness: ServiceHarness, comes: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch_while(harness, comes, shown=OLD + 1)
    assert "was wrong" not in caplog.text
    assert await harness.shown() == OLD + 1
    assert harness.origin.trace == ""
    harness.clock.ahead += 60  # a page causes a pause
    assert (await harness.ask())[1] == RELEASES.cvd(OLD + 1)


@pytest.mark.parametrize("comes", [Fault(), html()], ids=["an older file", "a page"])
async def test_a_header_that_the_file_contradicts_is_forgotten(harness: ServiceHarness, comes: Fault) -> None:
    harness.release(OLD)
    harness.origin.rule("P", Fault(body=RELEASES.cvd(NEWEST)))
    harness.origin.rule("W", comes)
    await harness.ask()
    await harness.settle()
    assert harness.service.clamav.origin.heads.get("daily") is None
