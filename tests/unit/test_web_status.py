"""status.json: exactly the contract, whatever the cache holds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import clamproxy
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.history import STEPS, Past
from clamproxy.origin.cooldown import Cooldown, FailureKind
from clamproxy.statistics import snapshot
from clamproxy.web.status import MOST_MACHINES
from tests.harness.status import STARTED_AT, StatusHarness, machine, text_of
from tests.support.fixtures import MakeCvd
from tests.support.stored import cdiff, cvd, put, put_cvd, stime_of


async def test_keys(store: Store) -> None:
    values = await StatusHarness(store).status()
    assert set(values) == {
        *("gateway", "ready", "problems", "stats", "hit_ratio", "bytes_saved", "databases"),
        *(
            "transfers",
            "rates",
            "cooldowns",
            "quarantine",
            "fleet",
            "fleet_history",
            "feeds",
            "files",
            "releases",
            "history",
        ),
        *("disk", "authority", "notices", "peers", "fleet_store"),
    }
    assert values["feeds"] == {"objects": 0, "bytes": 0, "hosts": []}


async def test_gateway(store: Store) -> None:
    before = time.time()
    gateway = (await StatusHarness(store).status())["gateway"]
    assert before <= gateway.pop("now") <= time.time()
    assert gateway == {
        "version": clamproxy.__version__,
        "started_at": STARTED_AT,
        "host": "clamproxy",
        "offline": False,
        "processes": [os.getpid()],
    }


async def test_gateway_that_is_offline_and_has_no_name(store: Store) -> None:
    settings = Settings.model_validate({"upstream": {"offline": True}, "status": {"host": None}})
    gateway = (await StatusHarness(store, settings).status())["gateway"]
    assert (gateway["offline"], gateway["host"]) == (True, None)


async def test_statistics_are_those_of_the_command(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 3, make_cvd(3))
    store.add_to_counters({"requests": 7, "hits": 5})
    store.set_note("advertised/daily", [5, 1.0])
    assert (await StatusHarness(store).status())["stats"] == snapshot(store)


async def test_what_was_saved(store: Store) -> None:
    harness = StatusHarness(store)
    values = await harness.status()
    assert (values["hit_ratio"], values["bytes_saved"]) == (None, 0)
    store.add_to_counters({"hits": 5, "collapsed": 1, "stale": 1, "negative": 1, "misses": 1, "errors": 1})
    store.add_to_counters({"refused": 50, "passed": 50, "bytes_served": 1000, "upstream_bytes": 300})
    values = await harness.status()
    assert (values["hit_ratio"], values["bytes_saved"]) == (0.8, 700)
    store.add_to_counters({"upstream_bytes": 5000})
    assert (await harness.status())["bytes_saved"] == 0


async def test_databases(store: Store, make_cvd: MakeCvd) -> None:
    body = make_cvd(3)
    put_cvd(store, 3, body)
    put(store, cdiff(4))
    store.set_note("advertised/daily", [5, 1.0])
    store.set_note("advertised/main", [62, 1.0])
    assert (await StatusHarness(store).status())["databases"] == [
        {
            "name": "daily",
            "advertised": 5,
            "cached": 3,
            "reached": 4,
            "built_at": stime_of(3),
            "size": len(body),
        },
        {"name": "main", "advertised": 62, "cached": None, "reached": None, "built_at": None, "size": None},
    ]


async def test_transfers(store: Store) -> None:
    harness = StatusHarness(store, transfers=[(cvd(7), 10, 100), (cdiff(8), 0, 0)])
    assert (await harness.status())["transfers"] == [
        {"name": "daily-7.cvd", "have": 10, "size": 100},
        {"name": "daily-8.cdiff", "have": 0, "size": None},
    ]


async def test_cooldowns(store: Store) -> None:
    harness = StatusHarness(store)
    harness.cooldowns = {
        "/daily.cvd": Cooldown(5000.0, 1, FailureKind.RATE_LIMITED, "429\nsecond line"),
        "client ClamAV/0.103.2": Cooldown(9000.0, 2, FailureKind.FORBIDDEN, "x" * 5000),
        "origin": Cooldown(1000.0, 1, FailureKind.UNREACHABLE, ""),
    }
    assert (await harness.status())["cooldowns"] == [
        {"what": "client ClamAV/0.103.2", "until": 9000.0, "failure": "forbidden", "reason": "x" * 300},
        {"what": "/daily.cvd", "until": 5000.0, "failure": "rate limited", "reason": "429"},
        {"what": "origin", "until": 1000.0, "failure": "unreachable", "reason": ""},
    ]


def reject(store: Store, name: str, body: bytes, reason: str) -> None:
    path = store.partials / "rejected"
    path.write_bytes(body)
    store.quarantine(name, path, reason)


async def test_quarantine(store: Store) -> None:
    before = time.time()
    reject(store, "daily-7.cvd", b"12345", "the signature is wrong")
    reject(store, "daily-8.cdiff", b"", "<script>\nand more")
    second, first = (await StatusHarness(store).status())["quarantine"]
    assert before - 1 <= first["at"] <= second["at"] <= time.time() + 1
    assert (first["name"], first["size"], first["reason"]) == ("daily-7.cvd", 5, "the signature is wrong")
    assert (second["name"], second["size"], second["reason"]) == ("daily-8.cdiff", 0, "<script>")


async def test_quarantine_with_what_somebody_else_put_there(store: Store) -> None:
    (store.directory / "quarantine" / "what.is.this").write_bytes(b"1")
    (store.directory / "quarantine" / "thing").write_bytes(b"12")
    assert (await StatusHarness(store).status())["quarantine"] == []


def listed(values: dict[str, Any]) -> list[str]:
    return [one["uuid"][-2:] for one in values["fleet"]["machines"]]


async def test_no_fleet(store: Store) -> None:
    assert (await StatusHarness(store).status())["fleet"] == {
        **{"enabled": False, "total": 0, "up_to_date": 0, "behind": 0, "unknown": 0, "end_of_life": 0},
        **{"overdue": 0, "behind_for": 86400.0, "cloned": 0, "groups": []},
        "machines": [],
    }


async def test_fleet(store: Store) -> None:
    machines = [
        machine(1, daily=0, main=0),
        machine(2, daily=3, main=None),
        machine(3),
        machine(4, daily=None),
    ]
    machines.append(machine(5, daily=9, eol=True))
    values = await StatusHarness(store, machines=machines).status()
    fleet = values["fleet"]
    assert fleet["machines"][0] == machines[-1].to_json()
    counts = {key: value for key, value in fleet.items() if key != "machines"}
    assert counts == {
        **{"enabled": True, "total": 5, "up_to_date": 1, "behind": 2, "unknown": 2, "end_of_life": 1},
        **{"overdue": 2, "behind_for": 86400.0, "cloned": 0, "groups": []},
    }
    assert listed(values)[:2] == ["05", "02"]
    assert listed(values)[-1] == "01"


async def test_fleet_that_is_large(store: Store) -> None:
    machines = [machine(number, daily=0) for number in range(MOST_MACHINES + 100)]
    machines.append(machine(99_999, daily=1))
    fleet = (await StatusHarness(store, machines=machines).status())["fleet"]
    assert (fleet["total"], fleet["up_to_date"], len(fleet["machines"])) == (601, 600, MOST_MACHINES)
    assert fleet["machines"][0]["uuid"].endswith("99999")


async def test_feeds(store: Store) -> None:
    feeds = {"objects": 1, "bytes": 2, "hosts": [{"host": "feed.example.com", "requests": 3}]}
    assert (await StatusHarness(store, feeds=feeds).status())["feeds"] == feeds


async def test_history(store: Store) -> None:
    past = Past().noted({"requests": 4}, time.time())
    store.add_to_counters({"requests": 10})
    history = (await StatusHarness(store, past=past).status())["history"]
    assert history["series"]["requests"][-1] == 6
    assert {len(values) for values in history["series"].values()} == {STEPS}
    assert history["until"] >= time.time() - 300


async def test_threads_do_not_keep_the_index_open(store: Store, tmp_path: Path) -> None:
    """Each picture is taken in a thread of its own."""
    harness = StatusHarness(store)
    await harness.status()

    def descriptors() -> int:
        targets = [os.path.realpath(one) for one in Path("/proc/self/fd").iterdir()]
        return sum(target.startswith(str(tmp_path)) for target in targets)

    before = descriptors()
    for _ in range(20):
        await harness.status()
    assert descriptors() <= before


async def test_object_store(store: Store) -> None:
    harness = StatusHarness(store)
    assert (await harness.status())["fleet_store"] is None
    harness.fleet_store = {"url": "s3://bucket/prefix", "failure": None, "since": None}
    store.add_to_counters({"fleet_store_requests/get": 3, "fleet_store_failures/get": 1})
    values = (await harness.status())["fleet_store"]
    assert values["requests"]["get"] == 3
    assert values["failures"] == {**dict.fromkeys(values["requests"], 0), "get": 1}
    assert (values["url"], values["failure"]) == ("s3://bucket/prefix", None)


async def test_an_object_store_that_is_down_is_a_problem_of_a_gateway_that_is_ready(store: Store) -> None:
    harness = StatusHarness(store)
    harness.fleet_store = {"url": "s3://b", "failure": "s3://b: Connection refused", "since": 1.0}
    values = await harness.status()
    assert values["ready"]
    assert values["problems"] == [
        "degraded since 1970-01-01 00:00 UTC: the object store can't be used, so this gateway works alone: "
        "s3://b: Connection refused"
    ]
    answer = await harness.ask("/readyz")
    assert answer.status == 200
    assert "object store" in text_of(answer)
