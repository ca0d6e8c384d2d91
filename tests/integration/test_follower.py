"""The follower: what a release brings is here before clients ask for it."""

from __future__ import annotations

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.units import MIB
from clamproxy.notes import UNKEPT
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import PER_FILE
from clamproxy.releases import lineage
from clamproxy.releases.quiet import QuietHour
from tests.harness.follower import HOUR, NEWER_AGENT, RELEASES, FollowerHarness, MakeHarness, names
from tests.support.releases import Releases
from tests.support.stored import AGENT, OLD_AGENT, cdiff, put, until


@pytest.fixture
def harness(make_harness: MakeHarness) -> FollowerHarness:
    return make_harness()


# What is fetched


async def test_patches_and_their_signatures(harness: FollowerHarness) -> None:
    harness.release(4, base=1)
    await harness.look()
    assert all(harness.has(*names(range(2, 5), "cdiff", "cdiff.sign"), "daily-1.cvd.sign"))
    assert harness.origin.trace.split().count("W") == 0
    assert len(harness.origin.requests()) == 7


async def test_in_the_name_of_the_newest_supported_freshclam(harness: FollowerHarness) -> None:
    for agent in (NEWER_AGENT, OLD_AGENT, "curl/8.5.0"):
        harness.agents.see(agent)
    harness.release(3)
    await harness.look()
    assert {seen.headers["user-agent"] for seen in harness.origin.requests()} == {NEWER_AGENT}
    assert len(harness.origin.requests()) == 5


async def test_without_a_freshclam_nothing_is_asked(harness: FollowerHarness) -> None:
    harness.agents = Agents(None, UNKEPT, harness.clock.time)
    harness.follower = harness.make_follower()
    harness.release(3)
    await harness.look()
    assert harness.origin.requests() == []
    harness.agents.see(AGENT)
    await harness.look()
    assert all(harness.has("daily-2.cdiff", "daily-3.cdiff"))


async def test_nothing_new_costs_nothing(harness: FollowerHarness) -> None:
    harness.release(3)
    await harness.look()
    harness.origin.forget()
    await harness.live(6 * HOUR)
    assert harness.origin.requests() == []


async def test_dns_that_never_has_news_is_not_believed_for_ever(harness: FollowerHarness) -> None:
    harness.release(3)
    await harness.look()
    harness.release(4)
    harness.dns.versions["daily"] = 3
    await harness.live(23 * HOUR)
    assert harness.origin.requests() == []
    await harness.live(2 * HOUR)
    assert all(harness.has("daily-4.cdiff"))
    assert harness.asked("P") == 1


async def test_release_after_release(harness: FollowerHarness) -> None:
    for version in range(2, 8):
        harness.release(version)
        await harness.live(HOUR)
        assert all(harness.has(f"daily-{version}.cdiff", f"daily-{version}.cdiff.sign"))
        assert harness.asked(f"D{version}") == 1
    assert harness.asked("W") == 0


async def test_patches_for_clients_alone(harness: FollowerHarness, store: Store) -> None:
    """All clients have a CVD of their own: only patches were ever asked for."""
    main = Releases(database="main", first=60)
    put(store, cdiff(61, "main"), main.cdiff(61))
    harness.release(63, releases=main)
    await harness.look("main")
    assert store.has(cdiff(62, "main"))
    assert store.has(cdiff(63, "main"))
    assert store.has(ObjectId("main", 63, Kind.CDIFF_SIGN))
    assert harness.asked("W") == 0


async def test_a_database_of_which_nothing_is_here(harness: FollowerHarness) -> None:
    main = Releases(database="main", first=60)
    harness.release(63, releases=main)
    await harness.look("main")
    assert harness.origin.requests() == []


@pytest.mark.parametrize("lag", [1, 2, 3])
async def test_the_follower_catches_up_as_far_as_patches_may_lead(
    make_harness: MakeHarness, lag: int
) -> None:
    harness = make_harness(delta={"max_patches": 3})
    harness.release(1 + lag)
    await harness.live(HOUR)
    assert all(harness.has(*names(range(2, 2 + lag), "cdiff")))
    assert harness.asked("W") == 0


async def test_beyond_the_most_patches_the_follower_fetches_a_new_base(make_harness: MakeHarness) -> None:
    harness = make_harness(delta={"max_patches": 3})
    harness.release(5)
    await harness.live(HOUR)
    assert harness.has("daily-5.cvd", "daily-5.cvd.sign") == [True, True]
    assert harness.asked("W") == 1


