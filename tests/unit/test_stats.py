"""Counters and the picture of the whole gateway."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from clamproxy.cache.store import Store
from clamproxy.cli.tables import counters_table, databases_table
from clamproxy.messages import Result
from clamproxy.notes import Notes
from clamproxy.origin.budget import PER_FILE, WINDOW, Budget
from clamproxy.origin.cooldown import Cooldowns, FailureKind
from clamproxy.statistics import COUNTER_OF_RESULT, COUNTERS, Stats, advertised_versions, snapshot
from clamproxy.threads import Writer
from tests.support.fixtures import MakeCvd
from tests.support.stored import cdiff, put, put_cvd, until

FIXED_KEYS = {
    *("requests", "hits", "misses", "collapsed", "stale", "negative", "errors"),
    *("bytes_served", "upstream_requests", "upstream_bytes"),
    *("objects", "cache_bytes", "databases", "cooldown_until"),
}
"""The keys of `clamproxy stats --json` that others rely on."""


@pytest.fixture
async def writer(store: Store) -> AsyncIterator[Writer]:
    writer = Writer()
    yield writer
    writer.submit(store.disconnect)
    writer.close()


COUNTED = set(Result) - {Result.STATUS, Result.FILE}
"""Pages about the gateway are no requests for files."""


def test_every_result_has_a_counter() -> None:
    assert set(COUNTER_OF_RESULT) == COUNTED
    assert len(set(COUNTERS)) == len(COUNTERS)


def test_an_empty_store(store: Store) -> None:
    picture = snapshot(store)
    assert set(picture) >= FIXED_KEYS
    assert all(picture[name] == 0 for name in COUNTERS)
    assert (picture["objects"], picture["cache_bytes"], picture["quarantined"]) == (0, 0, 0)
    assert (picture["databases"], picture["cooldown_until"], picture["cooldowns"]) == ({}, None, {})
    assert picture["budget"] == {}


async def test_counts_are_exact_and_soon_on_disk(store: Store, writer: Writer) -> None:
    stats = Stats(store, writer)
    for result in COUNTED:
        stats.count_request(result, 10)

    def fetch() -> None:
        for _ in range(50):
            stats.count_upstream(1, 100)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await until(lambda: store.counters().get("upstream_requests") == 200)
    picture = snapshot(store)
    assert picture["requests"] == len(COUNTED) == sum(picture[name] for name in COUNTER_OF_RESULT.values())
    assert picture["bytes_served"] == 10 * len(COUNTED)
    assert picture["upstream_bytes"] == 20_000


async def test_a_stop_loses_no_count(store: Store, writer: Writer) -> None:
    stats = Stats(store, writer)
    stats.count_request(Result.HIT, 5)
    stats.flush()
    stats.flush()
    await writer.run(lambda: None)
    assert store.counters() == {"requests": 1, "hits": 1, "bytes_served": 5}


def test_a_count_after_the_end_of_the_loop_is_harmless(store: Store) -> None:
    writer = Writer()

    async def make() -> Stats:
        return Stats(store, writer)

    asyncio.run(make()).count_upstream(1, 5)
    writer.close()


def test_the_picture_of_a_filled_store(store: Store, make_cvd: MakeCvd) -> None:
    old, new = make_cvd(4), make_cvd(5)
    put_cvd(store, 4, old)
    put_cvd(store, 5, new)
    put(store, cdiff(5), b"patch")
    put(store, cdiff(6), b"patch")
    put(store, cdiff(9, "main"), b"patch")
    store.set_note("advertised/daily", [6, time.time()])
    store.set_note("advertised/bytecode", [339, time.time()])
    rejected = store.partials / "x"
    rejected.write_bytes(b"x")
    store.quarantine("daily-6.cvd", rejected, "why")
    picture = snapshot(store)
    assert picture["databases"] == {
        "bytecode": {"advertised": 339, "cached": None, "reached": None},
        "daily": {"advertised": 6, "cached": 5, "reached": 6},
    }
    assert picture["objects"] == 5
    assert picture["cache_bytes"] == len(old) + len(new) + 15
    assert picture["quarantined"] == 1


def test_the_budget_in_the_picture(store: Store) -> None:
    now = time.time()
    budget = Budget(Notes(store, None, "budget"))
    for path in ("/daily.cvd", "/daily-5.cdiff", "/daily-5.cdiff"):
        budget.note(path)
    store.set_note("budget//main.cvd", [now - WINDOW - 60, now - 60])
    store.set_note("budget//old.cvd", [now - WINDOW - 60])
    assert snapshot(store)["budget"] == {
        "/daily-5.cdiff": {"used": 2, "limit": PER_FILE},
        "/daily.cvd": {"used": 1, "limit": PER_FILE},
        "/main.cvd": {"used": 1, "limit": PER_FILE},
    }


@pytest.mark.parametrize("value", [5, "x", {}, [], ["x"], [None], [[1.0]]])
def test_a_budget_that_makes_no_sense_is_not_shown(store: Store, value: Any) -> None:
    store.set_note("budget//daily.cvd", value)
    assert snapshot(store)["budget"] == {}


def test_cooldowns_in_the_picture(store: Store) -> None:
    cooldowns = Cooldowns(Notes(store, None, "cooldown"))
    first = cooldowns.failed(FailureKind.RATE_LIMITED, "/daily.cvd", "ClamAV/1", "status 429")
    second = cooldowns.failed(FailureKind.UNREACHABLE, "/main.cvd", "ClamAV/1", "refused")
    store.set_note("cooldown//old.cvd", {"until": 5.0, "failures": 1, "failure": "x", "reason": ""})
    picture = snapshot(store)
    assert set(picture["cooldowns"]) == {"/daily.cvd", "origin"}
    assert picture["cooldowns"]["/daily.cvd"]["reason"] == "status 429"
    assert picture["cooldown_until"] == max(first.until, second.until)


@pytest.mark.parametrize(
    ("told", "age", "probed", "expected"),
    [
        (None, 0, None, {}),
        (7, 60, None, {"daily": 7}),
        (None, 0, 6, {"daily": 6}),
        (7, 60, 6, {"daily": 7}),
        (6, 60, 7, {"daily": 6}),
        (6, 7 * 86400, 7, {"daily": 7}),
        (7, 7 * 86400, 6, {"daily": 7}),
        ("seven", 60, 6, {"daily": 6}),
        (None, 0, "no header", {}),
    ],
    ids=str,
)
def test_what_counts_as_advertised(
    store: Store, told: Any, age: float, probed: Any, expected: dict[str, int]
) -> None:
    """DNS; where it says nothing lately, the origin's own header."""
    if told is not None:
        store.set_note("advertised/daily", [told, time.time() - age])
    if probed is not None:
        header = f"ClamAV-VDB:20 Nov 2026 10-00 +0000:{probed}:1:90:{'a' * 32}:dsig:builder:1795000000"
        store.set_note("head/daily", {"header": header.ljust(512)})
    assert advertised_versions(store) == expected


