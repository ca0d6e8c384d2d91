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
from clamproxy.origin.errors import OriginError, TransferError
from clamproxy.origin.transfers import ORIGIN_TROUBLE
from tests.harness.follower import LIMIT, FollowerHarness, MakeHarness, names
from tests.support import faults
from tests.support.stored import AGENT, cdiff


@pytest.fixture
def harness(make_harness: MakeHarness) -> FollowerHarness:
    return make_harness()


async def fetch(harness: FollowerHarness) -> None:
    async with asyncio.timeout(LIMIT):
        await harness.follower.fetch_release("daily")


def patches_asked(harness: FollowerHarness) -> list[str]:
    return sorted(name for name in harness.origin.trace.split() if name.startswith("D"))


async def test_a_cached_cvd_and_its_last_two_patches(make_harness: MakeHarness) -> None:
    harness = make_harness(base=5)
    harness.release(5)
    await fetch(harness)
    assert patches_asked(harness) == ["D4", "D5"]
    assert all(harness.has(*names((4, 5), "cdiff", "cdiff.sign"), "daily-5.cvd.sign"))
    assert harness.asked("P") == harness.asked("W") == 0
    harness.origin.forget()
    await fetch(harness)
    assert harness.origin.requests() == []


async def test_nothing_cached(make_harness: MakeHarness) -> None:
    harness = make_harness(base=None)
    harness.release(5)
    await fetch(harness)
    assert patches_asked(harness) == ["D4", "D5"]
    assert all(harness.has("daily-5.cvd", "daily-5.cvd.sign", *names((4, 5), "cdiff", "cdiff.sign")))
    assert harness.asked("W") == 1


async def test_the_first_version_of_all(make_harness: MakeHarness) -> None:
    harness = make_harness(base=None)
    harness.release(1)
    await fetch(harness)
    assert harness.has("daily-1.cvd", "daily-1.cvd.sign") == [True, True]
    assert "D0" not in harness.origin.trace


async def test_after_several_releases_all_patches_since(harness: FollowerHarness) -> None:
    harness.release(6)
    await fetch(harness)
    assert patches_asked(harness) == ["D2", "D3", "D4", "D5", "D6"]
    assert all(harness.has("daily-6.cvd", *names(range(2, 7), "cdiff", "cdiff.sign")))


@pytest.mark.parametrize("kept", [0, 1, 3])
async def test_never_more_than_are_kept(make_harness: MakeHarness, kept: int) -> None:
    harness = make_harness(cache={"keep_cdiffs": kept})
    harness.release(6)
    await fetch(harness)
    assert patches_asked(harness) == [f"D{version}" for version in range(7 - kept, 7)]
    assert harness.has("daily-6.cvd") == [True]


async def test_a_patch_that_is_missing_is_no_trouble(harness: FollowerHarness) -> None:
    harness.release(3)
    harness.origin.remove("daily-2.cdiff")
    await fetch(harness)
    assert harness.has("daily-3.cvd", "daily-3.cdiff", "daily-3.cdiff.sign") == [True] * 3


@pytest.mark.parametrize("path", ["D3", "W", "/daily-3.cdiff.sign", "/daily-3.cvd.sign"])
async def test_trouble_is_told(harness: FollowerHarness, path: str) -> None:
    harness.release(3)
    harness.origin.rule(path, faults.status(429))
    with pytest.raises(ORIGIN_TROUBLE) as caught:
        await fetch(harness)
    assert isinstance(caught.value, TransferError | OriginError)
    assert caught.value.failure is FailureKind.RATE_LIMITED


# Signatures


async def test_no_budget_holds_back_a_signature(make_harness: MakeHarness) -> None:
    harness = make_harness(base=3)
    harness.release(3)
    signatures = [ObjectId.parse(name) for name in (*names((2, 3), "cdiff.sign"), "daily-3.cvd.sign")]
    for signature in signatures:
        for _ in range(PER_FILE):
            harness.budget.note(signature.upstream_path)
    await fetch(harness)
    assert all(harness.store.has(signature) for signature in signatures)


async def test_a_signature_that_the_origin_has_not_is_no_trouble(make_harness: MakeHarness) -> None:
    harness = make_harness(base=3)
    harness.release(3)
    harness.origin.remove("daily-3.cdiff.sign")
    harness.origin.remove("daily-3.cvd.sign")
    for _ in range(2):
        await fetch(harness)
    assert harness.has("daily-2.cdiff.sign", "daily-3.cdiff.sign") == [True, False]


# What is advertised


async def test_dns_tells_without_a_look_at_the_header(make_harness: MakeHarness) -> None:
    harness = make_harness(base=3)
    harness.release(3)
    await fetch(harness)
    assert harness.asked("P") == 0


@pytest.mark.parametrize("knew", [False, True])
async def test_while_dns_is_silent_the_header_tells(harness: FollowerHarness, knew: bool) -> None:
    if knew:
        harness.release(2)
        await harness.versions.get("daily")
        harness.clock.now += 2 * harness.settings.versions.refresh
    harness.dns.is_silent = True
    harness.release(3)
    await fetch(harness)
    assert harness.asked("P") >= 1
    assert all(harness.has("daily-3.cvd", *names((2, 3), "cdiff", "cdiff.sign")))


async def test_without_dns_the_header_tells(make_harness: MakeHarness) -> None:
    harness = make_harness(versions={"dns": False})
    harness.release(3)
    await fetch(harness)
    assert all(harness.has("daily-3.cvd", "daily-3.cdiff"))
    assert harness.dns.queries == []


async def test_a_silent_dns_and_an_origin_that_is_gone(harness: FollowerHarness) -> None:
    harness.dns.is_silent = True
    harness.release(3)
    harness.origin.refuse()
    with pytest.raises(OriginError):
        await fetch(harness)


# In whose name


async def test_without_a_freshclam_the_error_says_so(harness: FollowerHarness) -> None:
    harness.agents = Agents(None, UNKEPT, harness.clock.time)
    harness.follower = harness.make_follower()
    harness.release(3)
    with pytest.raises(OriginError, match="user_agent"):
        await fetch(harness)
    assert harness.origin.requests() == []


async def test_who_asks_in_a_refused_name_is_told_why(harness: FollowerHarness) -> None:
    """There is nobody else in whose name to ask: the cool-down is what the person hears of."""
    harness.cooldowns.failed(FailureKind.FORBIDDEN, "/main.cvd", Requester(AGENT).version, "blocked")
    harness.release(3)
    with pytest.raises(ORIGIN_TROUBLE, match="blocked"):
        await fetch(harness)
    assert harness.origin.requests() == []
    assert not harness.store.has(cdiff(3))
