"""The follower: what a release brings is here before clients ask for it."""

from __future__ import annotations

import pytest

from clamproxy.cache.store import Store
from clamproxy.notes import UNKEPT
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import PER_FILE
from clamproxy.releases.quiet import QuietHour
from tests.support.releases import Releases
from tests.unit.conftest import AGENT, OLD_AGENT, cdiff, put, until
from tests.unit.follower_bench import (
    HOUR,
    NEWER_AGENT,
    RELEASES,
    Bench,
    MakeBench,
    names,
)

# What is fetched


async def test_patches_and_their_signatures(bench: Bench) -> None:
    bench.release(4, base=1)
    await bench.look()
    assert all(bench.has(*names(range(2, 5), "cdiff", "cdiff.sign"), "daily-1.cvd.sign"))
    assert bench.origin.trace.split().count("W") == 0
    assert len(bench.origin.requests()) == 7


async def test_in_the_name_of_the_newest_supported_freshclam(bench: Bench) -> None:
    for agent in (NEWER_AGENT, OLD_AGENT, "curl/8.5.0"):
        bench.agents.see(agent)
    bench.release(3)
    await bench.look()
    assert {seen.headers["user-agent"] for seen in bench.origin.requests()} == {NEWER_AGENT}
    assert len(bench.origin.requests()) == 5


async def test_without_a_freshclam_nothing_is_asked(bench: Bench) -> None:
    bench.agents = Agents(None, UNKEPT, bench.clock.time)
    bench.follower = bench.make_follower()
    bench.release(3)
    await bench.look()
    assert bench.origin.requests() == []
    bench.agents.see(AGENT)
    await bench.look()
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))


async def test_nothing_new_costs_nothing(bench: Bench) -> None:
    bench.release(3)
    await bench.look()
    bench.origin.forget()
    await bench.live(6 * HOUR)
    assert bench.origin.requests() == []


async def test_dns_that_never_has_news_is_not_believed_for_ever(bench: Bench) -> None:
    bench.release(3)
    await bench.look()
    bench.release(4)
    bench.dns.versions["daily"] = 3
    await bench.live(23 * HOUR)
    assert bench.origin.requests() == []
    await bench.live(2 * HOUR)
    assert all(bench.has("daily-4.cdiff"))
    assert bench.asked("P") == 1


async def test_release_after_release(bench: Bench) -> None:
    for version in range(2, 8):
        bench.release(version)
        await bench.live(HOUR)
        assert all(bench.has(f"daily-{version}.cdiff", f"daily-{version}.cdiff.sign"))
        assert bench.asked(f"D{version}") == 1
    assert bench.asked("W") == 0


async def test_patches_for_clients_alone(bench: Bench, store: Store) -> None:
    """All clients have a CVD of their own: only patches were ever asked for."""
    main = Releases(database="main", first=60)
    put(store, cdiff(61, "main"), main.cdiff(61))
    bench.release(63, releases=main)
    await bench.look("main")
    assert store.has(cdiff(62, "main"))
    assert store.has(cdiff(63, "main"))
    assert store.has(ObjectId("main", 63, Kind.CDIFF_SIGN))
    assert bench.asked("W") == 0


async def test_a_database_of_which_nothing_is_here(bench: Bench) -> None:
    main = Releases(database="main", first=60)
    bench.release(63, releases=main)
    await bench.look("main")
    assert bench.origin.requests() == []


@pytest.mark.parametrize("lag", [1, 2, 3])
async def test_it_catches_up_as_far_as_patches_may_lead(make_bench: MakeBench, lag: int) -> None:
    bench = make_bench(delta={"max_patches": 3})
    bench.release(1 + lag)
    await bench.live(HOUR)
    assert all(bench.has(*names(range(2, 2 + lag), "cdiff")))
    assert bench.asked("W") == 0


async def test_beyond_that_it_fetches_a_new_base(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"max_patches": 3})
    bench.release(5)
    await bench.live(HOUR)
    assert bench.has("daily-5.cvd", "daily-5.cvd.sign") == [True, True]
    assert bench.asked("W") == 1


# A new base


async def test_trap_16_a_patch_that_is_late(bench: Bench) -> None:
    bench.release(3, base=2)
    bench.origin.remove("daily-3.cdiff")
    await bench.live(HOUR / 2)
    assert bench.has("daily-2.cdiff", "daily-3.cdiff") == [True, False]
    bench.origin.put("daily-3.cdiff", RELEASES.cdiff(3))
    await bench.live(HOUR)
    assert bench.has("daily-3.cdiff") == [True]
    assert bench.asked("W") == 0


