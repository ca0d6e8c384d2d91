"""The follower asks no more than it may, and leaves alone what is refused."""

from __future__ import annotations

import pytest

from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.budget import PER_FILE, WINDOW
from tests.support import faults
from tests.support.faults import Fault
from tests.unit.conftest import AGENT, put, until
from tests.unit.follower_bench import (
    HOUR,
    LIMIT,
    NEWER_AGENT,
    REFRESH,
    RELEASES,
    Bench,
    MakeBench,
)


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
    bench: Bench, fault: Fault, pause: float
) -> None:
    bench.release(3, base=1)
    bench.origin.rule("*", fault)
    start = bench.clock.now
    while bench.clock.now < start + WINDOW:
        await bench.look()
        bench.clock.now += pause
    asked = [seen.path for seen in bench.origin.requests()]
    assert {path: asked.count(path) for path in asked if asked.count(path) > PER_FILE} == {}
    assert asked.count("/daily-2.cdiff") >= 2, "it is tried again"


async def test_nor_is_the_cvd(make_bench: MakeBench) -> None:
    """A renewal takes two requests for one file: its header and the whole of it."""
    bench = make_bench(serving={"prefetch": "all"})
    bench.release(3)
    bench.origin.rule("W", faults.status(503))
    await bench.live(WINDOW, 60)
    assert bench.asked("P") + bench.asked("W") <= PER_FILE
    assert bench.asked("W") >= 1


async def test_a_refused_file_is_left_alone(bench: Bench) -> None:
    bench.release(3)
    bench.origin.rule("D2", faults.status(429, retry_after=str(3 * HOUR)))
    await bench.live(2 * HOUR)
    assert bench.asked("D2") == 1
    bench.origin.heal()
    await bench.live(2 * HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))


async def test_trap_20_a_refused_client_version_is_replaced(bench: Bench) -> None:
    """The newest one may be one that the CDN doesn't know."""
    put(bench.store, ObjectId("daily", 1, Kind.CVD_SIGN), RELEASES.cvd_sign(1))
    bench.agents.see(NEWER_AGENT)
    bench.release(2)
    bench.origin.rule("*", faults.status(403))
    await bench.live(HOUR)
    agents = [seen.headers["user-agent"] for seen in bench.origin.requests("D2")]
    assert agents[0] == NEWER_AGENT
    assert AGENT in agents


async def test_an_origin_that_is_gone(bench: Bench) -> None:
    bench.release(3)
    bench.origin.refuse()
    await bench.live(HOUR)
    bench.origin.accept()
    await bench.live(2 * HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff"))


@pytest.mark.parametrize("broken", ["/daily-1.cvd.sign", "/daily-2.cdiff.sign"])
async def test_a_refused_signature_concerns_no_other_file(bench: Bench, broken: str) -> None:
    bench.release(3, base=1)
    bench.builder.note_demand("daily")
    bench.origin.rule(broken, faults.status(429, retry_after="7200"))
    await bench.live(HOUR)
    assert all(bench.has("daily-2.cdiff", "daily-3.cdiff", "daily-3.cdiff.sign"))
    await until(lambda: bench.store.has(ObjectId("daily", 3, Kind.CLD)), LIMIT)
    assert bench.asked(broken) == 1


async def test_a_signature_that_comes_late_and_one_that_never_comes(bench: Bench) -> None:
    bench.release(4, base=1)
    bench.origin.remove("daily-2.cdiff.sign")
    bench.origin.remove("daily-4.cdiff.sign")
    await bench.live(2 * HOUR)
    assert bench.asked("/daily-2.cdiff.sign") == 1
    assert bench.asked("/daily-4.cdiff.sign") > 1
    bench.origin.put("daily-4.cdiff.sign", RELEASES.cdiff_sign(4))
    await bench.live(2 * HOUR)
    assert bench.has("daily-4.cdiff.sign") == [True]