async def test_what_leads_on_is_fetched_once_although_it_is_too_much(
    harness: FollowerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache.size_limit` is less than the newest CVD. What is dropped would come again with each look."""
    monkeypatch.setattr(lineage, "LOOK_EVERY", 0.0)
    harness.release(6)
    for _ in range(6):
        await harness.live(HOUR)
        harness.store.collect_garbage(120, MIB // 16)
    assert [harness.asked(f"D{version}") for version in range(2, 7)] == [1] * 5
    assert all(harness.has(*names(range(2, 7), "cdiff", "cdiff.sign")))


# A new base


async def test_trap_16_a_patch_that_is_late(harness: FollowerHarness) -> None:
    harness.release(3, base=2)
    harness.origin.remove("daily-3.cdiff")
    await harness.live(HOUR / 2)
    assert harness.has("daily-2.cdiff", "daily-3.cdiff") == [True, False]
    harness.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    await harness.live(HOUR)
    assert harness.has("daily-3.cdiff") == [True]
    assert harness.asked("W") == 0


async def test_a_patch_that_never_comes(harness: FollowerHarness) -> None:
    """After some hours at most, only the whole CVD leads on."""
    harness.release(2)
    harness.origin.remove("daily-2.cdiff")
    await harness.live(4 * HOUR)
    assert harness.has("daily-2.cvd") == [True]
    assert harness.asked("W") == 1


async def test_a_patch_that_is_gone_while_later_ones_are_there(harness: FollowerHarness) -> None:
    harness.release(4)
    harness.origin.remove("daily-2.cdiff")
    await harness.look()
    assert harness.has("daily-4.cvd") == [False]  # an edge of the CDN may just lag behind
    await harness.live(HOUR)
    assert harness.has("daily-4.cvd") == [True]
    assert harness.origin.trace.split().count("W") == 1


async def test_trap_15_an_empty_patch(harness: FollowerHarness) -> None:
    harness.origin.put("daily-2.cdiff", b"")
    harness.release(3)
    harness.origin.put("daily-2.cdiff", b"")
    await harness.live(HOUR)
    assert harness.has("daily-3.cvd", "daily-3.cdiff") == [True, True]
    assert harness.asked("W") == 1


async def test_trap_18_a_patch_that_does_not_fit(harness: FollowerHarness) -> None:
    harness.release(3)
    harness.origin.put("daily-2.cdiff", Releases(filler=500).cdiff(2))
    await harness.live(HOUR)
    assert harness.has("daily-3.cvd") == [True]
    assert harness.asked("W") == 1


async def test_trap_5_a_new_base_that_lags(make_harness: MakeHarness) -> None:
    harness = make_harness(delta={"max_patches": 2})
    harness.release(5, base=1)
    await harness.live(HOUR)
    assert harness.asked("P") <= PER_FILE
    assert harness.asked("W") == 0
    harness.release(5)
    await harness.live(2 * HOUR)
    assert harness.has("daily-5.cvd") == [True]


def pretend_quiet(monkeypatch: pytest.MonkeyPatch, *, on: bool) -> None:
    monkeypatch.setattr(QuietHour, "is_now", lambda self: on)


async def test_many_patches_wait_for_a_quiet_hour(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(delta={"renew_after": 3})
    pretend_quiet(monkeypatch, on=False)
    harness.release(5)
    await harness.live(2 * HOUR)
    assert all(harness.has(*names(range(2, 6), "cdiff")))
    assert harness.asked("W") == 0
    pretend_quiet(monkeypatch, on=True)
    await harness.live(HOUR)
    assert harness.has("daily-5.cvd", "daily-5.cvd.sign") == [True, True]
    assert harness.asked("W") == 1


async def test_few_patches_do_not_wait_for_a_quiet_hour(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(delta={"renew_after": 5})
    pretend_quiet(monkeypatch, on=True)
    harness.release(5)
    await harness.live(2 * HOUR)
    assert harness.asked("W") == harness.asked("P") == 0


async def test_once_a_day_there_is_a_quiet_hour(make_harness: MakeHarness) -> None:
    harness = make_harness(delta={"renew_after": 3})
    harness.release(5)
    await harness.live(25 * HOUR)
    assert harness.asked("W") == 1


async def test_patches_that_are_too_large(make_harness: MakeHarness) -> None:
    harness = make_harness(delta={"max_share": "1%"})
    harness.release(2)
    await harness.live(HOUR)
    assert harness.has("daily-2.cdiff", "daily-2.cvd") == [True, True]


async def test_switched_off_delta_serving_renews_nothing(make_harness: MakeHarness) -> None:
    """However many patches there are, as long as they lead on."""
    harness = make_harness(delta={"enabled": False, "max_patches": 3, "max_share": "0%", "renew_after": 1})
    for version in (4, 7):
        harness.release(version)
        await harness.live(25 * HOUR)
        assert harness.asked("W") == 0
    assert all(harness.has(*names(range(2, 8), "cdiff")))


async def test_all_means_whole_cvds(make_harness: MakeHarness) -> None:
    harness = make_harness(serving={"prefetch": "all"})
    harness.release(2)
    await harness.live(HOUR)
    assert all(harness.has("daily-2.cdiff", "daily-2.cdiff.sign", "daily-2.cvd", "daily-2.cvd.sign"))
    assert (harness.asked("P"), harness.asked("W")) == (1, 1)


# Without DNS


async def test_without_dns_the_header_tells(make_harness: MakeHarness) -> None:
    harness = make_harness(versions={"dns": False})
    harness.release(1)
    await harness.live(HOUR, 60)
    assert 1 <= harness.asked("P") <= PER_FILE
    harness.release(3)
    await harness.live(HOUR, 60)
    assert all(harness.has("daily-2.cdiff", "daily-3.cdiff"))
    assert harness.asked("P") <= PER_FILE
    assert harness.asked("W") == 0


async def test_dns_that_falls_silent(harness: FollowerHarness) -> None:
    harness.release(2)
    await harness.look()
    harness.dns.is_silent = True
    harness.release(3)
    await harness.live(HOUR)
    assert harness.has("daily-3.cdiff") == [True]


# CLDs


async def test_clds_are_built_ahead_where_clients_ask_for_them(harness: FollowerHarness) -> None:
    harness.release(3)
    await harness.look()
    assert harness.has("daily-3.cld") == [False]
    harness.builder.note_demand("daily")
    await harness.look()
    await until(lambda: harness.store.has(ObjectId("daily", 3, Kind.CLD)))
