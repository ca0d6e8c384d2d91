"""The follower's background task: for what it looks, in which process, and that it goes on."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from typing import Any

import pytest

from clamproxy.leases.directory_leases import DIRECTORY
from clamproxy.origin.cooldown import FailureKind
from clamproxy.releases.follower import LONGEST_INTEREST
from clamproxy.releases.lineage import ProvenLineage
from tests.harness.follower import NEWER_AGENT, REFRESH, FollowerHarness, MakeHarness
from tests.support.dns_server import PRIMARY
from tests.support.fixtures import Child
from tests.support.releases import Releases
from tests.support.stored import AGENT, cdiff, cvd, put, until

OFTEN: dict[str, dict[str, Any]] = {"versions": {"refresh": "10ms"}}
"""How often the task looks; answers of DNS count for `REFRESH` all the same."""


@pytest.fixture
def harness(make_harness: MakeHarness) -> FollowerHarness:
    return make_harness()


async def run(harness: FollowerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the background task, which looks at once."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    harness.follower.start()


async def test_all_means_the_standard_databases(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(serving={"prefetch": "all", "databases": ["daily", "bytecode"]})
    harness.release(2)
    harness.release(340, releases=Releases(database="bytecode", first=340))
    await run(harness, monkeypatch)
    await until(lambda: harness.store.has(cvd(340, "bytecode")) and harness.store.has(cvd(2)))
    assert not [seen for seen in harness.origin.requests() if "main" in seen.path]


async def test_what_is_cached_is_in_use_from_the_start(
    harness: FollowerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.release(2)
    harness.release(340, releases=Releases(database="bytecode", first=340))
    await run(harness, monkeypatch)
    await until(lambda: harness.store.has(cdiff(2)))
    assert not [seen for seen in harness.origin.requests() if "bytecode" in seen.path]


@pytest.mark.parametrize("sections", [{"serving": {"prefetch": "none"}}, {"upstream": {"offline": True}}])
async def test_following_can_be_switched_off(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    harness = make_harness(**sections)
    harness.release(2)
    tasks = asyncio.all_tasks()
    await run(harness, monkeypatch)
    assert asyncio.all_tasks() == tasks
    harness.follower.stop()


async def test_a_bug_in_a_look_ends_nothing(
    harness: FollowerHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(database: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(harness.versions, "get", broken)
    harness.release(2)
    await run(harness, monkeypatch)
    await until(lambda: "a bug" in caplog.text)
    harness.follower.stop()


async def test_a_bug_in_the_store_ends_nothing(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = make_harness(**OFTEN)
    databases, failures = harness.store.databases, [OSError("disk full"), sqlite3.OperationalError("locked")]

    def broken() -> set[str]:
        if failures:
            raise failures.pop()
        return databases()

    monkeypatch.setattr(harness.store, "databases", broken)
    harness.release(2)
    await run(harness, monkeypatch)
    await until(lambda: harness.store.has(cdiff(2)))
    assert not failures
    assert "disk full" in caplog.text
    assert caplog.text.count("Following releases failed.") == 2


async def test_a_bug_with_one_database_ends_nothing_for_the_others(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = make_harness(**OFTEN)
    get = harness.lineages.get

    async def broken(database: str) -> ProvenLineage | None:
        if database == "bytecode":
            raise RuntimeError("a bug")
        return await get(database)

    monkeypatch.setattr(harness.lineages, "get", broken)
    harness.follower.see("bytecode")
    harness.release(2)
    await run(harness, monkeypatch)
    await until(lambda: harness.store.has(cdiff(2)))
    assert "Following the releases of bytecode failed." in caplog.text


# Which databases


async def seen_by(harness: FollowerHarness) -> bool:
    """Whether the follower looks for `test`, whose version has a record of its own."""
    for _ in range(2):  # the first round may have begun before
        harness.clock.now += 2 * REFRESH
        harness.dns.queries.clear()
        await until(lambda: harness.dns.queries.count(PRIMARY) >= 1)
        harness.clock.now += 2 * REFRESH  # `test` comes after `daily`
        await until(lambda: harness.dns.queries.count(PRIMARY) >= 2)
    return "test.cvd.clamav.net" in harness.dns.queries


async def test_what_a_client_asked_for_is_watched_for_a_day(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(**OFTEN)
    harness.dns.versions["test"] = 6
    await run(harness, monkeypatch)
    assert not await seen_by(harness)
    harness.follower.see("test")
    assert await seen_by(harness)
    harness.clock.now += LONGEST_INTEREST / 2
    assert await seen_by(harness)
    harness.clock.now += LONGEST_INTEREST / 2
    assert not await seen_by(harness)
    harness.follower.see("test")
    assert await seen_by(harness)


async def test_what_is_cached_is_watched_for_ever(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(**OFTEN)
    harness.dns.versions["test"] = 6
    harness.follower.see("test")
    put(harness.store, cdiff(6, "test"))
    await run(harness, monkeypatch)
    harness.clock.now += 2 * LONGEST_INTEREST
    assert await seen_by(harness)


async def test_what_is_not_served_is_not_watched(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(**OFTEN, serving={"databases": ["daily"]})
    harness.dns.versions["test"] = 6
    put(harness.store, cdiff(6, "test"))
    await run(harness, monkeypatch)
    assert not await seen_by(harness)


# Which process


async def test_of_two_gateways_on_one_cache_one_follows_and_the_other_takes_over(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (make_harness(**OFTEN) for _ in range(2))
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


async def test_a_gateway_without_a_way_to_the_origin_leaves_it_to_others(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (make_harness(**OFTEN) for _ in range(2))
    second.agents.see(NEWER_AGENT)  # by which its requests are known
    first.release(1)
    await run(first, monkeypatch)
    first.release(2)
    first.clock.now += 2 * REFRESH
    await until(lambda: first.has("daily-2.cdiff", "daily-2.cdiff.sign") == [True, True])
    first.clock.now += 2 * REFRESH
    first.cooldowns.failed(FailureKind.UNREACHABLE, "/daily.cvd", AGENT, "no route")
    second.release(3)
    await run(second, monkeypatch)
    await until(lambda: second.store.has(cdiff(3)))
    assert {seen.headers["user-agent"] for seen in second.origin.requests()} == {NEWER_AGENT}


async def test_a_gateway_that_was_killed_holds_no_lock(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, child: Child
) -> None:
    harness = make_harness(**OFTEN)
    code = (
        "import asyncio, os, pathlib, sys; from clamproxy.leases.directory_leases import DirectoryLeases\n"
        "assert asyncio.run(DirectoryLeases(pathlib.Path(sys.argv[1])).take('follow'))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert child(code, harness.store.directory).returncode == -9
    harness.release(2)
    await run(harness, monkeypatch)
    await until(lambda: harness.store.has(cdiff(2)))


async def test_a_lock_that_cannot_be_had_is_no_end(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(**OFTEN)
    (harness.store.directory / DIRECTORY / "follow.lock").mkdir(parents=True)
    harness.release(2)
    await run(harness, monkeypatch)
    await until(lambda: harness.store.has(cdiff(2)))
