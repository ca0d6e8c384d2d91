"""The contract of leases: every engine keeps it, between real processes."""

from __future__ import annotations

import asyncio
import errno
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clamproxy.leases import directory_leases
from clamproxy.leases.directory_leases import DIRECTORY, DirectoryLeases
from clamproxy.leases.duties import on_duty
from clamproxy.leases.leases import WaitEnding
from tests.support.lease_process import LeaseProcess, lease_processes
from tests.support.object_store import ObjectStore
from tests.support.stored import until

NAME = "fetch daily-27800.cdiff / of a site"
LONG = 60.0
"""Seconds that no engine needs for anything."""


@pytest.fixture(params=["directory", "moto", "seaweedfs"])
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimpleNamespace]:
    """An engine by name, and where its leases are."""
    if request.param == "directory":
        yield SimpleNamespace(name="directory", place=str(tmp_path))
        return
    with ObjectStore(
        request.getfixturevalue(f"{request.param}_port"), f"leases-{secrets.token_hex(6)}"
    ) as store:
        yield SimpleNamespace(name="bucket", place=store.use(monkeypatch))


@pytest.fixture
async def processes(engine: SimpleNamespace) -> AsyncIterator[list[LeaseProcess]]:
    async with lease_processes(engine.name, engine.place, 4) as processes:
        yield processes


async def test_of_all_that_race_one_wins(processes: list[LeaseProcess]) -> None:
    for round_ in range(10):
        name = f"{NAME} {round_}"
        for one in processes:
            one.tell("take", name, 4)
        taken = [await one.answer() for one in processes]
        assert sorted(taken) == [0, 0, 0, 1]
        winner = processes[taken.index(1)]
        assert [await one.ask("take", name, 1) for one in processes] == [0, 0, 0, 0]
        assert await winner.ask("lost", name) is False
        assert await winner.ask("release", name, None)


async def test_one_that_was_released_is_free(processes: list[LeaseProcess]) -> None:
    for one in processes * 2:
        assert await taken_soon(one)
        assert await one.ask("release", NAME, {})


async def test_those_that_wait_hear_of_the_release_and_of_what_was_learnt(
    processes: list[LeaseProcess],
) -> None:
    holder, *others = processes
    learnt = {"missing/daily-27800.cdiff": [1e9, 60.0], "cool": {"until": None, "why": "\u00e4" * 5000}}
    assert await holder.ask("take", NAME, 1) == 1
    for one in others:
        one.tell("wait", NAME, LONG)
    assert await others[0].is_silent(0.5)
    assert await holder.ask("release", NAME, learnt)
    assert [await one.answer() for one in others] == [["released", learnt]] * 3
    assert await others[0].ask("wait", NAME, LONG) == ["released", {}], "not for those that come later"


async def test_nobody_waits_for_what_nobody_holds(processes: list[LeaseProcess]) -> None:
    assert await processes[0].ask("wait", NAME, LONG) == ["released", {}]


async def test_a_wait_keeps_its_limit(processes: list[LeaseProcess]) -> None:
    holder, other, *_ = processes
    assert await holder.ask("take", NAME, 1) == 1
    for limit in (0.0, 0.3):
        assert await other.ask("wait", NAME, limit) == ["held", {}]
    assert await other.ask("wait", f"{NAME} or another", LONG) == ["released", {}]


async def test_a_holder_that_is_killed_holds_nothing(processes: list[LeaseProcess]) -> None:
    holder, waiting, other, _ = processes
    assert await holder.ask("take", NAME, 1) == 1
    waiting.tell("wait", NAME, LONG)
    await holder.kill()
    assert await waiting.answer() == ["released", {}]
    assert await taken_soon(other)


async def test_whoever_stops_gives_everything_up(processes: list[LeaseProcess]) -> None:
    holder, other, *_ = processes
    for name in (NAME, "follow"):
        assert await holder.ask("take", name, 1) == 1
    assert await holder.ask("stop")
    for name in (NAME, "follow"):
        assert await taken_soon(other, name)


async def test_whoever_has_stopped_waits_for_nothing(processes: list[LeaseProcess]) -> None:
    """It gets no lease any more: one that nobody holds would be waited for without end."""
    assert await processes[0].ask("stop")
    assert await processes[0].ask("take", NAME, 1) == 0
    assert await processes[0].ask("wait", NAME, LONG) == ["failed", {}]


