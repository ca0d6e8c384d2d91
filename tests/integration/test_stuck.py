"""Patches of which the origin sends again and again what can't be published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.messages import Result
from clamproxy.notes import Notes
from clamproxy.releases.stuck import (
    ENOUGH_FAILURES,
    LEAST_TIME,
    LONGEST_MEMORY,
    StuckPatches,
    stuck_patches,
)
from clamproxy.statistics import snapshot
from clamproxy.web.health import find_problems
from tests.harness.follower import HOUR, FollowerHarness, MakeHarness
from tests.harness.service import RELEASES, ServiceHarness, open_harness, since
from tests.support import faults
from tests.support.clock import Clock
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, cdiff, hold, put

DAMAGED = RELEASES.cdiff(2)[:-3] + b"xyz"


@pytest.fixture
def follower(make_harness: MakeHarness) -> FollowerHarness:
    return make_harness()


class Books:
    """Stuck patches, with what they note."""

    def __init__(self, store: Store) -> None:
        self.clock, self.store = Clock(), store
        self.stuck = self.make()

    def make(self) -> StuckPatches:
        return StuckPatches(self.store, Notes(self.store, None, "stuck"), self.clock)

    @property
    def notes(self) -> dict[str, Any]:
        return self.store.notes("stuck/")

    def fail(self, times: int = ENOUGH_FAILURES, within: float = LEAST_TIME) -> None:
        for _ in range(times):
            self.stuck.note(cdiff(2))
            self.clock.now += within / times


@pytest.fixture
def books(store: Store) -> Books:
    return Books(store)


class TestStuckPatches:
    @pytest.mark.parametrize(
        ("failures", "seconds", "expected"),
        [
            (0, 0, False),
            (1, HOUR, False),
            (ENOUGH_FAILURES - 1, HOUR, False),
            (ENOUGH_FAILURES, LEAST_TIME - 1, False),
            (ENOUGH_FAILURES, LEAST_TIME, True),
            (100, 1, False),
        ],
    )
    def test_often_and_for_a_while(self, books: Books, failures: int, seconds: float, expected: bool) -> None:
        books.fail(failures, seconds)
        assert books.stuck.is_stuck(cdiff(2)) is expected
        assert not books.stuck.is_stuck(cdiff(3))
        assert bool(stuck_patches(books.store, books.clock.now)) is expected

    def test_survive_a_restart(self, books: Books) -> None:
        books.fail()
        assert books.make().is_stuck(cdiff(2))

    @pytest.mark.parametrize(
        "note", [None, 5, {}, {"failures": 9, "since": "x", "last": 1}, {"failures": "9"}]
    )
    def test_a_note_that_makes_no_sense(self, books: Books, note: object) -> None:
        books.store.set_note("stuck/daily-2.cdiff", note)
        assert stuck_patches(books.store, books.clock.now) == {}
        assert not books.make().is_stuck(cdiff(2))
        assert books.notes == {}

    def test_a_note_of_no_object(self, books: Books) -> None:
        books.fail()
        books.store.set_note("stuck/no object", books.notes["daily-2.cdiff"])
        assert books.make().is_stuck(cdiff(2))
        assert set(books.notes) == {"daily-2.cdiff"}

    def test_a_patch_that_has_come_is_not_stuck(self, books: Books) -> None:
        books.fail()
        put(books.store, cdiff(2), RELEASES.cdiff(2))
        assert not books.stuck.is_stuck(cdiff(2))
        assert stuck_patches(books.store, books.clock.now) == {}

    def test_are_forgotten(self, books: Books) -> None:
        books.fail()
        books.clock.now += LONGEST_MEMORY + 1
        assert stuck_patches(books.store, books.clock.now) == {}
        books.stuck.note(cdiff(3))
        assert "daily-2.cdiff" not in books.notes
        assert not books.stuck.is_stuck(cdiff(2))

    def test_are_told_of(self, books: Books, caplog: pytest.LogCaptureFixture) -> None:
        books.fail()
        for _ in range(3):
            assert books.stuck.is_stuck(cdiff(2))
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"daily-2.cdiff has failed verification {ENOUGH_FAILURES} times: ")
        figures = stuck_patches(books.store, books.clock.now)["daily-2.cdiff"]
        assert figures.failures == ENOUGH_FAILURES
        (warning,) = find_problems(books.store, offline=False, now=books.clock.now).warnings
        assert "daily-2.cdiff failed verification 4 times" in warning


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    """CVD 2 is cached, cdiff 2 is damaged at the origin."""
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.begin(2)
        harness.origin.put("daily-2.cdiff", DAMAGED)
        yield harness


async def fail(harness: ServiceHarness, times: int = ENOUGH_FAILURES - 1) -> None:
    """Once less than is enough."""
    for _ in range(times):
        assert (await harness.ask("/daily-2.cdiff"))[0].status == 503
        harness.clock.ahead += HOUR
        await harness.settle()


class TestMachinesThatAreOneBehind:
    async def test_are_told_to_take_the_whole(self, harness: ServiceHarness) -> None:
        await fail(harness)
        response, content = await harness.ask("/daily-2.cdiff")
        assert (response.status, response.result, content) == (200, Result.STALE, b"")
        assert response.headers["Content-Length"] == "0"
        assert response.headers["Cache-Control"] == "no-store"
        response, content = await harness.ask(If_Modified_Since=since(1))
        assert (response.status, content) == (200, RELEASES.cvd(2))
        assert harness.origin.count("W") == 1
        await harness.settle()
        stuck = stuck_patches(harness.service.store, harness.clock.time())
        assert stuck["daily-2.cdiff"].failures == ENOUGH_FAILURES

    async def test_the_empty_patch_is_no_object(self, harness: ServiceHarness) -> None:
        await fail(harness)
        await harness.ask("/daily-2.cdiff")
        assert not harness.service.store.has(cdiff(2))

    async def test_get_the_patch_as_soon_as_it_is_good(self, harness: ServiceHarness) -> None:
        await fail(harness)
        harness.origin.put("daily-2.cdiff", RELEASES.cdiff(2))
        for result in (Result.MISS, Result.HIT):
            response, content = await harness.ask("/daily-2.cdiff")
            assert (response.result, content) == (result, RELEASES.cdiff(2))
        assert snapshot(harness.service.store)["stuck_patches"] == {}

    async def test_are_told_during_the_cool_down(self, harness: ServiceHarness) -> None:
        await fail(harness)
        for _ in range(3):
            assert (await harness.ask("/daily-2.cdiff"))[0].status == 200
        assert harness.origin.count("D2") == ENOUGH_FAILURES

    @pytest.mark.parametrize(
        "fields",
        [{"agent": "CVDUPDATE/1.2.0 (x)"}, {"agent": "curl/8"}, {"Via": "1.1 clamproxy-0a0a0a0a"}],
        ids=["cvdupdate", "another program", "a gateway"],
    )
    async def test_the_empty_patch_is_for_nobody_who_would_keep_it(
        self, harness: ServiceHarness, fields: dict[str, str]
    ) -> None:
        await fail(harness)
        assert (await harness.ask("/daily-2.cdiff", **fields))[0].status == 503

    async def test_no_empty_patch_for_a_version_that_is_not_here_whole(self, harness: ServiceHarness) -> None:
        harness.origin.put("daily-3.cdiff", DAMAGED)
        harness.advertise(3)
        for _ in range(ENOUGH_FAILURES + 2):
            assert (await harness.ask("/daily-3.cdiff"))[0].status == 503
            harness.clock.ahead += HOUR
            await harness.settle()

    @pytest.mark.parametrize("fault", [faults.status(503), faults.status(403), faults.reset()])
    async def test_no_empty_patch_for_other_trouble(
        self, harness: ServiceHarness, fault: faults.Fault
    ) -> None:
        harness.origin.rule("D2", fault)
        await fail(harness, ENOUGH_FAILURES + 2)

    async def test_no_empty_patch_for_a_missing_one(self, harness: ServiceHarness) -> None:
        await fail(harness)
        harness.origin.remove("daily-2.cdiff")
        assert (await harness.ask("/daily-2.cdiff"))[0].status == 404


async def test_the_base_is_renewed_past_a_stuck_patch(follower: FollowerHarness) -> None:
    follower.release(3)
    follower.origin.put("daily-2.cdiff", DAMAGED)
    await follower.live(6 * HOUR)
    assert follower.has("daily-2.cdiff", "daily-3.cvd") == [False, True]
    assert follower.asked("W") == 1
    assert AGENT in {seen.headers["user-agent"] for seen in follower.origin.requests("W")}


async def test_the_base_is_not_renewed_for_one_failure(follower: FollowerHarness) -> None:
    hold(follower.store, None)
    follower.release(3)
    follower.origin.rule("D2", faults.replaced(DAMAGED), times=1)
    await follower.live(6 * HOUR)
    assert follower.has("daily-2.cdiff", "daily-3.cdiff", "daily-3.cvd") == [True, True, False]
