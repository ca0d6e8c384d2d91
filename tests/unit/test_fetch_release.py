"""One release fetched for a person who waits: ``clamproxy mirror``."""

from __future__ import annotations

import asyncio

import pytest

from clamproxy.messages import Requester
from clamproxy.notes import UNKEPT
from clamproxy.objects import ObjectId
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import PER_FILE
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.transfer import TransferError
from clamproxy.origin.transfers import ORIGIN_TROUBLE
from clamproxy.origin.upstream import OriginError
from tests.support import faults
from tests.unit.conftest import AGENT, cdiff
from tests.unit.follower_bench import LIMIT, Bench, MakeBench, names


async def fetch(bench: Bench) -> None:
    async with asyncio.timeout(LIMIT):
        await bench.follower.fetch_release("daily")


def patches_asked(bench: Bench) -> list[str]:
    return sorted(name for name in bench.origin.trace.split() if name.startswith("D"))


async def test_a_cached_cvd_and_its_last_two_patches(make_bench: MakeBench) -> None:
    bench = make_bench(base=5)
    bench.release(5)
    await fetch(bench)
    assert patches_asked(bench) == ["D4", "D5"]
    assert all(bench.has(*names((4, 5), "cdiff", "cdiff.sign"), "daily-5.cvd.sign"))
    assert bench.asked("P") == bench.asked("W") == 0
    bench.origin.forget()
    await fetch(bench)
    assert bench.origin.requests() == []


async def test_nothing_cached(make_bench: MakeBench) -> None:
    bench = make_bench(base=None)
    bench.release(5)
    await fetch(bench)
    assert patches_asked(bench) == ["D4", "D5"]
    assert all(bench.has("daily-5.cvd", "daily-5.cvd.sign", *names((4, 5), "cdiff", "cdiff.sign")))
    assert bench.asked("W") == 1


async def test_the_first_version_of_all(make_bench: MakeBench) -> None:
    bench = make_bench(base=None)
    bench.release(1)
    await fetch(bench)
    assert bench.has("daily-1.cvd", "daily-1.cvd.sign") == [True, True]
    assert "D0" not in bench.origin.trace


async def test_after_several_releases_all_patches_since(bench: Bench) -> None:
    bench.release(6)
    await fetch(bench)
    assert patches_asked(bench) == ["D2", "D3", "D4", "D5", "D6"]
    assert all(bench.has("daily-6.cvd", *names(range(2, 7), "cdiff", "cdiff.sign")))


@pytest.mark.parametrize("kept", [0, 1, 3])
async def test_never_more_than_are_kept(make_bench: MakeBench, kept: int) -> None:
    bench = make_bench(cache={"keep_cdiffs": kept})
    bench.release(6)
    await fetch(bench)
    assert patches_asked(bench) == [f"D{version}" for version in range(7 - kept, 7)]
    assert bench.has("daily-6.cvd") == [True]


async def test_a_patch_that_is_missing_is_no_trouble(bench: Bench) -> None:
    bench.release(3)
    bench.origin.remove("daily-2.cdiff")
    await fetch(bench)
    assert bench.has("daily-3.cvd", "daily-3.cdiff", "daily-3.cdiff.sign") == [True] * 3


@pytest.mark.parametrize("path", ["D3", "W", "/daily-3.cdiff.sign", "/daily-3.cvd.sign"])
async def test_trouble_is_told(bench: Bench, path: str) -> None:
    bench.release(3)
    bench.origin.rule(path, faults.status(429))
    with pytest.raises(ORIGIN_TROUBLE) as caught:
        await fetch(bench)
    assert isinstance(caught.value, TransferError | OriginError)
    assert caught.value.failure is FailureKind.RATE_LIMITED


# Signatures


async def test_no_budget_holds_back_a_signature(make_bench: MakeBench) -> None:
    bench = make_bench(base=3)
    bench.release(3)
    signatures = [ObjectId.parse(name) for name in (*names((2, 3), "cdiff.sign"), "daily-3.cvd.sign")]
    for signature in signatures:
        for _ in range(PER_FILE):
            bench.budget.note(signature.upstream_path)
    await fetch(bench)
    assert all(bench.store.has(signature) for signature in signatures)


async def test_a_signature_that_the_origin_has_not_is_no_trouble(make_bench: MakeBench) -> None:
    bench = make_bench(base=3)
    bench.release(3)
    bench.origin.remove("daily-3.cdiff.sign")
    bench.origin.remove("daily-3.cvd.sign")
    for _ in range(2):
        await fetch(bench)
    assert bench.has("daily-2.cdiff.sign", "daily-3.cdiff.sign") == [True, False]


# What is advertised


async def test_dns_tells_without_a_look_at_the_header(make_bench: MakeBench) -> None:
    bench = make_bench(base=3)
    bench.release(3)
    await fetch(bench)
    assert bench.asked("P") == 0


@pytest.mark.parametrize("knew", [False, True])
async def test_while_dns_is_silent_the_header_tells(bench: Bench, knew: bool) -> None:
    if knew:
        bench.release(2)
        await bench.versions.get("daily")
        bench.clock.now += 2 * bench.settings.versions.refresh
    bench.dns.is_silent = True
    bench.release(3)
    await fetch(bench)
    assert bench.asked("P") >= 1
    assert all(bench.has("daily-3.cvd", *names((2, 3), "cdiff", "cdiff.sign")))


async def test_without_dns_the_header_tells(make_bench: MakeBench) -> None:
    bench = make_bench(versions={"dns": False})
    bench.release(3)
    await fetch(bench)
    assert all(bench.has("daily-3.cvd", "daily-3.cdiff"))
    assert bench.dns.queries == []


async def test_a_silent_dns_and_an_origin_that_is_gone(bench: Bench) -> None:
    bench.dns.is_silent = True
    bench.release(3)
    bench.origin.refuse()
    with pytest.raises(OriginError):
        await fetch(bench)


# In whose name


async def test_without_a_freshclam_it_says_so(bench: Bench) -> None:
    bench.agents = Agents(None, UNKEPT, bench.clock.time)
    bench.follower = bench.make_follower()
    bench.release(3)
    with pytest.raises(OriginError, match="user_agent"):
        await fetch(bench)
    assert bench.origin.requests() == []


async def test_one_that_is_refused_is_told_why(bench: Bench) -> None:
    """There is nobody else in whose name to ask: the cool-down is what the person hears of."""
    bench.cooldowns.failed(FailureKind.FORBIDDEN, "/main.cvd", Requester(AGENT).version, "blocked")
    bench.release(3)
    with pytest.raises(ORIGIN_TROUBLE, match="blocked"):
        await fetch(bench)
    assert bench.origin.requests() == []
    assert not bench.store.has(cdiff(3))
