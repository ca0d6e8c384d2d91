"""CLDs: what PrivateMirror clients get."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from clamproxy import service as service_module
from clamproxy.formats import cld as cld_module
from clamproxy.formats.cld import verify_cld
from clamproxy.messages import Result
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases import builder as builder_module
from tests.harness.service import NEWEST, PROBE, RELEASES, ServiceHarness, open_harness, since
from tests.support.forge import forge_keys
from tests.support.origin import OriginServer
from tests.support.stored import until


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        yield harness


async def test_a_cld_where_patches_lead_further(harness: ServiceHarness, tmp_path: Path) -> None:
    await harness.hold()
    assert await harness.shown("/daily.cld") == NEWEST
    response, content = await harness.ask("/daily.cld")
    assert (response.status, response.version) == (200, NEWEST)
    path = tmp_path / "cld"
    path.write_bytes(content)
    with path.open("rb") as file:
        verify_cld(file, ObjectId("daily", NEWEST, Kind.CLD), forge_keys().trusted)
    again, same = await harness.ask("/daily.cld")
    assert (again.result, same) == (Result.HIT, content)
    assert harness.origin.requests() == []


@pytest.mark.parametrize(
    ("have", "status"), [(since(1), 200), (since(NEWEST), 304), (since(NEWEST + 1), 304)]
)
async def test_a_conditional_request_for_a_cld(harness: ServiceHarness, have: str, status: int) -> None:
    await harness.hold()
    for _ in range(2):  # while it is not built, and afterwards
        assert (await harness.ask("/daily.cld", If_Modified_Since=have))[0].status == status
        assert (await harness.ask("/daily.cld", **PROBE))[0].status == 206


async def test_trap_22_no_cld_where_patches_lead_no_further(harness: ServiceHarness) -> None:
    assert await harness.refused("/daily.cld", **PROBE), "nothing is here"
    assert harness.origin.requests() == []
    await harness.begin()
    for fields in (PROBE, {}, {"If_Modified_Since": since(1)}):
        assert await harness.refused("/daily.cld", **fields), "the CVD is current"
    await harness.hold()
    await harness.ask(If_Modified_Since=since(1))
    await harness.settle()
    assert await harness.refused("/daily.cld"), "there is a new CVD"
    assert not [seen for seen in harness.origin.requests() if "cld" in seen.path]


async def test_a_cld_of_the_next_release(harness: ServiceHarness) -> None:
    await harness.hold(reached=2)
    assert await harness.shown("/daily.cld") == 2
    await harness.ask("/daily.cld")
    harness.release(3)
    assert await harness.shown("/daily.cld") == 3
    assert (await harness.ask("/daily.cld"))[0].version == 3
    assert harness.origin.trace == "D3"


async def test_a_cld_that_was_promised_is_there_when_the_base_has_been_renewed(
    harness: ServiceHarness, tmp_path: Path
) -> None:
    """A PrivateMirror client asks for the header, then for the whole file; a renewal comes between."""
    await harness.hold()
    assert await harness.shown("/daily.cld") == NEWEST
    await until(lambda: harness.service.store.has(ObjectId("daily", NEWEST, Kind.CLD)))
    assert (await harness.ask(If_Modified_Since=since(1)))[1] == RELEASES.cvd(NEWEST)
    await harness.settle()
    assert harness.service.store.newest_version("daily") == NEWEST
    for _ in range(2):
        response, content = await harness.ask("/daily.cld", If_Modified_Since=since(NEWEST - 1))
        assert (response.status, response.result, response.version) == (200, Result.HIT, NEWEST)
    path = tmp_path / "cld"
    path.write_bytes(content)
    with path.open("rb") as file:
        verify_cld(file, ObjectId("daily", NEWEST, Kind.CLD), forge_keys().trusted)
    assert await harness.shown("/daily.cld") == await harness.shown() == NEWEST


async def test_the_next_release_is_built_on_the_promised_cld(harness: ServiceHarness) -> None:
    await harness.hold()
    await harness.ask("/daily.cld")
    await harness.ask(If_Modified_Since=since(1))
    await harness.settle()
    harness.release(NEWEST + 1)
    assert await harness.shown("/daily.cld") == NEWEST + 1
    assert (await harness.ask("/daily.cld"))[0].version == NEWEST + 1
    assert harness.origin.trace == f"D{NEWEST + 1}"


async def test_a_service_that_is_replaced_finishes_its_build(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client may be gone by then."""
    await harness.hold()
    has_come, may_go, build_cld = threading.Event(), threading.Event(), cld_module.build_cld

    def build_slowly(*arguments: Any, **options: Any) -> None:
        has_come.set()
        may_go.wait(30)
        build_cld(*arguments, **options)

    monkeypatch.setattr(builder_module, "build_cld", build_slowly)
    monkeypatch.setattr(service_module, "LOOK_EVERY", 0.01)
    client = asyncio.create_task(harness.ask("/daily.cld"))
    await until(has_come.is_set)
    client.cancel()
    harness.service.retire()
    idle = asyncio.create_task(harness.service.idle(30))
    await asyncio.sleep(0.1)
    assert not idle.done()
    may_go.set()
    await idle
    assert harness.service.store.has(ObjectId("daily", NEWEST, Kind.CLD))