async def test_waiting_disturbs_nobody_that_takes(
    engine: SimpleNamespace, processes: list[LeaseProcess]
) -> None:
    """A look at a lease must not keep others from getting it."""
    taker, *others = processes
    for round_ in range(30 if engine.name == "directory" else 3):
        name = f"{NAME} {round_}"
        for one in others:
            for _ in range(20):
                one.tell("wait", name, 0.0)
        assert await taker.ask("take", name, 1) == 1
        for one in others:
            for _ in range(20):
                await one.answer()


async def taken_soon(process: LeaseProcess, name: str = NAME) -> bool:
    """Take a lease that an engine may need seconds to know to be free."""
    async with asyncio.timeout(LONG):
        while True:
            if await process.ask("take", name, 1):
                return True
            answer: Any = await process.ask("wait", name, LONG)
            assert answer[0] == "released"


# What only one engine does


async def test_the_cache_keeps_no_old_locks(tmp_path: Path) -> None:
    async with lease_processes("directory", str(tmp_path), 2) as (holder, other):
        assert await holder.ask("take", NAME, 1) == 1
        assert await other.ask("take", "x" * 1000, 1) == 1
        await holder.kill()
        assert len(list((tmp_path / DIRECTORY).iterdir())) == 2
        leases = DirectoryLeases(tmp_path)
        assert len(list((tmp_path / DIRECTORY).iterdir())) == 1, "that of the process which has it"
        assert await leases.take("x" * 1000) is None
        assert await other.ask("release", "x" * 1000, {"a": 1})
    assert list((tmp_path / DIRECTORY).iterdir()) == []


async def test_where_nothing_can_be_locked_everybody_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "file").touch()
    gone, none = DirectoryLeases(tmp_path / "gone"), DirectoryLeases(tmp_path / "file")
    unlocked = DirectoryLeases(tmp_path)
    monkeypatch.setattr(directory_leases, "try_lock", without_locks)
    for leases in (gone, none, unlocked):
        for _ in range(2):
            lease = await leases.take(NAME)
            assert lease is not None
            assert lease.is_lost
            lease.release({"a": 1})
            lease.release()
    assert not (tmp_path / "gone").exists()
    outcome = await unlocked.wait(NAME, LONG)
    assert outcome.ending is WaitEnding.FAILED


async def test_whoever_loses_the_file_knows_it(tmp_path: Path) -> None:
    first, second = DirectoryLeases(tmp_path), DirectoryLeases(tmp_path)
    lost = await first.take(NAME)
    assert lost is not None
    assert not lost.is_lost
    shutil.rmtree(tmp_path / DIRECTORY)
    assert lost.is_lost
    lease = await second.take(NAME)
    assert lease is not None
    lost.release({"a": 1})
    assert not lease.is_lost
    assert await first.take(NAME) is None


# Duties


async def test_a_duty_passes_on(tmp_path: Path) -> None:
    at_work: list[str] = []

    def begin(name: str) -> asyncio.Task[None]:
        async def work() -> float:
            at_work.append(name)
            return 0.01

        return asyncio.create_task(on_duty(DirectoryLeases(tmp_path), "follow", work))

    first = begin("first")
    await until(lambda: at_work)
    second = begin("second")
    await until(lambda: len(at_work) > 10)
    assert "second" not in at_work
    first.cancel()
    await until(lambda: at_work[-1] == "second")
    third = begin("third")
    count = len(at_work)
    shutil.rmtree(tmp_path / DIRECTORY)  # as if it had lost the lease
    await until(lambda: len(at_work) > count + 20)
    assert len(set(at_work[-3:])) == 1, "one goes on"
    for task in (second, third):
        task.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)


async def test_who_cannot_do_it_leaves_it_to_others(tmp_path: Path) -> None:
    at_work: list[str] = []

    def begin(name: str, *, is_able: bool) -> asyncio.Task[None]:
        async def work() -> float:
            at_work.append(name)
            return 0.2

        leases = DirectoryLeases(tmp_path)
        return asyncio.create_task(on_duty(leases, "follow", work, is_able=lambda: is_able))

    unable = begin("unable", is_able=False)
    await until(lambda: len(at_work) > 1)  # alone, it goes on
    able = begin("able", is_able=True)
    await until(lambda: at_work[-3:] == ["able"] * 3)
    for task in (unable, able):
        task.cancel()
    await asyncio.gather(unable, able, return_exceptions=True)
