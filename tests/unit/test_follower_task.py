"""The follower's background task: for what it looks, in which process, and that it goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from clamproxy.cache.store import Store
from tests.support.origin import Origin
from tests.support.releases import Releases
from tests.unit.conftest import cdiff, cvd, until
from tests.unit.follower_bench import (
    Bench,
    MakeBench,
    open_benches,
)


@pytest.fixture
async def make_bench(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeBench]:
    async with open_benches(origin, store, monkeypatch) as make:
        yield make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


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