async def test_a_patch_that_never_comes(bench: Bench) -> None:
    """After some hours at most, only the whole CVD leads on."""
    bench.release(2)
    bench.origin.remove("daily-2.cdiff")
    await bench.live(4 * HOUR)
    assert bench.has("daily-2.cvd") == [True]
    assert bench.asked("W") == 1


async def test_a_patch_that_is_gone_while_later_ones_are_there(bench: Bench) -> None:
    bench.release(4)
    bench.origin.remove("daily-2.cdiff")
    await bench.look()
    assert bench.has("daily-4.cvd") == [False]  # an edge of the CDN may just lag behind
    await bench.live(HOUR)
    assert bench.has("daily-4.cvd") == [True]
    assert bench.origin.trace.split().count("W") == 1


async def test_trap_15_an_empty_patch(bench: Bench) -> None:
    bench.origin.put("daily-2.cdiff", b"")
    bench.release(3)
    bench.origin.put("daily-2.cdiff", b"")
    await bench.live(HOUR)
    assert bench.has("daily-3.cvd", "daily-3.cdiff") == [True, True]
    assert bench.asked("W") == 1


async def test_trap_18_a_patch_that_does_not_fit(bench: Bench) -> None:
    bench.release(3)
    bench.origin.put("daily-2.cdiff", Releases(filler=500).cdiff(2))
    await bench.live(HOUR)
    assert bench.has("daily-3.cvd") == [True]
    assert bench.asked("W") == 1


async def test_trap_5_a_new_base_that_lags(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"max_patches": 2})
    bench.release(5, base=1)
    await bench.live(HOUR)
    assert bench.asked("P") <= PER_FILE
    assert bench.asked("W") == 0
    bench.release(5)
    await bench.live(2 * HOUR)
    assert bench.has("daily-5.cvd") == [True]


def pretend_quiet(monkeypatch: pytest.MonkeyPatch, *, on: bool) -> None:
    monkeypatch.setattr(QuietHour, "is_now", lambda self: on)


async def test_many_patches_wait_for_a_quiet_hour(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(delta={"renew_after": 3})
    pretend_quiet(monkeypatch, on=False)
    bench.release(5)
    await bench.live(2 * HOUR)
    assert all(bench.has(*names(range(2, 6), "cdiff")))
    assert bench.asked("W") == 0
    pretend_quiet(monkeypatch, on=True)
    await bench.live(HOUR)
    assert bench.has("daily-5.cvd", "daily-5.cvd.sign") == [True, True]
    assert bench.asked("W") == 1


async def test_few_patches_do_not(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(delta={"renew_after": 5})
    pretend_quiet(monkeypatch, on=True)
    bench.release(5)
    await bench.live(2 * HOUR)
    assert bench.asked("W") == bench.asked("P") == 0


async def test_once_a_day_there_is_a_quiet_hour(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"renew_after": 3})
    bench.release(5)
    await bench.live(25 * HOUR)
    assert bench.asked("W") == 1


async def test_patches_that_are_too_large(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"max_share": "1%"})
    bench.release(2)
    await bench.live(HOUR)
    assert bench.has("daily-2.cdiff", "daily-2.cvd") == [True, True]


async def test_switched_off_delta_serving_renews_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(delta={"enabled": False, "max_patches": 3, "max_share": "0%"})
    bench.release(6)
    await bench.live(3 * HOUR)
    assert bench.asked("W") == bench.asked("P") == 0
    assert bench.has("daily-6.cdiff") == [True]


async def test_all_means_whole_cvds_too(make_bench: MakeBench) -> None:
    bench = make_bench(serving={"prefetch": "all"})
    bench.release(2)
    await bench.live(HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-2.cdiff.sign", "daily-2.cvd", "daily-2.cvd.sign"))
    assert (bench.asked("P"), bench.asked("W")) == (1, 1)


# Without DNS


async def test_without_dns_the_header_tells(make_bench: MakeBench) -> None:
    bench = make_bench(versions={"dns": False})
    bench.release(1)
    await bench.live(HOUR, 60)
    assert 1 <= bench.asked("P") <= PER_FILE
    bench.release(3)
    await bench.live(HOUR, 60)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))
    assert bench.asked("P") <= PER_FILE
    assert bench.asked("W") == 0


async def test_dns_that_falls_silent(bench: Bench) -> None:
    bench.release(2)
    await bench.look()
    bench.dns.is_silent = True
    bench.release(3)
    await bench.live(HOUR)
    assert bench.has("daily-3.cdiff") == [True]


# CLDs


async def test_clds_are_built_ahead_where_clients_ask_for_them(bench: Bench) -> None:
    bench.release(3)
    await bench.look()
    assert bench.has("daily-3.cld") == [False]
    bench.builder.note_demand("daily")
    await bench.look()
    await until(lambda: bench.store.has(ObjectId("daily", 3, Kind.CLD)))
