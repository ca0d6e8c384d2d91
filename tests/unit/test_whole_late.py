"""Whole databases while a patch is late, or slow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from clamproxy.origin import heads as heads_module
from clamproxy.origin import transfers as transfers_module
from clamproxy.policy import RECHECK
from clamproxy.serving import current as current_module
from tests.support import faults
from tests.support.origin import Origin
from tests.unit.conftest import cvd
from tests.unit.whole_site import NEWEST, RELEASES, Site, open_site, since


@pytest.fixture
async def site(tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
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
    reply, content = await site.ask()
    assert (reply.result, content) == (Result.HIT, RELEASES.cvd(1))
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
        reply, content = await site.ask()
        assert (reply.status, reply.result, content) == (200, Result.STALE, RELEASES.cvd(1))
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
    reply, _ = await site.ask(If_Modified_Since=since(2))
    assert reply.status in (304, 503) or (reply.version or 0) > 2
    site.origin.heal()
