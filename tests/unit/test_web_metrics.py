"""Metrics: what Prometheus reads, with names as it wants them, and few of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import replace

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

import clamproxy
from clamproxy.cache.store import Store
from clamproxy.origin.cooldown import Cooldown, FailureKind
from clamproxy.releases.holds import Hold, hold
from clamproxy.web.metrics import exposition
from tests.harness.status import STARTED_AT, StatusHarness, machine, text_of
from tests.support.fixtures import MakeCvd
from tests.support.stored import cdiff, cvd, put, put_cvd, stime_of

type Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.1"
)


async def scrape(harness: StatusHarness, accept: str = "") -> tuple[str, str]:
    harness.renew()
    response = await harness.ask("/metrics", Accept=accept)
    assert (response.status, response.headers["Vary"]) == (200, "Accept")
    return text_of(response), response.headers["Content-Type"]


def promtool_says(promtool: str, text: str) -> tuple[int, str]:
    process = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    return process.returncode, process.stdout + process.stderr


def own(families: list[Metric]) -> list[Metric]:
    return [family for family in families if family.name.startswith("clamproxy_")]


def samples_of(text: str) -> Samples:
    return {
        (sample.name.removeprefix("clamproxy_"), frozenset(sample.labels.items())): sample.value
        for family in own(list(parse_plain(text)))
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


@pytest.fixture
def harness(store: Store, make_cvd: MakeCvd) -> StatusHarness:
    put_cvd(store, 3, make_cvd(3))
    put(store, cdiff(4))
    store.set_note("advertised/daily", [5, 1.0])
    store.set_note("advertised/main", [62, 1.0])
    hold(store.records.directory, "daily", Hold(4, time.time() - 4 * 86400, "alice"))
    store.add_to_counters({"requests": 12, "hits": 9, "misses": 2, "errors": 1, "bytes_served": 5000})
    store.add_to_counters({"upstream_requests": 3, "upstream_bytes": 700})
    harness = StatusHarness(store, machines=[machine(1, daily=0), machine(2, daily=4, eol=True), machine(3)])
    harness.transfers = [(cvd(9), 1, 2)]
    harness.cooldowns = {
        "/daily.cvd": Cooldown(time.time() + 1000, 1, FailureKind.RATE_LIMITED, "429"),
        "/main.cvd": Cooldown(time.time() + 100, 1, FailureKind.RATE_LIMITED, "429"),
        "client ClamAV/0.103.2": Cooldown(time.time() + 9000, 2, FailureKind.FORBIDDEN, "403"),
    }
    return harness


async def test_values(harness: StatusHarness) -> None:
    text, content_type = await scrape(harness)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    found = samples_of(text)
    assert found[key("build_info", version=clamproxy.__version__)] == 1
    assert found[key("start_time_seconds")] == STARTED_AT
    assert (found[key("ready")], found[key("offline")]) == (1, 0)
    assert found[key("requests_total", result="hit")] == 9
    assert found[key("requests_total", result="miss")] == 2
    assert found[key("requests_total", result="error")] == 1
    assert found[key("requests_total", result="stale")] == 0
    assert (found[key("served_bytes_total")], found[key("upstream_bytes_total")]) == (5000, 700)
    assert found[key("upstream_requests_total")] == 3
    assert found[key("cache_objects")] == 2
    assert found[key("cache_bytes")] > 512
    assert found[key("quarantined_objects")] == 0
    assert found[key("transfers")] == 1
    assert found[key("database_build_timestamp_seconds", database="daily")] == stime_of(3)
    assert found[key("fleet_end_of_life_machines")] == 1
    assert found[key("fleet_overdue_machines")] == 1
    for state, machines in {"up_to_date": 1, "behind": 1, "unknown": 1}.items():
        assert found[key("fleet_machines", state=state)] == machines


async def test_versions(harness: StatusHarness) -> None:
    found = samples_of((await scrape(harness))[0])
    for state, version in {"advertised": 5, "cached": 3, "reached": 4}.items():
        assert found[key("database_version", database="daily", state=state)] == version
    # What isn't known has no sample: 0 would look like a version.
    assert found[key("database_version", database="main", state="advertised")] == 62
    assert key("database_version", database="main", state="cached") not in found
    assert key("database_build_timestamp_seconds", database="main") not in found


async def test_cooldowns(harness: StatusHarness) -> None:
    found = samples_of((await scrape(harness))[0])
    assert found[key("cooldowns", kind="file")] == 2
    assert found[key("cooldowns", kind="client")] == 1
    assert found[key("cooldowns", kind="origin")] == 0
    assert 500 < found[key("cooldown_seconds", kind="file")] <= 1000
    assert 5000 < found[key("cooldown_seconds", kind="client")] <= 9000
    assert found[key("cooldown_seconds", kind="origin")] == 0


async def test_no_fleet(store: Store) -> None:
    assert "fleet" not in (await scrape(StatusHarness(store)))[0]


@pytest.mark.parametrize(
    "accept", [PROMETHEUS, "text/html, application/openmetrics-text", "APPLICATION/OpenMetrics-Text"]
)
async def test_openmetrics(harness: StatusHarness, accept: str) -> None:
    text, content_type = await scrape(harness, accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert families["clamproxy_requests"].type == "counter"
    assert families["clamproxy_cache_bytes"].type == "gauge"


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "text/html", "a" * 9000, "text/plain;version=\r\nX: y"]
)
async def test_plain_text_for_all_others(harness: StatusHarness, accept: str) -> None:
    accept = accept.replace("\r\n", " ")
    assert (await scrape(harness, accept))[1] == "text/plain; version=0.0.4; charset=utf-8"


async def test_conventions(harness: StatusHarness) -> None:
    """https://prometheus.io/docs/practices/naming/"""
    families = own(list(parse_plain((await scrape(harness))[0])))
    assert len(families) > 15
    for family in families:
        assert re.fullmatch(r"clamproxy_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge")
        assert family.samples, family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert set(sample.labels) <= {"result", "database", "state", "kind", "version", "directory"}


