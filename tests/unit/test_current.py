"""What is announced by the gateway's own DNS: a version that clients find here."""

from __future__ import annotations

from typing import Any

import pytest

from clamproxy.notes import UNKEPT
from clamproxy.origin.agents import Agents
from tests.unit.conftest import cdiff, cvd, hold, put
from tests.unit.follower_bench import HOUR, RELEASES, Bench, MakeBench

NOTHING: dict[str, dict[str, Any]] = {"serving": {"prefetch": "none"}}
OFFLINE: dict[str, dict[str, Any]] = {"upstream": {"offline": True}}


async def announced(bench: Bench) -> int | None:
    """After DNS was asked, and the patches were looked at."""
    await bench.versions.get("daily")
    await bench.lineages.get("daily")
    return bench.make_current().announced("daily")


async def test_what_patches_lead_to(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.release(3)
    assert await announced(bench) == 1, "nothing has been fetched yet"
    await bench.look()
    assert await announced(bench) == 3


async def test_while_the_newest_patch_is_late_the_version_before_it(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.release(3, base=2)
    bench.origin.remove("daily-3.cdiff")
    await bench.look()
    assert await announced(bench) == 2


async def test_a_database_of_which_nothing_is_here_is_announced_as_dns_has_it(make_bench: MakeBench) -> None:
    bench = make_bench(base=None)
    assert bench.make_current().announced("daily") is None, "nobody has asked DNS yet"
    bench.release(3)
    assert await announced(bench) == 3


# Patches alone


def with_patches_alone(make_bench: MakeBench) -> Bench:
    """All clients have a CVD of their own; the patch to version 3 is not at the origin."""
    bench = make_bench(base=None)
    put(bench.store, cdiff(2), RELEASES.cdiff(2))
    bench.release(3)
    bench.origin.remove("daily-3.cdiff")
    return bench


async def test_the_newest_cached_patch(make_bench: MakeBench) -> None:
    bench = with_patches_alone(make_bench)
    await bench.look()
    assert await announced(bench) == 2


async def test_a_patch_that_comes_late(make_bench: MakeBench) -> None:
    bench = with_patches_alone(make_bench)
    await bench.live(HOUR / 2)
    bench.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    await bench.live(HOUR)
    assert await announced(bench) == 3
    assert bench.asked("W") == 0


async def test_a_patch_that_never_comes(make_bench: MakeBench) -> None:
    """No client could ever hear of the version that it leads to: after a while the CVD is fetched."""
    bench = with_patches_alone(make_bench)
    await bench.live(HOUR / 2)
    assert (await announced(bench), bench.asked("W")) == (2, 0)
    await bench.live(4 * HOUR)
    assert bench.store.has(cvd(3))
    assert await announced(bench) == 3
    assert bench.asked("W") == 1


async def test_one_that_is_gone_while_later_ones_are_there(make_bench: MakeBench) -> None:
    bench = with_patches_alone(make_bench)
    bench.release(5)
    bench.origin.remove("daily-3.cdiff")
    await bench.live(2 * HOUR)
    assert await announced(bench) == 5
    assert bench.asked("W") <= 1


# Where nothing is fetched ahead


async def test_only_clients_that_ask_can_bring_it_here(make_bench: MakeBench) -> None:
    bench = make_bench(**NOTHING)
    bench.release(3)
    assert await announced(bench) == 3


@pytest.mark.parametrize(("base", "expected"), [(1, 3), (None, 3)])
async def test_so_it_is_without_an_agent(make_bench: MakeBench, base: int | None, expected: int) -> None:
    bench = make_bench(base=base)
    bench.agents = Agents(None, UNKEPT, bench.clock.time)
    bench.release(3)
    assert await announced(bench) == expected


@pytest.mark.parametrize("more", [{}, NOTHING["serving"]])
@pytest.mark.parametrize(
    ("base", "patches", "expected"),
    [
        pytest.param(1, [2, 3], 3, id="what patches lead to"),
        pytest.param(1, [2, 4], 2, id="up to a gap"),
        pytest.param(2, [], 2, id="a CVD"),
        pytest.param(None, [], None, id="nothing"),
    ],
)
async def test_offline_what_is_here(
    make_bench: MakeBench, base: int | None, patches: list[int], expected: int | None, more: dict[str, Any]
) -> None:
    bench = make_bench(base=base, **OFFLINE, serving=more)
    hold(bench.store, None, patches, RELEASES)
    bench.release(9)
    bench.dns.is_silent = True
    assert await announced(bench) == expected