@pytest.mark.parametrize(
    ("counters", "by_requests", "by_bytes"),
    [
        ({}, None, None),
        ({"refused": 9, "passed": 9, "requests": 18}, None, None),
        ({"hits": 5, "collapsed": 1, "stale": 1, "negative": 1, "misses": 1, "errors": 1}, 0.8, None),
        ({"misses": 3, "bytes_served": 100, "upstream_bytes": 100}, 0.0, 0.0),
        ({"hits": 1, "bytes_served": 1000, "upstream_bytes": 250}, 1.0, 0.75),
        ({"bytes_served": 1000}, None, 1.0),
        ({"bytes_served": 1000, "upstream_bytes": 5000}, None, 0.0),  # fetched ahead
    ],
)
def test_hit_ratios(
    store: Store, counters: dict[str, int], by_requests: float | None, by_bytes: float | None
) -> None:
    store.add_to_counters(counters)
    picture = snapshot(store)
    assert (picture["hit_ratio"], picture["byte_hit_ratio"]) == (by_requests, by_bytes)


def shown(*tables: Table, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_ratios_are_shown(store: Store) -> None:
    assert "│ hit ratio │ - │" in shown(counters_table(snapshot(store)))
    store.add_to_counters({"hits": 999_999, "misses": 1, "bytes_served": 1000, "upstream_bytes": 250})
    lines = shown(counters_table(snapshot(store)))
    assert "│ hit ratio │ 99.9% │" in lines  # only what is perfect is called 100%
    assert "│ byte hit ratio │ 75.0% │" in lines


@pytest.mark.parametrize("width", [40, 80])
def test_databases_that_nobody_asks_for(store: Store, make_cvd: MakeCvd, width: int) -> None:
    """They are advertised for ever, as safebrowsing is: one quiet line, and no row."""
    put_cvd(store, 5, make_cvd(5))
    put(store, cdiff(6), b"patch")
    for database, version in {"daily": 7, "safebrowsing": 49192}.items():
        store.set_note(f"advertised/{database}", [version, time.time()])
    lines = shown(databases_table(snapshot(store)), width=width)
    assert "│ daily │ 7 │ 5 │ 6 │" in lines
    assert not any(line.startswith("│ safebrowsing") for line in lines)
    assert "advertised, nothing cached: safebrowsing" in " ".join(lines)


def test_nothing_is_cached_yet(store: Store) -> None:
    assert "nothing cached" not in " ".join(shown(databases_table(snapshot(store))))
    store.set_note("advertised/daily", [7, time.time()])
    assert "advertised, nothing cached: daily" in " ".join(shown(databases_table(snapshot(store))))
