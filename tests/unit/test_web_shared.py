"""One computation for all who want its result."""

from __future__ import annotations

import asyncio
import threading

import pytest

from clamproxy.web.shared import SHARE, SHORTEST, Shared
from tests.support.clock import Clock

LIMIT = 30


class Work:
    """Counts its runs, and waits to be let go."""

    def __init__(self, *, held: bool = False) -> None:
        self.prepared = 0
        self.runs = 0
        self.go = threading.Event()
        self.error: Exception | None = None
        if not held:
            self.go.set()

    def prepare(self) -> object:
        self.prepared += 1
        return self.run

    def run(self) -> int:
        assert self.go.wait(LIMIT)
        self.runs += 1
        if self.error is not None:
            raise self.error
        return self.runs


def shared(work: Work, clock: Clock) -> Shared[int]:
    return Shared("test", work.prepare, clock)  # type: ignore[arg-type]


async def test_once_for_all_who_ask_at_the_same_time() -> None:
    work, clock = Work(held=True), Clock()
    one = shared(work, clock)
    askers = [asyncio.create_task(one.get()) for _ in range(50)]
    await asyncio.sleep(0)
    work.go.set()
    async with asyncio.timeout(LIMIT):
        assert await asyncio.gather(*askers) == [1] * 50
    assert (work.prepared, work.runs) == (1, 1)


async def test_counts_for_a_second() -> None:
    work, clock = Work(), Clock()
    one = shared(work, clock)
    assert await one.get() == 1
    clock.now += SHORTEST * 0.9
    assert await one.get() == 1
    clock.now += SHORTEST * 0.2
    assert await one.get() == 2


async def test_what_takes_long_counts_for_long() -> None:
    work, clock = Work(held=True), Clock()
    one = shared(work, clock)
    asker = asyncio.create_task(one.get())
    await asyncio.sleep(0)
    clock.now += 3
    work.go.set()
    async with asyncio.timeout(LIMIT):
        assert await asker == 1
    clock.now += 3 * SHARE - 1
    assert await one.get() == 1
    clock.now += 2
    assert await one.get() == 2


async def test_who_leaves_does_not_stop_it_for_others() -> None:
    work, clock = Work(held=True), Clock()
    one = shared(work, clock)
    first, second = (asyncio.create_task(one.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.go.set()
    async with asyncio.timeout(LIMIT):
        assert await second == 1
    assert await one.get() == 1


async def test_a_failure_counts_for_a_second_and_is_not_the_end() -> None:
    work, clock = Work(), Clock()
    one = shared(work, clock)
    work.error = OSError("no")
    for _ in range(3):
        with pytest.raises(OSError, match="no"):
            await one.get()
    assert work.runs == 1
    work.error = None
    clock.now += 2
    assert await one.get() == 2
