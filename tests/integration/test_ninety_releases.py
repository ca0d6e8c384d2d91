"""What a season of daily releases costs: the follower itself, against a CDN that writes down each request."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from clamproxy.releases.quiet import QuietHour
from tests.harness.follower import HOUR, MakeHarness, names
from tests.harness.service import RELEASES, open_harness
from tests.harness.soak.measures import containers
from tests.support.origin import OriginServer
from tests.support.stored import cdiff, sign

RELEASED = 90


@pytest.mark.parametrize(
    ("renew_after", "renewals"),
    [pytest.param(7, 12, id="7"), pytest.param(30, 3, id="30"), pytest.param(90, 1, id="90")],
)
async def test_each_patch_is_fetched_once_and_a_whole_file_now_and_then(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, renew_after: int, renewals: int
) -> None:
    """As benchmarks/releases.py computes it; a quiet hour comes once a day."""
    limits = {"renew_after": renew_after, "max_share": "100%"}
    harness = make_harness(delta=limits)
    harness.release(1)
    asked: Counter[str] = Counter()
    patches = []
    for version in range(2, RELEASED + 2):
        harness.release(version)
        for is_quiet in (False, True, False):
            monkeypatch.setattr(QuietHour, "is_now", lambda self, quiet=is_quiet: quiet)
            await harness.look()
            harness.clock.now += 8 * HOUR
        asked.update(seen.short_name for seen in harness.origin.requests())
        proven = await harness.lineages.get("daily")
        assert proven is not None
        assert proven.lineage.reached == version
        patches.append(proven.lineage.patches)
    assert asked.pop("W") == renewals
    assert renewals <= asked.pop("P") <= RELEASED + 1  # 512 bytes a day, in case DNS is wrong for ever
    assert max(patches) < renew_after
    for name in names(range(2, RELEASED + 2), "cdiff.sign"):
        assert asked.pop(f"/{name}") == 1
    for version in range(2, RELEASED + 2):
        assert asked.pop(f"D{version}") == 1
    # What is left are the signatures of the bases.
    assert set(asked) == {name for name in asked if name.endswith(".cvd.sign")}
    assert all(count == 1 for count in asked.values())


@pytest.mark.parametrize("delta", [{"max_patches": 5}, {"renew_after": 1}], ids=str)
async def test_nothing_is_remembered_of_versions_that_are_gone(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, delta: dict[str, int]
) -> None:
    """The cache has dropped them, whether or not there could be clients that need them."""
    monkeypatch.setattr(QuietHour, "is_now", lambda _: True)
    harness = make_harness(delta={**delta, "max_share": "100%"})
    harness.release(1)
    lengths = []
    for version in range(2, 34):
        harness.release(version)
        await harness.look()
        harness.clock.now += 8 * HOUR
        harness.store.collect_garbage(5, 10**9)
        if version in (16, 32):
            lengths.append(containers())
    before, after = lengths
    grown = {name: length for name, length in after.items() if length > before.get(name, 0) + 5}
    assert {name for name in grown if name.startswith(("Follower.", "Signs.", "Index."))} == set()


async def test_nothing_is_remembered_of_what_clients_asked_for(tmp_path: Path, origin: OriginServer) -> None:
    """They ask for each patch and its signature, and soon the cache has neither any more."""
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.begin()
        lengths = []
        for version in range(2, 34):
            harness.release(version, base=1)
            harness.origin.put(sign(cdiff(version)).file_name, RELEASES.cdiff_sign(version))
            for _ in range(2):  # from the origin, and from the cache
                for asked in (cdiff(version), sign(cdiff(version))):
                    assert (await harness.ask(asked.upstream_path))[0].status == 200
                    await harness.settle()
            for old in (cdiff(version - 5), sign(cdiff(version - 5))):
                harness.service.store.drop(old)
            if version in (16, 32):
                lengths.append(containers())
    before, after = lengths
    grown = {name: length for name, length in after.items() if length > before.get(name, 0) + 5}
    assert grown == {}