async def test_promtool_has_nothing_against_it(harness: StatusHarness) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text, _ = await scrape(harness)
    assert promtool_says(promtool, text) == (0, "")


async def test_counters_go_on_after_a_restart(harness: StatusHarness) -> None:
    before = samples_of((await scrape(harness))[0])
    again = StatusHarness(Store(harness.store.directory))
    after = samples_of((await scrape(again))[0])
    again.store.close()
    counters = [one for one in before if one[0].endswith("_total")]
    assert counters
    assert all(after[one] == before[one] for one in counters)


async def test_few_series_whatever_clients_send(harness: StatusHarness) -> None:
    before = set(samples_of((await scrape(harness))[0]))
    for number in range(300):
        harness.cooldowns[f"/daily-{number}.cdiff"] = Cooldown(
            time.time() + 9, 1, FailureKind.SERVER_ERROR, "x"
        )
        harness.cooldowns[f"client ClamAV/{number}"] = Cooldown(
            time.time() + 9, 1, FailureKind.FORBIDDEN, "x"
        )
        harness.transfers.append((cdiff(number + 1), 0, 0))
    harness.machines = [machine(number, daily=number) for number in range(300)]
    harness.feeds = {"objects": 3, "bytes": 9, "hosts": [{"host": f"{n}.example.com"} for n in range(300)]}
    assert set(samples_of((await scrape(harness))[0])) == before


async def test_the_process(harness: StatusHarness) -> None:
    assert "process_resident_memory_bytes" in (await scrape(harness))[0]


async def test_a_hold(harness: StatusHarness) -> None:
    found = samples_of((await scrape(harness))[0])
    assert found[key("held_version", database="daily")] == 4
    assert found[key("shown_version", database="daily", kind="hold")] == 4
    assert found[key("hold_forgotten", database="daily")] == 1
    assert found[key("held_seconds", database="daily")] >= 4 * 86400
    assert key("held_version", database="main") not in found


async def test_limits_and_present_rates(store: Store) -> None:
    harness = StatusHarness(store)
    values = await harness.status()
    clients = {"limit": None, "waiting": 2}
    text, _ = exposition(
        {**values, "rates": {"upstream": {"limit": 500_000, "rate": 123}, "clients": clients}}, ""
    )
    found = samples_of(text.decode())
    assert found[key("upstream_rate_bytes_per_second")] == 123
    assert found[key("rate_limit_bytes_per_second", setting="upstream.rate_limit")] == 500_000
    assert key("rate_limit_bytes_per_second", setting="serving.rate_limit_per_client") not in found
    assert found[key("clients_waiting")] == 2


async def test_groups(store: Store) -> None:
    machines = [
        replace(machine(1, daily=0), group="servers", cloned=True),
        replace(machine(2, daily=4), group="servers"),
        machine(3),
    ]
    text, _ = await scrape(StatusHarness(store, machines=machines))
    found = samples_of(text)
    assert {labels: value for (name, labels), value in found.items() if name == "fleet_group_machines"} == {
        frozenset({("group", "servers"), ("state", "behind")}): 1,
        frozenset({("group", "servers"), ("state", "unknown")}): 0,
        frozenset({("group", "servers"), ("state", "up_to_date")}): 1,
    }
    assert found[key("fleet_group_overdue_machines", group="servers")] == 1
    assert found[key("fleet_cloned_machines")] == 1
