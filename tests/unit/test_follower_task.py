"""The follower's background task: for what it looks, in which process, and that it goes on."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from typing import Any

import pytest

from clamproxy.releases.follower import LONGEST_INTEREST
from clamproxy.releases.lineage import ProvenLineage
from tests.support.dns_server import PRIMARY
from tests.support.releases import Releases
from tests.unit.conftest import AGENT, Child, cdiff, cvd, put, until
from tests.unit.follower_bench import (
    NEWER_AGENT,
    REFRESH,
    Bench,
    MakeBench,
)

OFTEN: dict[str, dict[str, Any]] = {"versions": {"refresh": "10ms"}}
"""How often the task looks; answers of DNS count for `REFRESH` all the same."""


async def run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the background task, which looks at once."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    bench.follower.start()


async def test_all_means_the_standard_databases(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(serving={"prefetch": "all", "databases": ["daily", "bytecode"]})
    bench.release(2)
    bench.release(340, releases=Releases(database="bytecode", first=340))
    await run(bench, monkeypatch)
    await until(lambda: bench.store.has(cvd(340, "bytecode")) and bench.store.has(cvd(2)))
    assert not [seen for seen in bench.origin.requests() if "main" in seen.path]


async def test_what_is_cached_is_in_use_from_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.release(2)
    bench.release(340, releases=Releases(database="bytecode", first=340))
    await run(bench, monkeypatch)
    await until(lambda: bench.store.has(cdiff(2)))
    assert not [seen for seen in bench.origin.requests() if "bytecode" in seen.path]


@pytest.mark.parametrize("sections", [{"serving": {"prefetch": "none"}}, {"upstream": {"offline": True}}])
async def test_it_can_be_switched_off(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    bench = make_bench(**sections)
    bench.release(2)
    tasks = asyncio.all_tasks()
    await run(bench, monkeypatch)
    assert asyncio.all_tasks() == tasks
    bench.follower.stop()


async def test_a_bug_ends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(database: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.versions, "get", broken)
    bench.release(2)
    await run(bench, monkeypatch)
    await until(lambda: "a bug" in caplog.text)
    bench.follower.stop()


async def test_nor_does_one_in_the_store(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(**OFTEN)
    databases, failures = bench.store.databases, [OSError("disk full"), sqlite3.OperationalError("locked")]

    def broken() -> set[str]:
        if failures:
            raise failures.pop()
        return databases()

    monkeypatch.setattr(bench.store, "databases", broken)
    bench.release(2)
    await run(bench, monkeypatch)
    await until(lambda: bench.store.has(cdiff(2)))
    assert not failures
    assert "disk full" in caplog.text
    assert caplog.text.count("Following releases failed.") == 2


async def test_nor_one_database_for_the_others(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(**OFTEN)
    get = bench.lineages.get

    async def broken(database: str) -> ProvenLineage | None:
        if database == "bytecode":
            raise RuntimeError("a bug")
        return await get(database)

    monkeypatch.setattr(bench.lineages, "get", broken)
    bench.follower.see("bytecode")
    bench.release(2)
    await run(bench, monkeypatch)
    await until(lambda: bench.store.has(cdiff(2)))
    assert "Following the releases of bytecode failed." in caplog.text


# Which databases


async def seen_by(bench: Bench) -> bool:
    """Whether the follower looks for `test`, whose version has a record of its own."""
    for _ in range(2):  # the first round may have begun before
        bench.clock.now += 2 * REFRESH
        bench.dns.queries.clear()
        await until(lambda: bench.dns.queries.count(PRIMARY) >= 1)
        bench.clock.now += 2 * REFRESH  # `test` comes after `daily`
        await until(lambda: bench.dns.queries.count(PRIMARY) >= 2)
    return "test.cvd.clamav.net" in bench.dns.queries


async def test_what_a_client_asked_for_is_watched_for_a_day(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**OFTEN)
    bench.dns.versions["test"] = 6
    await run(bench, monkeypatch)
    assert not await seen_by(bench)
    bench.follower.see("test")
    assert await seen_by(bench)
    bench.clock.now += LONGEST_INTEREST / 2
    assert await seen_by(bench)
    bench.clock.now += LONGEST_INTEREST / 2
    assert not await seen_by(bench)
    bench.follower.see("test")
    assert await seen_by(bench)


async def test_what_is_cached_is_watched_for_ever(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**OFTEN)
    bench.dns.versions["test"] = 6
    bench.follower.see("test")
    put(bench.store, cdiff(6, "test"))
    await run(bench, monkeypatch)
    bench.clock.now += 2 * LONGEST_INTEREST
    assert await seen_by(bench)


async def test_what_is_not_served_is_not_watched(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**OFTEN, serving={"databases": ["daily"]})
    bench.dns.versions["test"] = 6
    put(bench.store, cdiff(6, "test"))
    await run(bench, monkeypatch)
    assert not await seen_by(bench)


# Which process


async def test_of_two_on_one_cache_one_follows_and_the_other_takes_over(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (make_bench(**OFTEN) for _ in range(2))
    second.agents.see(NEWER_AGENT)  # by which its requests are known

    async def release(version: int) -> set[str]:
        """Who fetches a release."""
        second.dns.versions["daily"] = version
        first.release(version)
        first.clock.now += 2 * REFRESH
        await until(
            lambda: first.has(f"daily-{version}.cdiff", f"daily-{version}.cdiff.sign") == [True, True]
        )
        return {seen.headers["user-agent"] for seen in first.origin.requests()}

    first.release(1)
    await run(first, monkeypatch)
    assert await release(2) == {AGENT}
    await run(second, monkeypatch)
    assert await release(3) == {AGENT}
    assert await release(4) == {AGENT}
    assert second.dns.queries == [], "nor does it ask DNS"
    first.follower.stop()
    assert await release(5) == {NEWER_AGENT}


async def test_one_that_was_killed_holds_nothing(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, child: Child
) -> None:
    bench = make_bench(**OFTEN)
    code = (
        "import fcntl, os, sys; fcntl.flock(open(sys.argv[1], 'ab'), fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    assert child(code, bench.store.directory / "follower.lock").returncode == -9
    bench.release(2)
    await run(bench, monkeypatch)
    await until(lambda: bench.store.has(cdiff(2)))


async def test_a_lock_that_cannot_be_had_is_no_end(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(**OFTEN)
    lock = bench.store.directory / "follower.lock"
    lock.mkdir()
    bench.release(2)
    await run(bench, monkeypatch)
    await until(lambda: "Following releases failed." in caplog.text)
    lock.rmdir()
    await until(lambda: bench.store.has(cdiff(2)))
