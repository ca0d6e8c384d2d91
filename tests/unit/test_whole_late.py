"""Whole databases while a patch is late, or slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from clamproxy.origin import header_probes as heads_module
from clamproxy.origin import transfers as transfers_module
from clamproxy.policy import RECHECK
from clamproxy.serving import resolution as current_module
from clamproxy.serving.resolution import Patience
from tests.support import faults
from tests.support.dns_server import Mode
from tests.support.origin import OriginServer
from tests.unit.conftest import cvd
from tests.unit.whole_site import NEWEST, RELEASES, Site, open_site, since


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """All but budgets and cool-downs goes by the site's clock."""
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        for module in (current_module, heads_module, transfers_module):
            monkeypatch.setattr(module, "time", site.clock)
        yield site


# A patch that comes late


async def look_for_the_next(site: Site) -> None:
    """Version 2 is advertised; neither its patch nor its CVD is there, as a client has found out."""
    await site.begin()
    site.release(2, base=1)
    site.origin.remove("daily-2.cdiff")
    assert (await site.ask())[1] == RELEASES.cvd(1)
    assert sorted(site.origin.trace.split()) == ["D2", "P"]
    site.clock.ahead += RECHECK + 1
    site.origin.forget()


async def test_the_pause_of_its_budget_holds_it_back(site: Site) -> None:
    await look_for_the_next(site)
    for _ in range(3):
        assert (await site.ask())[1] == RELEASES.cvd(1)
    assert await site.shown() == 1
    assert site.origin.trace == "P"


async def test_a_header_of_its_version_is_news_of_it(site: Site) -> None:
    await look_for_the_next(site)
    RELEASES.publish(site.origin, 2)
    response, content = await site.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
    assert await site.shown() == 2
    assert site.origin.trace == "P D2"


async def test_so_it_is_for_who_only_looks(site: Site) -> None:
    await look_for_the_next(site)
    RELEASES.publish(site.origin, 2)
    assert await site.shown() == 2
    assert (await site.ask())[1] == RELEASES.cvd(1)
    assert site.origin.trace == "P D2"


async def test_if_it_is_missing_even_then_the_whole_is_fetched(site: Site) -> None:
    await look_for_the_next(site)
    RELEASES.publish(site.origin, 2)
    site.origin.remove("daily-2.cdiff")
    for _ in range(3):
        assert (await site.ask())[1] == RELEASES.cvd(2)
        await site.settle()
    assert site.origin.trace == "P D2 W"


# A patch that is slow


@pytest.mark.parametrize("slow", ["D2", "D4", "*"])
async def test_trap_28_a_new_client_gets_the_base_at_once_and_no_whole_download_begins(
    site: Site, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.begin()
    monkeypatch.setattr(current_module, "PATIENCE_WITH_STALE", 0.2)
    site.release(NEWEST)
    site.origin.rule(slow, faults.silent())
    for _ in range(3):
        response, content = await site.ask()
        assert (response.status, response.result, content) == (200, Result.STALE, RELEASES.cvd(1))
    assert site.origin.count("W") == 0
    assert site.origin.count(slow) <= 1 or slow == "*"
    site.origin.heal()
    await site.settle()
    assert site.origin.count("W") == 0
    assert not site.service.store.has(cvd(NEWEST))


async def test_who_has_a_version_already_is_not_set_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.begin()
    monkeypatch.setattr(current_module, "PATIENCE_WITH_STALE", 0.2)
    site.release(NEWEST)
    site.origin.rule("D3", faults.silent())
    await site.ask()
    response, _ = await site.ask(If_Modified_Since=since(2))
    assert response.status in (304, 503) or (response.version or 0) > 2
    site.origin.heal()


# An origin that is silent


@pytest.mark.parametrize(
    ("silent", "has_patches"),
    [
        pytest.param("*", True, id="wholly"),
        pytest.param("D2", True, id="about the patch"),
        pytest.param("P", False, id="about the header"),
        pytest.param("W", False, id="about the whole file"),
    ],
)
async def test_one_client_waits_for_it_and_the_others_no_more(
    site: Site, silent: str, has_patches: bool
) -> None:
    site.restart(delta={"enabled": has_patches}, upstream={"read_timeout": "60s"})
    await site.begin()
    site.release(2)
    site.origin.rule(silent, faults.silent())
    response, content = await site.ask()
    assert (response.status, response.result, content) == (200, Result.STALE, RELEASES.cvd(1))
    asked = site.origin.trace
    async with asyncio.timeout(current_module.PATIENCE_WITH_STALE):  # as long as one waits alone
        others = await asyncio.gather(*(site.ask() for _ in range(5)))
    assert {(response.result, content) for response, content in others} == {(Result.STALE, RELEASES.cvd(1))}
    assert site.origin.trace == asked
    site.origin.heal()


async def test_what_it_says_at_last_is_served(site: Site) -> None:
    await site.begin()
    site.release(2)
    site.origin.rule("D2", faults.silent())
    assert (await site.ask())[0].result is Result.STALE
    site.origin.heal()
    await site.settle()
    response, content = await site.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
    assert await site.shown() == 2


async def test_dns_is_not_waited_for_while_something_is_cached(site: Site) -> None:
    """Not even if it has never answered."""
    site.dns.mode = Mode.SILENT
    site.release(1)
    assert (await site.ask())[1] == RELEASES.cvd(1), "from the origin's header alone"
    await site.settle()
    site.clock.ahead += 400
    site.origin.rule("*", faults.silent())
    assert (await site.ask())[1] == RELEASES.cvd(1)
    async with asyncio.timeout(current_module.PATIENCE_WITH_STALE):
        await asyncio.gather(*(site.ask() for _ in range(5)))
    site.origin.heal()


@pytest.mark.parametrize(
    ("has_copy", "asked_at", "expected"),
    [
        pytest.param(True, None, 102, id="nobody has asked"),
        pytest.param(True, 99, 101, id="somebody has a moment ago"),
        pytest.param(True, 60, 62, id="somebody has in vain"),
        pytest.param(False, 60, 125, id="there is nothing else to serve"),
    ],
)
async def test_how_long_a_client_waits(
    has_copy: bool, asked_at: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 100.0)
    patience = Patience.begin(has_copy=has_copy)
    monkeypatch.undo()
    assert patience.until(asked_at) == expected
