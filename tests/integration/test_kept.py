"""What was fetched is served, however little the cache may keep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.retention import SPARED
from clamproxy.config.units import MIB
from clamproxy.messages import Result
from tests.harness.service import NEWEST, RELEASES, ServiceHarness, open_harness
from tests.support.origin import OriginServer
from tests.support.stored import cdiff, cvd, put

SETTINGS: dict[str, dict[str, Any]] = {
    "the patch is below cache.keep_cdiffs": {"cache": {"keep_cdiffs": 1}},
    "the limit is less than the newest CVDs": {"cache": {"size_limit": "1MiB"}},
}


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    """The newest CVD is cached, and the patches are at the origin."""
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.begin(NEWEST)
        yield harness


@pytest.mark.parametrize("sections", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("kind", ["cdiff", "cdiff.sign"])
async def test_a_patch_is_there_for_all_who_ask(
    harness: ServiceHarness, sections: dict[str, Any], kind: str
) -> None:
    harness.restart(**sections)
    put(harness.service.store, cvd(62, "main"), bytes(2 * MIB))
    await harness.ask(f"/daily-{NEWEST}.cdiff")
    for result in (Result.MISS, Result.HIT, Result.HIT):
        for version in range(2, NEWEST):
            response, content = await harness.ask(f"/daily-{version}.{kind}")
            assert (response.status, response.result) == (200, result)
            assert content == RELEASES.cdiff(version) or kind == "cdiff.sign"
        await harness.settle()
    assert harness.origin.count(f"/daily-2.{kind}") == 1


async def test_a_patch_is_not_kept_for_ever(harness: ServiceHarness) -> None:
    harness.restart(cache={"keep_cdiffs": 1})
    put(harness.service.store, cdiff(2), RELEASES.cdiff(2))  # in 1970
    await harness.ask("/daily-3.cdiff")
    await harness.ask("/daily-4.cdiff")
    await harness.settle()
    store = harness.service.store
    assert [store.has(cdiff(version)) for version in (2, 3, 4)] == [False, True, True]
    dropped = store.collect_garbage(1, 2**30, spare_for=SPARED)
    assert dropped == []
    assert store.collect_garbage(1, 2**30) == [cdiff(3)]
