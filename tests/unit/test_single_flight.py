"""Work that several callers want at the same time: who shares it, who ends it, who hears of its failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from clamproxy.single_flight import SingleFlight
from clamproxy.threads import in_thread

LIMIT = 30
"""Seconds; only a guard."""


class Work:
    """Counts its runs by key; each waits to be let go, and then returns its number or raises."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None

    def __call__(self, key: str) -> Callable[[], Any]:
        async def work() -> int:
            self.begun.append(key)
            number = len(self.begun)
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.append(key)
                raise
            self.ended.append(key)
            if self.error is not None:
                raise self.error
            return number

        return work


class Flights:
    """The thing itself, its work, and what it says of failures."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, BaseException]] = []
        self.flight = SingleFlight[str, int]("work", lambda key, error: self.failures.append((key, error)))
        self.work = Work()

    def call(self, key: str = "a") -> asyncio.Task[int]:
        return asyncio.create_task(self.flight.run(key, self.work(key)))

    async def called(self, count: int, key: str = "a") -> list[asyncio.Task[int]]:
        """So many callers, who all wait."""
        callers = [self.call(key) for _ in range(count)]
        await turns()
        return callers


async def turns(count: int = 10) -> None:
    """Let the loop do all that it could do at once."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def flights() -> AsyncIterator[Flights]:
    """Nothing that asyncio would log is left behind."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    flights = Flights()
    async with asyncio.timeout(LIMIT):
        yield flights
        flights.flight.stop()
        await turns()
    assert complaints == []
    assert len(flights.flight) == 0


@pytest.fixture(params=[False, True], ids=["tasks", "eager tasks"])
async def any_tasks(request: pytest.FixtureRequest) -> None:
    if request.param:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)


@pytest.mark.usefixtures("any_tasks")
async def test_callers_of_one_key_share_a_run(flights: Flights) -> None:
    callers = await flights.called(50)
    assert "a" in flights.flight
    flights.work.go.set()
    assert await asyncio.gather(*callers) == [1] * 50
    assert flights.work.begun == ["a"]
    assert "a" not in flights.flight


@pytest.mark.usefixtures("any_tasks")
async def test_keys_run_side_by_side(flights: Flights) -> None:
    callers = [*await flights.called(2, "a"), *await flights.called(2, "b")]
    assert len(flights.flight) == 2
    flights.work.go.set()
    assert await asyncio.gather(*callers) == [1, 1, 2, 2]


@pytest.mark.usefixtures("any_tasks")
@pytest.mark.parametrize("error", [None, OSError("no")], ids=["a result", "a failure"])
async def test_nothing_is_remembered(flights: Flights, error: Exception | None) -> None:
    flights.work.error = error
    flights.work.go.set()
    for number in (1, 2, 3):
        (outcome,) = await asyncio.gather(flights.call(), return_exceptions=True)
        assert outcome == (error or number)
    assert flights.work.begun == ["a"] * 3


async def test_a_caller_that_wakes_first_can_begin_the_next_run(flights: Flights) -> None:
    """Whoever was told of the end doesn't get the same end again."""

    async def twice() -> list[int]:
        return [await flights.flight.run("a", flights.work("a")) for _ in range(2)]

    callers = [asyncio.create_task(twice()) for _ in range(3)]
    await turns()
    flights.work.go.set()
    assert await asyncio.gather(*callers) == [[1, 2]] * 3


async def test_results_may_be_none() -> None:
    runs = list[int]()
    flight = SingleFlight[str, None]("note")

    async def work() -> None:
        runs.append(1)

    await asyncio.gather(*(flight.run("a", work) for _ in range(3)))
    assert runs == [1]


# Cancellation


@pytest.mark.parametrize("leaving", [0, 1, 2], ids=["the first", "one in the middle", "the last"])
async def test_a_caller_that_is_cancelled_leaves_alone(flights: Flights, leaving: int) -> None:
    callers = await flights.called(3)
    left = callers.pop(leaving)
    left.cancel()
    await asyncio.wait({left})
    assert left.cancelled()
    flights.work.go.set()
    assert await asyncio.gather(*callers) == [1, 1]
    assert flights.work.begun == flights.work.ended == ["a"]


