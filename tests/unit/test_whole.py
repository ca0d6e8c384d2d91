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
from tests.support import faults
from tests.support.origin import OriginServer
from tests.support.releases import Releases
from tests.unit.conftest import AGENT, OLD_AGENT, cdiff, cvd, until
from tests.unit.whole_site import NEWEST, PROBE, RELEASES, Site, open_site, since


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        yield site


async def test_a_release_costs_its_patches(site: Site) -> None:
    await site.begin()
    site.release(NEWEST)
    for _ in range(2):
        response, content = await site.ask()
        assert (response.status, response.result, content) == (200, Result.HIT, RELEASES.cvd(1))
    for version in range(2, NEWEST + 1):
        response, content = await site.ask(f"/daily-{version}.cdiff")
        assert (response.result, content) == (Result.HIT, RELEASES.cdiff(version))
    assert sorted(site.origin.trace.split()) == ["D2", "D3", "D4"]


async def test_trap_13_the_header_probe_shows_what_is_advertised(site: Site) -> None:
    await site.hold()
    response, content = await site.ask(**PROBE)
    assert (response.status, response.result, response.version) == (206, Result.HIT, NEWEST)
    assert content == RELEASES.cld_header(NEWEST)
    assert response.headers["Content-Range"] == "bytes 0-511/*"
    assert "ETag" not in response.headers
    assert site.origin.requests() == []


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
    site: Site, fields: dict[str, str]
) -> None:
    await site.hold()
    response, content = await site.ask(**fields)
    assert response.version == NEWEST
    assert RELEASES.cvd(NEWEST).endswith(content)
    assert len(content) >= 100
    assert site.origin.trace == "P W"
    await site.settle()
    assert (await site.ask())[1] == RELEASES.cvd(NEWEST), "it is the base from then on"


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
async def test_a_conditional_probe(site: Site, have: str, status: int) -> None:
    await site.hold()
    response, _ = await site.ask(**PROBE, If_Modified_Since=have)
    assert (response.status, response.version) == (status, NEWEST)
    assert site.origin.count("W") == 0


async def test_trap_8_a_download_before_the_upload(site: Site) -> None:
    """Built but not uploaded: the origin's own header tells that this client has an older one."""
    await site.hold()
    response, content = await site.ask(If_Modified_Since=since(NEWEST, 30))
    assert (response.status, content) == (200, RELEASES.cvd(NEWEST))


async def test_trap_31_head(site: Site) -> None:
    await site.hold()
    response, content = await site.ask(method="HEAD")
    assert (response.status, content, response.version) == (200, b"", NEWEST)
    assert "Content-Length" not in response.headers
    assert site.origin.count("W") == 0


@pytest.mark.parametrize("path", ["/daily.cvd?version=1", "/daily.cvd?version=4"])
async def test_cvdupdate_gets_the_version_that_it_names(site: Site, path: str) -> None:
    await site.hold()
    for _ in range(2):
        _, content = await site.ask(path, agent="CVDUPDATE/1.2.0 (x)", If_Modified_Since=http_date(0))
        assert content == RELEASES.cvd(int(path[-1]))
        await site.settle()
    assert site.origin.count("W") == (0 if path.endswith("1") else 1)


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
async def test_where_patches_do_not_lead_on_the_whole_is_fetched(site: Site, spoil: Any) -> None:
    await site.begin()
    site.release(NEWEST)
    spoil(site.origin)
    response, content = await site.ask()
    assert (response.version, content) == (NEWEST, RELEASES.cvd(NEWEST))
    assert await site.shown() == NEWEST
    assert site.origin.count("W") == 1


async def test_trap_5_patch_and_cvd_are_late(site: Site) -> None:
    await site.begin()
    site.release(3, base=1)
    site.origin.remove("daily-3.cdiff")
    for _ in range(3):
        assert await site.shown() == 2
        assert (await site.ask())[1] == RELEASES.cvd(1)
    assert site.origin.count("D3") <= 2
    assert site.origin.count("P") <= 2


async def test_trap_30_an_origin_that_is_gone(site: Site) -> None:
    await site.hold()
    site.origin.refuse()
    site.advertise(NEWEST + 1)
    assert (await site.ask())[1] == RELEASES.cvd(1)
    assert await site.shown() == NEWEST
    # Who has version 3 wants a newer one, whole, and must not get the base.
    response, _ = await site.ask(If_Modified_Since=since(3))
    assert response.status in (304, 503)


