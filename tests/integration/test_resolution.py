"""What is announced by the gateway's own DNS: a version that clients find here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from clamproxy.notes import UNKEPT
from clamproxy.origin.agents import Agents
from tests.harness.follower import HOUR, RELEASES, FollowerHarness, MakeHarness
from tests.support.stored import cdiff, cvd, hold, put

NOTHING: dict[str, dict[str, Any]] = {"serving": {"prefetch": "none"}}
OFFLINE: dict[str, dict[str, Any]] = {"upstream": {"offline": True}}


@pytest.fixture
def harness(make_harness: MakeHarness) -> FollowerHarness:
    return make_harness()


async def announced(harness: FollowerHarness) -> int | None:
    """After DNS was asked, and the patches were looked at."""
    await harness.versions.get("daily")
    await harness.lineages.get("daily")
    return harness.make_current().announced("daily")


async def test_what_patches_lead_to(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.release(3)
    assert await announced(harness) == 1, "nothing has been fetched yet"
    await harness.look()
    assert await announced(harness) == 3


async def test_while_the_newest_patch_is_late_the_version_before_it(make_harness: MakeHarness) -> None:
    harness = make_harness()
    harness.release(3, base=2)
    harness.origin.remove("daily-3.cdiff")
    await harness.look()
    assert await announced(harness) == 2


async def test_a_database_of_which_nothing_is_here_is_announced_as_dns_has_it(
    make_harness: MakeHarness,
) -> None:
    harness = make_harness(base=None)
    assert harness.make_current().announced("daily") is None, "nobody has asked DNS yet"
    harness.release(3)
    assert await announced(harness) == 3


# Patches alone


def with_patches_alone(make_harness: MakeHarness) -> FollowerHarness:
    """All clients have a CVD of their own; the patch to version 3 is not at the origin."""
    harness = make_harness(base=None)
    put(harness.store, cdiff(2), RELEASES.cdiff(2))
    harness.release(3)
    harness.origin.remove("daily-3.cdiff")
    return harness


async def test_the_newest_cached_patch(make_harness: MakeHarness) -> None:
    harness = with_patches_alone(make_harness)
    await harness.look()
    assert await announced(harness) == 2


async def test_a_patch_that_comes_late(make_harness: MakeHarness) -> None:
    harness = with_patches_alone(make_harness)
    await harness.live(HOUR / 2)
    harness.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    await harness.live(HOUR)
    assert await announced(harness) == 3
    assert harness.asked("W") == 0


async def test_a_patch_that_never_comes(make_harness: MakeHarness) -> None:
    """No client could ever hear of the version that it leads to: after a while the CVD is fetched."""
    harness = with_patches_alone(make_harness)
    await harness.live(HOUR / 2)
    assert (await announced(harness), harness.asked("W")) == (2, 0)
    await harness.live(4 * HOUR)
    assert harness.store.has(cvd(3))
    assert await announced(harness) == 3
    assert harness.asked("W") == 1


async def test_a_patch_that_is_gone_while_later_ones_are_there(make_harness: MakeHarness) -> None:
    harness = with_patches_alone(make_harness)
    harness.release(5)
    harness.origin.remove("daily-3.cdiff")
    await harness.live(2 * HOUR)
    assert await announced(harness) == 5
    assert harness.asked("W") <= 1


# Where patches don't lead on


def empty(harness: FollowerHarness) -> None:
    """Trap 15: so the vendor tells clients to take the whole CVD."""
    harness.origin.put("daily-3.cdiff", b"")


def missing(harness: FollowerHarness) -> None:
    harness.origin.remove("daily-3.cdiff")


def far_behind(harness: FollowerHarness) -> None:
    """As if the gateway had been off: more patches are missing than are ever fetched."""
    harness.release(8)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("spoil", [empty, missing, far_behind])
async def test_whether_new_clients_get_patches_or_not_the_announced_version_goes_on(
    make_harness: MakeHarness, spoil: Callable[[FollowerHarness], None], enabled: bool
) -> None:
    """Clients that believe the gateway's DNS never ask for the whole CVD: only the gateway can fetch it."""
    harness = make_harness(delta={"enabled": enabled, "max_patches": 5, "max_share": "100%"})
    harness.release(2)
    await harness.look()
    assert await announced(harness) == 2
    harness.release(4)
    spoil(harness)
    await harness.live(HOUR)
    assert await announced(harness) == harness.dns.versions["daily"]
    assert (harness.asked("P"), harness.asked("W")) == (1, 1)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("ceiling", "expected"), [(2, 2), (3, 2), (4, 4), (5, 5), (None, 5)])
async def test_under_a_ceiling_what_can_be_had_up_to_there(
    make_harness: MakeHarness, ceiling: int | None, expected: int, enabled: bool
) -> None:
    """The whole CVD is fetched although it is hidden: it leads on as soon as the ceiling rises."""
    harness = make_harness(delta={"enabled": enabled, "max_share": "100%"})
    harness.release(4)
    empty(harness)
    await harness.live(HOUR)
    harness.release(5)
    await harness.live(HOUR)
    assert harness.asked("W") == 0, "once was enough"
    current = harness.make_current()
    await current.look("daily", ceiling)
    assert current.announced("daily", ceiling) == expected


async def test_what_another_process_has_fetched(make_harness: MakeHarness) -> None:
    """Of a gateway's workers, one follows the releases; all of them announce."""
    harness, other = make_harness(delta={"enabled": False}), make_harness(delta={"enabled": False})
    current = other.make_current()
    for version in (1, 2, 3):
        harness.release(version)
        other.dns.versions["daily"] = version
        await harness.live(HOUR)
        await current.look("daily")
        assert current.announced("daily") == version


# Where nothing is fetched ahead


async def test_with_nothing_prefetched_only_clients_can_bring_a_version_here(
    make_harness: MakeHarness,
) -> None:
    harness = make_harness(**NOTHING)
    harness.release(3)
    assert await announced(harness) == 3


@pytest.mark.parametrize(("base", "expected"), [(1, 3), (None, 3)])
async def test_without_an_agent_only_clients_can_bring_a_version_here(
    make_harness: MakeHarness, base: int | None, expected: int
) -> None:
    harness = make_harness(base=base)
    harness.agents = Agents(None, UNKEPT, harness.clock.time)
    harness.release(3)
    assert await announced(harness) == expected


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
    make_harness: MakeHarness,
    base: int | None,
    patches: list[int],
    expected: int | None,
    more: dict[str, Any],
) -> None:
    harness = make_harness(base=base, **OFFLINE, serving=more)
    hold(harness.store, None, patches, RELEASES)
    harness.release(9)
    harness.dns.is_silent = True
    assert await announced(harness) == expected
