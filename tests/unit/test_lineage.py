"""Lineages: which version the cached patches lead to."""

from __future__ import annotations

import asyncio

import pytest

from clamproxy.cache.store import Store
from clamproxy.formats.header import CvdHeader
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases.lineage import Lineages, ProvenLineage
from tests.support.forge import ForgeKeys, forge_cdiff, forge_keys, forge_patch
from tests.support.releases import Releases
from tests.support.stored import RELEASES, cdiff, hold, put

MANY = 10**9


@pytest.fixture
def lineages(store: Store) -> Lineages:
    return Lineages(store, forge_keys().trusted)


async def of_daily(lineages: Lineages) -> ProvenLineage:
    proven = await lineages.get("daily")
    assert proven is not None
    return proven


async def reached(lineages: Lineages) -> tuple[int, int, bool]:
    """Base, version reached, and whether the next patch leads nowhere."""
    lineage = (await of_daily(lineages)).lineage
    return lineage.base, lineage.reached, lineage.is_blocked


@pytest.mark.parametrize(
    ("base", "patches", "expected"),
    [
        pytest.param(1, [], 1, id="the CVD alone"),
        pytest.param(1, [2, 3, 4], 4, id="without a gap"),
        pytest.param(1, [2, 4, 5], 2, id="up to the gap"),
        pytest.param(1, [3, 4], 1, id="the first one is missing"),
        pytest.param(3, [2, 3, 4], 4, id="patches before the base don't count"),
        pytest.param(3, [1, 2, 3], 3, id="nothing behind the base"),
    ],
)
async def test_how_far_patches_lead(
    store: Store, lineages: Lineages, base: int, patches: list[int], expected: int
) -> None:
    hold(store, base, [version for version in patches if version > 1])
    proven = await of_daily(lineages)
    assert (proven.lineage.base, proven.lineage.reached) == (base, expected)
    assert proven.lineage.base_size == len(RELEASES.cvd(base))
    assert proven.lineage.patch_bytes == sum(
        len(RELEASES.cdiff(version)) for version in range(base + 1, expected + 1)
    )
    assert proven.header == CvdHeader.parse(RELEASES.cld_header(expected))
    assert proven.info.raw == RELEASES.members(expected)["daily.info"]


async def test_each_proven_header_is_told_of_once(store: Store) -> None:
    """In their order, those of versions in between among them; nothing that isn't proven."""
    learned: list[tuple[str, CvdHeader]] = []
    lineages = Lineages(store, forge_keys().trusted, lambda *what: learned.append(what))
    hold(store, 1, [2, 3])
    await of_daily(lineages)
    await of_daily(lineages)
    hold(store, None, [4])
    put(store, cdiff(5), b"no patch")
    await of_daily(lineages)
    headers = [CvdHeader.parse(RELEASES.cld_header(version)) for version in (2, 3, 4)]
    assert [database for database, _ in learned] == ["daily"] * 4
    assert learned[0][1].version == 1
    assert [header for _, header in learned[1:]] == headers


async def test_the_ceilings_in_use_are_read_once(store: Store) -> None:
    """Canaries and other machines may have different ones, and come by turns."""
    readings: list[int] = []
    lineages = Lineages(store, forge_keys().trusted, lambda _, header: readings.append(header.version))
    hold(store, 1, [2, 3, 4])

    async def ask(*ceilings: int | None) -> int:
        """How often the base was read for clients with these ceilings."""
        readings.clear()
        for ceiling in ceilings:
            proven = await lineages.get("daily", ceiling)
            assert proven is not None
            assert proven.lineage.reached == (ceiling or 4)
        return readings.count(1)

    assert await ask(None, 2, 3) == 3
    assert await ask(2, 3, None, 2, 3) == 0
    assert await ask(4, 3, 4) == 1, "a new one takes the place of the oldest"
    assert await ask(2) == 1


async def test_without_a_cvd_there_is_no_lineage(store: Store, lineages: Lineages) -> None:
    hold(store, None, [2, 3])
    assert await lineages.get("daily") is None
    hold(store, 1)
    assert await reached(lineages) == (1, 3, False)


async def test_databases_have_lineages_of_their_own(store: Store, lineages: Lineages) -> None:
    hold(store, 1, [2])
    hold(store, 5, [6, 7], Releases(database="main", first=5))
    proven = await lineages.get("main")
    assert proven is not None
    assert (proven.lineage.base, proven.lineage.reached) == (5, 7)
    assert await reached(lineages) == (1, 2, False)


