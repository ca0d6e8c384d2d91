"""Whole databases while a patch is late, or slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from clamproxy.policy import RECHECK
from clamproxy.serving import gateway as gateway_module
from clamproxy.serving import resolution as current_module
from clamproxy.serving.resolution import Patience
from tests.harness.service import NEWEST, RELEASES, ServiceHarness, open_harness, since
from tests.support import faults
from tests.support.dns_server import Mode
from tests.support.origin import OriginServer
from tests.support.stored import cvd


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        yield harness


# A patch that comes late


async def look_for_the_next(harness: ServiceHarness) -> None:
    """Version 2 is advertised; neither its patch nor its CVD is there, as two clients have found out.

    The origin's header may be looked at again, but the pause before the patch is asked for has grown.
    """
    await harness.begin()
    harness.release(2, base=1)
    harness.origin.remove("daily-2.cdiff")
    assert (await harness.ask())[1] == RELEASES.cvd(1)
    assert sorted(harness.origin.trace.split()) == ["D2", "P"]
    harness.clock.ahead += RECHECK + 1
    assert await harness.refused("/daily-2.cdiff")
    assert harness.origin.count("D2") == 2
    harness.clock.ahead += RECHECK + 1
    harness.origin.forget()


async def test_the_pause_of_its_budget_holds_a_late_patch_back(harness: ServiceHarness) -> None:
    await look_for_the_next(harness)
    for _ in range(3):
        assert (await harness.ask())[1] == RELEASES.cvd(1)
    assert await harness.shown() == 1
    assert harness.origin.trace == "P"


async def test_a_header_of_its_version_is_news_of_a_late_patch(harness: ServiceHarness) -> None:
    await look_for_the_next(harness)
    RELEASES.publish(harness.origin, 2)
    response, content = await harness.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
    assert await harness.shown() == 2
    assert harness.origin.trace == "P D2"


async def test_a_header_is_news_of_a_late_patch_for_who_only_looks(harness: ServiceHarness) -> None:
    await look_for_the_next(harness)
    RELEASES.publish(harness.origin, 2)
    assert await harness.shown() == 2
    assert (await harness.ask())[1] == RELEASES.cvd(1)
    assert harness.origin.trace == "P D2"


async def test_if_the_patch_is_missing_even_then_the_whole_is_fetched(harness: ServiceHarness) -> None:
    await look_for_the_next(harness)
    RELEASES.publish(harness.origin, 2)
    harness.origin.remove("daily-2.cdiff")
    for _ in range(3):
        assert (await harness.ask())[1] == RELEASES.cvd(2)
        await harness.settle()
    assert harness.origin.trace == "P D2 W"


# A patch that is slow


@pytest.mark.parametrize("slow", ["D2", "D4", "*"])
async def test_trap_28_a_new_client_gets_the_base_at_once_and_no_whole_download_begins(
    harness: ServiceHarness, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.begin()
    monkeypatch.setattr(current_module, "PATIENCE_WITH_STALE", 0.2)
    harness.release(NEWEST)
    harness.origin.rule(slow, faults.silent())
    for _ in range(3):
        response, content = await harness.ask()
        assert (response.status, response.result, content) == (200, Result.STALE, RELEASES.cvd(1))
    assert harness.origin.count("W") == 0
    assert harness.origin.count(slow) <= 1 or slow == "*"
    harness.origin.heal()
    await harness.settle()
    assert harness.origin.count("W") == 0
    assert not harness.service.store.has(cvd(NEWEST))


async def test_who_has_a_version_already_is_not_set_back(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.begin()
    monkeypatch.setattr(current_module, "PATIENCE_WITH_STALE", 0.2)
    harness.release(NEWEST)
    harness.origin.rule("D3", faults.silent())
    await harness.ask()
    response, _ = await harness.ask(If_Modified_Since=since(2))
    assert response.status in (304, 503) or (response.version or 0) > 2
    harness.origin.heal()


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
async def test_one_client_waits_for_a_silent_origin_and_the_others_no_more(
    harness: ServiceHarness, silent: str, has_patches: bool
) -> None:
    harness.restart(delta={"enabled": has_patches}, upstream={"read_timeout": "60s"})
    await harness.begin()
    harness.release(2)
    harness.origin.rule(silent, faults.silent())
    response, content = await harness.ask()
    assert (response.status, response.result, content) == (200, Result.STALE, RELEASES.cvd(1))
    asked = harness.origin.trace
    async with asyncio.timeout(current_module.PATIENCE_WITH_STALE):  # as long as one waits alone
        others = await asyncio.gather(*(harness.ask() for _ in range(5)))
    assert {(response.result, content) for response, content in others} == {(Result.STALE, RELEASES.cvd(1))}
    assert harness.origin.trace == asked
    harness.origin.heal()


async def test_what_a_silent_origin_says_at_last_is_served(harness: ServiceHarness) -> None:
    await harness.begin()
    harness.release(2)
    harness.origin.rule("D2", faults.silent())
    assert (await harness.ask())[0].result is Result.STALE
    harness.origin.heal()
    await harness.settle()
    response, content = await harness.ask()
    assert (response.result, content) == (Result.HIT, RELEASES.cvd(1))
    assert await harness.shown() == 2


async def test_dns_is_not_waited_for_while_something_is_cached(harness: ServiceHarness) -> None:
    """Not even if it has never answered."""
    harness.dns.mode = Mode.SILENT
    harness.release(1)
    assert (await harness.ask())[1] == RELEASES.cvd(1), "from the origin's header alone"
    await harness.settle()
    harness.clock.ahead += 400
    harness.origin.rule("*", faults.silent())
    assert (await harness.ask())[1] == RELEASES.cvd(1)
    async with asyncio.timeout(current_module.PATIENCE_WITH_STALE):
        await asyncio.gather(*(harness.ask() for _ in range(5)))
    harness.origin.heal()


async def test_waiting_for_dns_is_part_of_a_patchs_patience(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.release(2)
    harness.dns.mode = Mode.SILENT
    monkeypatch.setattr(gateway_module, "PATIENCE", 0.1)  # less than DNS gets
    response, _ = await harness.ask("/daily-2.cdiff")
    assert response.status == 503
    assert harness.origin.trace == ""


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
