"""Whole databases: delta serving."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.http import http_date

from clamproxy.messages import Result
from clamproxy.origin.budget import PER_FILE
from clamproxy.serving import resolution as current_module
from tests.harness.service import NEWEST, PROBE, RELEASES, ServiceHarness, open_harness, since
from tests.support import faults
from tests.support.origin import OriginServer
from tests.support.releases import Releases
from tests.support.stored import AGENT, OLD_AGENT, cdiff, cvd


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        yield harness


async def test_a_release_costs_its_patches(harness: ServiceHarness) -> None:
    await harness.begin()
    harness.release(NEWEST)
    for _ in range(2):
        response, content = await harness.ask()
        assert (response.status, response.result, content) == (200, Result.HIT, RELEASES.cvd(1))
    for version in range(2, NEWEST + 1):
        response, content = await harness.ask(f"/daily-{version}.cdiff")
        assert (response.result, content) == (Result.HIT, RELEASES.cdiff(version))
    assert sorted(harness.origin.trace.split()) == ["D2", "D3", "D4"]


async def test_trap_13_the_header_probe_shows_what_is_advertised(harness: ServiceHarness) -> None:
    await harness.hold()
    response, content = await harness.ask(**PROBE)
    assert (response.status, response.result, response.version) == (206, Result.HIT, NEWEST)
    assert content == RELEASES.cld_header(NEWEST)
    assert response.headers["Content-Range"] == "bytes 0-511/*"
    assert "ETag" not in response.headers
    assert harness.origin.requests() == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"If_Modified_Since": since(1)}, id="a freshclam that has the base"),
        pytest.param({"If_Modified_Since": since(2)}, id="a freshclam that has a version between"),
        pytest.param({"If_Modified_Since": http_date(0)}, id="cvdupdate's epoch"),
        pytest.param({"If_None_Match": '"daily-1.cvd"'}, id="somebody who has a tag of it"),
        pytest.param({"Range": "bytes=0-"}, id="somebody who resumes"),
        pytest.param({"Range": "bytes=-100"}, id="somebody who wants the end"),
        pytest.param({"agent": "curl/8.5.0"}, id="no freshclam"),
        pytest.param({"agent": "CVDUPDATE/1.2.0 (x)"}, id="cvdupdate"),
        pytest.param({"agent": ""}, id="nobody"),
        pytest.param({"Via": "1.1 clamproxy-00000000"}, id="a gateway, to whom a header promised more"),
    ],
)
async def test_who_would_keep_the_older_version_gets_the_newest_whole(
    harness: ServiceHarness, fields: dict[str, str]
) -> None:
    await harness.hold()
    response, content = await harness.ask(**fields)
    assert response.version == NEWEST
    assert RELEASES.cvd(NEWEST).endswith(content)
    assert len(content) >= 100
    assert harness.origin.trace == "P W"
    await harness.settle()
    assert (await harness.ask())[1] == RELEASES.cvd(NEWEST), "it is the base from then on"


@pytest.mark.parametrize(
    ("have", "status"),
    [
        pytest.param(since(1), 206, id="older"),
        pytest.param(since(NEWEST, -1), 206, id="a little older"),
        pytest.param(since(NEWEST), 304, id="trap 6: this very version"),
        # What the origin's own header says has not been proven; the client sees that it is not newer.
        pytest.param(since(NEWEST + 1), 206, id="newer"),
    ],
)
async def test_a_conditional_probe(harness: ServiceHarness, have: str, status: int) -> None:
    await harness.hold()
    response, _ = await harness.ask(**PROBE, If_Modified_Since=have)
    assert (response.status, response.version) == (status, NEWEST)
    assert harness.origin.count("W") == 0


async def test_trap_8_a_download_before_the_upload(harness: ServiceHarness) -> None:
    """Built but not uploaded: the origin's own header tells that this client has an older one."""
    await harness.hold()
    response, content = await harness.ask(If_Modified_Since=since(NEWEST, 30))
    assert (response.status, content) == (200, RELEASES.cvd(NEWEST))


async def test_trap_31_head(harness: ServiceHarness) -> None:
    await harness.hold()
    response, content = await harness.ask(method="HEAD")
    assert (response.status, content, response.version) == (200, b"", NEWEST)
    assert "Content-Length" not in response.headers
    assert harness.origin.count("W") == 0