FILES, AFTER = {"daily.ndb": b"A:0:*:00\n"}, {"daily.ndb": b"A:0:*:00\nB:0:*:01\n"}
ADD = b"OPEN daily.ndb\nADD B:0:*:01\nCLOSE\n"


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(b"", id="trap 15: empty, the vendor's word for take the whole CVD"),
        pytest.param(Releases(filler=500).cdiff(3), id="trap 18: a patch to another file"),
        pytest.param(forge_cdiff("daily", 3), id="a patch that leaves .info as it is"),
        pytest.param(forge_cdiff("daily", 3, b"UNLINK daily.info\n"), id="a patch that removes .info"),
        pytest.param(forge_patch("daily", 3, FILES, AFTER, ADD), id="a patch for other files"),
    ],
)
async def test_a_patch_that_does_not_fit_ends_the_lineage(
    store: Store, lineages: Lineages, patch: bytes
) -> None:
    hold(store, 1, [2, 4])
    put(store, cdiff(3), patch)
    for _ in range(2):
        assert await reached(lineages) == (1, 2, True)
    assert (await of_daily(lineages)).header.version == 2
    hold(store, 4)
    assert await reached(lineages) == (4, 4, False)


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(RELEASES.cdiff(4), id="trap 18: another patch under this name"),
        pytest.param(Releases(keys=ForgeKeys.generate()).cdiff(3), id="signed by somebody else"),
        pytest.param(forge_cdiff("daily", 3, b"nonsense\n"), id="no command"),
    ],
)
async def test_a_patch_that_is_damaged_is_dropped(
    store: Store, lineages: Lineages, patch: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    hold(store, 1, [2, 4])
    put(store, cdiff(3), patch)
    for _ in range(2):
        assert await reached(lineages) == (1, 2, False)
    assert not store.has(cdiff(3))
    assert caplog.text.count("was damaged") == 1
    hold(store, None, [3])
    assert await reached(lineages) == (1, 4, False)


async def test_a_lineage_goes_on_with_what_is_added(store: Store, lineages: Lineages) -> None:
    hold(store, 1)
    for version in (2, 3, 4):
        assert await reached(lineages) == (1, version - 1, False)
        hold(store, None, [version])
    assert await reached(lineages) == (1, 4, False)
    assert (await of_daily(lineages)).lineage.patch_bytes == sum(len(RELEASES.cdiff(n)) for n in (2, 3, 4))
    hold(store, 3)
    assert await reached(lineages) == (3, 4, False)
    assert (await of_daily(lineages)).lineage.patch_bytes == len(RELEASES.cdiff(4))


async def test_a_gap_is_closed(store: Store, lineages: Lineages) -> None:
    hold(store, 1, [3, 4])
    assert await reached(lineages) == (1, 1, False)
    hold(store, None, [2])
    assert await reached(lineages) == (1, 4, False)


@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_patches_that_are_dropped_count_no_more(store: Store, lineages: Lineages, kept: int) -> None:
    """The oldest go first."""
    hold(store, 1, [2, 3, 4])
    assert await reached(lineages) == (1, 4, False)
    for version in range(2, 5 - kept):
        store.drop(cdiff(version))
    assert await reached(lineages) == (1, 1, False)
    hold(store, None, [2])
    assert await reached(lineages) == (1, {0: 2, 1: 2, 2: 4}[kept], False)


async def test_a_herd_waits_for_one_reading(store: Store, lineages: Lineages) -> None:
    hold(store, 1, [2, 3, 4])
    found = await asyncio.gather(*(lineages.get("daily") for _ in range(20)))
    assert len({id(proven) for proven in found}) == 1
    assert await lineages.get("daily") is found[0]


async def test_who_leaves_ends_nobody_elses_reading(store: Store, lineages: Lineages) -> None:
    hold(store, 1, [2, 3])
    first, second = (asyncio.create_task(lineages.get("daily")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    proven = await second
    assert proven is not None
    assert proven.lineage.reached == 3


async def test_what_is_no_cdiff_of_this_line_does_no_harm(store: Store, lineages: Lineages) -> None:
    hold(store, 1, [2])
    put(store, ObjectId("daily", 3, Kind.CDIFF_SIGN), b"signature")
    put(store, ObjectId("daily", 9, Kind.CLD), b"built")
    assert await reached(lineages) == (1, 2, False)
