"""The follower asks no more than it may, and leaves alone what is refused."""

from __future__ import annotations

import pytest

from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.budget import PER_FILE, WINDOW
from tests.harness.follower import HOUR, LIMIT, NEWER_AGENT, REFRESH, RELEASES, FollowerHarness, MakeHarness
from tests.support import faults
from tests.support.faults import Fault
from tests.support.stored import AGENT, put, until


@pytest.fixture
def harness(make_harness: MakeHarness) -> FollowerHarness:
    return make_harness()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.status(404), id="404"),
        pytest.param(faults.status(503), id="503"),
        pytest.param(faults.html(), id="trap 19"),
        pytest.param(faults.short(10), id="cut"),
        pytest.param(faults.reset(), id="reset"),
    ],
)
@pytest.mark.parametrize("pause", [60.0, REFRESH])
async def test_no_file_is_asked_for_more_than_five_times_an_hour(
    harness: FollowerHarness, fault: Fault, pause: float
) -> None:
    harness.release(3, base=1)
    harness.origin.rule("*", fault)
    start = harness.clock.now
    while harness.clock.now < start + WINDOW:
        await harness.look()
        harness.clock.now += pause
    asked = [seen.path for seen in harness.origin.requests()]
    assert {path: asked.count(path) for path in asked if asked.count(path) > PER_FILE} == {}
    assert asked.count("/daily-2.cdiff") >= 2, "it is tried again"


async def test_the_cvd_is_asked_for_no_more_than_five_times_an_hour(make_harness: MakeHarness) -> None:
    """A renewal takes two requests for one file: its header and the whole of it."""
    harness = make_harness(serving={"prefetch": "all"})
    harness.release(3)
    harness.origin.rule("W", faults.status(503))
    await harness.live(WINDOW, 60)
    assert harness.asked("P") + harness.asked("W") <= PER_FILE
    assert harness.asked("W") >= 1


async def test_a_refused_file_is_left_alone(harness: FollowerHarness) -> None:
    harness.release(3)
    harness.origin.rule("D2", faults.status(429, retry_after=str(3 * HOUR)))
    await harness.live(2 * HOUR)
    assert harness.asked("D2") == 1
    harness.origin.heal()
    await harness.live(2 * HOUR)
    assert all(harness.has("daily-2.cdiff", "daily-3.cdiff"))


async def test_trap_20_a_refused_client_version_is_replaced(harness: FollowerHarness) -> None:
    """The newest one may be one that the CDN doesn't know."""
    put(harness.store, ObjectId("daily", 1, Kind.CVD_SIGN), RELEASES.cvd_sign(1))
    harness.agents.see(NEWER_AGENT)
    harness.release(2)
    harness.origin.rule("*", faults.status(403))
    await harness.live(HOUR)
    agents = [seen.headers["user-agent"] for seen in harness.origin.requests("D2")]
    assert agents[0] == NEWER_AGENT
    assert AGENT in agents


async def test_an_origin_that_is_gone(harness: FollowerHarness) -> None:
    harness.release(3)
    harness.origin.refuse()
    await harness.live(HOUR)
    harness.origin.accept()
    await harness.live(2 * HOUR)
    assert all(harness.has("daily-2.cdiff", "daily-3.cdiff"))


@pytest.mark.parametrize("broken", ["/daily-1.cvd.sign", "/daily-2.cdiff.sign"])
async def test_a_refused_signature_concerns_no_other_file(harness: FollowerHarness, broken: str) -> None:
    harness.release(3, base=1)
    harness.builder.note_demand("daily")
    harness.origin.rule(broken, faults.status(429, retry_after="7200"))
    await harness.live(HOUR)
    assert all(harness.has("daily-2.cdiff", "daily-3.cdiff", "daily-3.cdiff.sign"))
    await until(lambda: harness.store.has(ObjectId("daily", 3, Kind.CLD)), LIMIT)
    assert harness.asked(broken) == 1


async def test_a_signature_that_comes_late_and_one_that_never_comes(harness: FollowerHarness) -> None:
    harness.release(4, base=1)
    harness.origin.remove("daily-2.cdiff.sign")
    harness.origin.remove("daily-4.cdiff.sign")
    await harness.live(2 * HOUR)
    assert harness.asked("/daily-2.cdiff.sign") == 1
    assert harness.asked("/daily-4.cdiff.sign") > 1
    harness.origin.put("daily-4.cdiff.sign", RELEASES.cdiff_sign(4))
    await harness.live(2 * HOUR)
    assert harness.has("daily-4.cdiff.sign") == [True]