@pytest.mark.parametrize("path", ["/daily.cvd?version=1", "/daily.cvd?version=4"])
async def test_cvdupdate_gets_the_version_that_it_names(harness: ServiceHarness, path: str) -> None:
    await harness.hold()
    for _ in range(2):
        _, content = await harness.ask(path, agent="CVDUPDATE/1.2.0 (x)", If_Modified_Since=http_date(0))
        assert content == RELEASES.cvd(int(path[-1]))
        await harness.settle()
    assert harness.origin.count("W") == (0 if path.endswith("1") else 1)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda origin: origin.remove("daily-3.cdiff"), id="missing"),
        pytest.param(lambda origin: origin.put("daily-3.cdiff", b""), id="trap 15: empty"),
        pytest.param(lambda origin: origin.rule("D3", faults.html()), id="trap 19: a page"),
        pytest.param(lambda origin: origin.rule("D3", faults.status(429)), id="refused"),
        pytest.param(
            lambda origin: origin.put("daily-3.cdiff", Releases(filler=100_100).cdiff(3)),
            id="trap 18: does not fit",
        ),
    ],
)
async def test_where_patches_do_not_lead_on_the_whole_is_fetched(harness: ServiceHarness, spoil: Any) -> None:
    await harness.begin()
    harness.release(NEWEST)
    spoil(harness.origin)
    response, content = await harness.ask()
    assert (response.version, content) == (NEWEST, RELEASES.cvd(NEWEST))
    assert await harness.shown() == NEWEST
    assert harness.origin.count("W") == 1


async def test_trap_5_patch_and_cvd_are_late(harness: ServiceHarness) -> None:
    await harness.begin()
    harness.release(3, base=1)
    harness.origin.remove("daily-3.cdiff")
    for _ in range(3):
        assert await harness.shown() == 2
        assert (await harness.ask())[1] == RELEASES.cvd(1)
    assert harness.origin.count("D3") <= 2
    assert harness.origin.count("P") <= 2


async def test_trap_30_an_origin_that_is_gone(harness: ServiceHarness) -> None:
    await harness.hold()
    harness.origin.refuse()
    harness.advertise(NEWEST + 1)
    assert (await harness.ask())[1] == RELEASES.cvd(1)
    assert await harness.shown() == NEWEST
    # Who has version 3 wants a newer one, whole, and must not get the base.
    response, _ = await harness.ask(If_Modified_Since=since(3))
    assert response.status in (304, 503)