async def test_trap_28_patches_that_do_not_come(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.begin()
    monkeypatch.setattr(current_module, "PATIENCE_WITH_STALE", 0.2)
    site.release(NEWEST)
    site.origin.rule("*", faults.silent())
    response, content = await site.ask()
    assert (response.result, content) == (Result.STALE, RELEASES.cvd(1))
    assert await site.shown() == 1
    site.origin.heal()


async def test_trap_27_a_herd_of_new_clients(site: Site) -> None:
    await site.begin()
    site.release(NEWEST)
    answers = await asyncio.gather(*(site.ask() for _ in range(20)))
    assert {content for _, content in answers} == {RELEASES.cvd(1)}
    assert sorted(site.origin.trace.split()) == ["D2", "D3", "D4"]


async def test_trap_20_a_refused_client_costs_no_whole_cvd(site: Site) -> None:
    await site.begin()
    site.release(2)
    site.origin.rule("D2", faults.status(403), times=1)
    await asyncio.gather(site.ask(agent=OLD_AGENT), site.ask(agent=AGENT))
    await site.settle()
    assert await site.shown() == 2
    assert site.origin.count("W") == 0


async def test_beyond_the_most_patches_the_whole_is_fetched(site: Site) -> None:
    site.restart(delta={"max_patches": 2})
    await site.begin()
    site.release(NEWEST)
    assert (await site.ask())[1] == RELEASES.cvd(NEWEST)
    assert site.origin.trace == "P W"


async def test_too_large_patches_are_served_and_a_new_base_is_fetched(site: Site) -> None:
    site.restart(delta={"max_share": "1%"}, versions={"refresh": "10ms"})
    await site.hold(reached=2)
    await asyncio.sleep(0.1)  # the budget's pauses are short with so short a refresh
    _, content = await site.ask()
    assert content in (RELEASES.cvd(1), RELEASES.cvd(2))
    await until(lambda: site.service.store.newest_version("daily") == 2)
    assert (await site.ask())[1] == RELEASES.cvd(2)
    assert await site.shown() == 2


async def test_a_new_base_that_lags_is_not_asked_for_by_each_client(site: Site) -> None:
    site.restart(delta={"max_share": "1%"})
    await site.begin()
    site.release(2, base=1)
    for _ in range(20):
        assert (await site.ask())[1] == RELEASES.cvd(1)
        await site.settle()
    assert site.origin.count("P") + site.origin.count("W") <= PER_FILE


async def test_switched_off(site: Site) -> None:
    site.restart(delta={"enabled": False})
    await site.begin()
    site.release(2)
    assert (await site.ask())[1] == RELEASES.cvd(2)
    assert site.origin.trace == "P W"
    assert await site.refused("/daily.cld")


async def test_where_nothing_is_fetched_ahead_a_probe_costs_a_probe(site: Site) -> None:
    site.restart(serving={"prefetch": "none"})
    await site.begin()
    site.release(NEWEST)
    assert await site.shown() == NEWEST
    assert site.origin.trace == "P"
    assert (await site.ask())[1] == RELEASES.cvd(1)
    assert sorted(site.origin.trace.split()) == ["D2", "D3", "D4", "P"]


async def test_patches_are_not_fetched_to_be_dropped_again(site: Site) -> None:
    """Fewer patches are kept than there are releases since the base, and the CDN lags."""
    site.restart(cache={"keep_cdiffs": 1})
    await site.begin()
    site.release(NEWEST, base=1)
    for _ in range(10):
        response, _ = await site.ask()
        assert response.status == 200
        await site.settle()
    asked = site.origin.trace.split()
    assert {name: asked.count(name) for name in asked if asked.count(name) > 2} == {}


@pytest.mark.parametrize("seed", range(4))
async def test_trap_4_what_is_announced_can_be_had_and_never_goes_backwards(site: Site, seed: int) -> None:
    """Releases, edges that lag, patches that are late, outages, renewals, restarts: in any order."""
    choose = random.Random(seed)
    version, last = 1, 0
    await site.begin()
    for _ in range(40):
        match choose.choice(["release", "release", "late", "lag", "outage", "back", "whole", "restart"]):
            case "release" if version < 12:
                version += 1
                site.release(version)
            case "late":
                site.origin.remove(f"daily-{version}.cdiff")
            case "lag":
                site.origin.put("daily.cvd", RELEASES.cvd(choose.randint(1, version)))
            case "outage":
                site.origin.refuse()
            case "back":
                site.origin.accept()
                RELEASES.publish(site.origin, version)
            case "whole":
                have = choose.randint(1, max(1, last))
                response, _ = await site.ask(If_Modified_Since=since(have))
                assert response.status in (304, 503) or (response.version or 0) > have
            case "restart":
                site.restart()
        await site.settle()
        shown = await site.shown()
        assert last <= shown <= version
        last = shown
        base, content = await site.ask()
        assert content == RELEASES.cvd(base.version or 0)
        for patch in range((base.version or 0) + 1, shown + 1):
            assert (await site.ask(f"/daily-{patch}.cdiff"))[1] == RELEASES.cdiff(patch)


async def test_other_objects_of_the_base_are_left_alone(site: Site) -> None:
    await site.hold()
    assert site.service.store.has(cvd(1))
    assert [site.service.store.has(cdiff(version)) for version in (2, 3, 4)] == [True] * 3
    assert not site.service.store.has(cvd(NEWEST))
