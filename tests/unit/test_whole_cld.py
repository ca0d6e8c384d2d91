"""CLDs: what PrivateMirror clients get."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.formats.cld import verify_cld
from clamproxy.messages import Result
from clamproxy.objects import Kind, ObjectId
from tests.support.forge import forge_keys
from tests.support.origin import OriginServer
from tests.unit.conftest import until
from tests.unit.whole_site import NEWEST, PROBE, RELEASES, Site, open_site, since


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        yield site


async def test_a_cld_where_patches_lead_further(site: Site, tmp_path: Path) -> None:
    await site.hold()
    assert await site.shown("/daily.cld") == NEWEST
    response, content = await site.ask("/daily.cld")
    assert (response.status, response.version) == (200, NEWEST)
    path = tmp_path / "cld"
    path.write_bytes(content)
    with path.open("rb") as file:
        verify_cld(file, ObjectId("daily", NEWEST, Kind.CLD), forge_keys().trusted)
    again, same = await site.ask("/daily.cld")
    assert (again.result, same) == (Result.HIT, content)
    assert site.origin.requests() == []


@pytest.mark.parametrize(
    ("have", "status"), [(since(1), 200), (since(NEWEST), 304), (since(NEWEST + 1), 304)]
)
async def test_a_conditional_request_for_a_cld(site: Site, have: str, status: int) -> None:
    await site.hold()
    for _ in range(2):  # while it is not built, and afterwards
        assert (await site.ask("/daily.cld", If_Modified_Since=have))[0].status == status
        assert (await site.ask("/daily.cld", **PROBE))[0].status == 206


async def test_trap_22_otherwise_there_is_none(site: Site) -> None:
    assert await site.refused("/daily.cld", **PROBE), "nothing is here"
    assert site.origin.requests() == []
    await site.begin()
    for fields in (PROBE, {}, {"If_Modified_Since": since(1)}):
        assert await site.refused("/daily.cld", **fields), "the CVD is current"
    await site.hold()
    await site.ask(If_Modified_Since=since(1))
    await site.settle()
    assert await site.refused("/daily.cld"), "there is a new CVD"
    assert not [seen for seen in site.origin.requests() if "cld" in seen.path]


async def test_a_cld_of_the_next_release(site: Site) -> None:
    await site.hold(reached=2)
    assert await site.shown("/daily.cld") == 2
    await site.ask("/daily.cld")
    site.release(3)
    assert await site.shown("/daily.cld") == 3
    assert (await site.ask("/daily.cld"))[0].version == 3
    assert site.origin.trace == "D3"


async def test_a_cld_that_was_promised_is_there_when_the_base_has_been_renewed(
    site: Site, tmp_path: Path
) -> None:
    """A PrivateMirror client asks for the header, then for the whole file; a renewal comes between."""
    await site.hold()
    assert await site.shown("/daily.cld") == NEWEST
    await until(lambda: site.service.store.has(ObjectId("daily", NEWEST, Kind.CLD)))
    assert (await site.ask(If_Modified_Since=since(1)))[1] == RELEASES.cvd(NEWEST)
    await site.settle()
    assert site.service.store.newest_version("daily") == NEWEST
    for _ in range(2):
        response, content = await site.ask("/daily.cld", If_Modified_Since=since(NEWEST - 1))
        assert (response.status, response.result, response.version) == (200, Result.HIT, NEWEST)
    path = tmp_path / "cld"
    path.write_bytes(content)
    with path.open("rb") as file:
        verify_cld(file, ObjectId("daily", NEWEST, Kind.CLD), forge_keys().trusted)
    assert await site.shown("/daily.cld") == await site.shown() == NEWEST


async def test_a_release_after_that_is_built_on_it(site: Site) -> None:
    await site.hold()
    await site.ask("/daily.cld")
    await site.ask(If_Modified_Since=since(1))
    await site.settle()
    site.release(NEWEST + 1)
    assert await site.shown("/daily.cld") == NEWEST + 1
    assert (await site.ask("/daily.cld"))[0].version == NEWEST + 1
    assert site.origin.trace == f"D{NEWEST + 1}"