async def test_trap_28_patches_that_do_not_come(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.begin()
    monkeypatch.setattr(current_module, "PATIENCE_WITH_STALE", 0.2)
    harness.release(NEWEST)
    harness.origin.rule("*", faults.silent())
    response, content = await harness.ask()
    assert (response.result, content) == (Result.STALE, RELEASES.cvd(1))
    assert await harness.shown() == 1
    harness.origin.heal()


async def test_trap_27_a_herd_of_new_clients(harness: ServiceHarness) -> None:
    await harness.begin()
    harness.release(NEWEST)
    answers = await asyncio.gather(*(harness.ask() for _ in range(20)))
    assert {content for _, content in answers} == {RELEASES.cvd(1)}
    assert sorted(harness.origin.trace.split()) == ["D2", "D3", "D4"]


async def test_trap_20_a_refused_client_costs_no_whole_cvd(harness: ServiceHarness) -> None:
    await harness.begin()
    harness.release(2)
    harness.origin.rule("D2", faults.status(403), times=1)
    await asyncio.gather(harness.ask(agent=OLD_AGENT), harness.ask(agent=AGENT))
    await harness.settle()
    assert await harness.shown() == 2
    assert harness.origin.count("W") == 0


async def test_beyond_the_most_patches_the_whole_is_fetched(harness: ServiceHarness) -> None:
    harness.restart(delta={"max_patches": 2})
    await harness.begin()
    harness.release(NEWEST)
    assert (await harness.ask())[1] == RELEASES.cvd(NEWEST)
    assert harness.origin.trace == "P W"


async def test_too_large_patches_are_served_and_a_new_base_is_fetched(harness: ServiceHarness) -> None:
    harness.restart(delta={"max_share": "1%"}, versions={"refresh": "10ms"})
    await harness.hold(reached=2)
    await asyncio.sleep(0.1)  # the budget's pauses are short with so short a refresh
    async with asyncio.timeout(60.0):  # each client may lead to it, as far as the budget allows
        while (content := (await harness.ask())[1]) != RELEASES.cvd(2):
            assert content == RELEASES.cvd(1)
            await asyncio.sleep(0.02)
    assert await harness.shown() == 2


async def test_a_new_base_that_lags_is_not_asked_for_by_each_client(harness: ServiceHarness) -> None:
    harness.restart(delta={"max_share": "1%"})
    await harness.begin()
    harness.release(2, base=1)
    for _ in range(20):
        assert (await harness.ask())[1] == RELEASES.cvd(1)
        await harness.settle()
    assert harness.origin.count("P") + harness.origin.count("W") <= PER_FILE


async def test_switched_off(harness: ServiceHarness) -> None:
    harness.restart(delta={"enabled": False})
    await harness.begin()
    harness.release(2)
    assert (await harness.ask())[1] == RELEASES.cvd(2)
    assert harness.origin.trace == "P W"
    assert await harness.refused("/daily.cld")


async def test_where_nothing_is_fetched_ahead_a_probe_costs_a_probe(harness: ServiceHarness) -> None:
    harness.restart(serving={"prefetch": "none"})
    await harness.begin()
    harness.release(NEWEST)
    assert await harness.shown() == NEWEST
    assert harness.origin.trace == "P"
    assert (await harness.ask())[1] == RELEASES.cvd(1)
    assert sorted(harness.origin.trace.split()) == ["D2", "D3", "D4", "P"]


async def test_patches_are_not_fetched_to_be_dropped_again(harness: ServiceHarness) -> None:
    """Fewer patches are kept than there are releases since the base, and the CDN lags."""
    harness.restart(cache={"keep_cdiffs": 1})
    await harness.begin()
    harness.release(NEWEST, base=1)
    for _ in range(10):
        response, _ = await harness.ask()
        assert response.status == 200
        await harness.settle()
    asked = harness.origin.trace.split()
    assert {name: asked.count(name) for name in asked if asked.count(name) > 2} == {}


@pytest.mark.parametrize("seed", range(4))
async def test_trap_4_what_is_announced_can_be_had_and_never_goes_backwards(
    harness: ServiceHarness, seed: int
) -> None:
    """Releases, edges that lag, patches that are late, outages, renewals, restarts: in any order."""
    choose = random.Random(seed)
    version, last = 1, 0
    await harness.begin()
    for _ in range(40):
        match choose.choice(["release", "release", "late", "lag", "outage", "back", "whole", "restart"]):
            case "release" if version < 12:
                version += 1
                harness.release(version)
            case "late":
                harness.origin.remove(f"daily-{version}.cdiff")
            case "lag":
                harness.origin.put("daily.cvd", RELEASES.cvd(choose.randint(1, version)))
            case "outage":
                harness.origin.refuse()
            case "back":
                harness.origin.accept()
                RELEASES.publish(harness.origin, version)
            case "whole":
                have = choose.randint(1, max(1, last))
                # Another machine than the new one below, which may get a version twice in its first run.
                response, _ = await harness.ask(agent=OLD_AGENT, If_Modified_Since=since(have))
                assert response.status in (304, 503) or (response.version or 0) > have
            case "restart":
                harness.restart()
        await harness.settle()
        shown = await harness.shown()
        assert last <= shown <= version
        last = shown
        base, content = await harness.ask()
        assert content == RELEASES.cvd(base.version or 0)
        for patch in range((base.version or 0) + 1, shown + 1):
            assert (await harness.ask(f"/daily-{patch}.cdiff"))[1] == RELEASES.cdiff(patch)


async def test_other_objects_of_the_base_are_left_alone(harness: ServiceHarness) -> None:
    await harness.hold()
    assert harness.service.store.has(cvd(1))
    assert [harness.service.store.has(cdiff(version)) for version in (2, 3, 4)] == [True] * 3
    assert not harness.service.store.has(cvd(NEWEST))


@pytest.mark.parametrize("version", [1, 2**31 - 1])
async def test_a_patch_can_be_had_although_dns_is_wrong(harness: ServiceHarness, version: int) -> None:
    await harness.hold()
    harness.service.store.drop(cdiff(NEWEST - 1))
    harness.advertise(version)
    response, content = await harness.ask(f"/daily-{NEWEST - 1}.cdiff")
    assert (response.status, content) == (200, RELEASES.cdiff(NEWEST - 1))
    assert await harness.refused("/daily-5000000.cdiff"), "nobody asks the origin for what is far from both"
    assert harness.origin.count("/daily-5000000.cdiff") == 0