async def test_so_does_a_caller_whose_time_is_over(flights: Flights) -> None:
    (patient,) = await flights.called(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await flights.flight.run("a", flights.work("a"))
    flights.work.go.set()
    assert await patient == 1
    assert flights.work.begun == ["a"]


async def test_a_run_goes_on_when_all_callers_are_cancelled(flights: Flights) -> None:
    for caller in await flights.called(3):
        caller.cancel()
    await turns()
    assert "a" in flights.flight
    (late,) = await flights.called(1)
    flights.work.go.set()
    assert await late == 1
    assert flights.work.begun == flights.work.ended == ["a"]


async def test_a_run_ends_well_without_anybody(flights: Flights) -> None:
    (caller,) = await flights.called(1)
    caller.cancel()
    await turns()
    flights.work.go.set()
    await turns()
    assert flights.work.ended == ["a"]
    assert "a" not in flights.flight


@pytest.mark.usefixtures("any_tasks")
async def test_stop_cancels_the_runs_and_their_callers(flights: Flights) -> None:
    callers = [*await flights.called(2, "a"), *await flights.called(1, "b")]
    flights.flight.stop()
    await asyncio.wait(callers)
    assert all(caller.cancelled() for caller in callers)
    assert flights.work.cancelled == ["a", "b"]
    assert flights.failures == []
    assert len(flights.flight) == 0


async def test_after_a_stop_another_run_can_begin(flights: Flights) -> None:
    (before,) = await flights.called(1)
    flights.flight.stop()
    await asyncio.wait({before})
    flights.work.go.set()
    assert await flights.call() == 2


async def test_stop_waits_for_no_thread() -> None:
    flight, go, has_ended = SingleFlight[str, None]("work"), threading.Event(), threading.Event()

    def work() -> None:
        go.wait(LIMIT)
        has_ended.set()

    async def begin() -> None:
        await in_thread("test", work)

    caller = asyncio.create_task(flight.run("a", begin))
    await turns()
    flight.stop()
    async with asyncio.timeout(LIMIT):
        await asyncio.wait({caller})
    assert not has_ended.is_set()
    go.set()
    assert await asyncio.to_thread(has_ended.wait, LIMIT)


# Failures


@pytest.mark.usefixtures("any_tasks")
async def test_an_exception_goes_to_all_callers_and_is_told_once(flights: Flights) -> None:
    flights.work.error = OSError("no")
    callers = await flights.called(3)
    flights.work.go.set()
    assert await asyncio.gather(*callers, return_exceptions=True) == [flights.work.error] * 3
    assert flights.failures == [("a", flights.work.error)]


async def test_whoever_gets_the_exception_finds_it_told(flights: Flights) -> None:
    flights.work.error = OSError("no")
    flights.work.go.set()
    with pytest.raises(OSError, match="no"):
        await flights.flight.run("a", flights.work("a"))
    assert flights.failures == [("a", flights.work.error)]


async def test_an_exception_that_nobody_waits_for_is_told(flights: Flights) -> None:
    """The fixture sees that asyncio has nothing to say of it."""
    flights.work.error = OSError("no")
    (caller,) = await flights.called(1)
    caller.cancel()
    await turns()
    flights.work.go.set()
    await turns()
    assert flights.failures == [("a", flights.work.error)]


# In the background


async def test_a_run_can_be_begun_without_waiting(flights: Flights) -> None:
    task = flights.flight.start("a", flights.work("a"))
    assert flights.flight.start("a", flights.work("a")) is task
    callers = await flights.called(2)
    flights.work.go.set()
    assert await asyncio.gather(*callers) == [1, 1]
    assert flights.work.begun == ["a"]
    assert task.get_name() == "work a"


async def test_whoever_watches_the_task_cancels_nothing(flights: Flights) -> None:
    task = flights.flight.start("a", flights.work("a"))
    done, _ = await asyncio.wait({task}, timeout=0)
    assert done == set()
    flights.work.go.set()
    await asyncio.wait({task})
    assert task.result() == 1
