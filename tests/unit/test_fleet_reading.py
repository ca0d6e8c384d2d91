"""What the fleet tells about machines: behind, since when, in which order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.fleet import Machine, advertised_to_clients, read_fleet, summary
from clamproxy.fleet.machine import MachineState
from clamproxy.fleet.observer import Failure
from tests.support.fixtures import MakeCvd
from tests.support.fleet_rows import NOW, put_rows, row
from tests.support.stored import DAY, cdiff, put, put_cvd

ADVERTISED = {"daily": 10, "main": 62}


def read(directory: Path, advertised: dict[str, int] | None = None) -> list[Machine]:
    return read_fleet(directory, ADVERTISED if advertised is None else advertised, NOW)


def test_no_table(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "behind", "since"),
    [
        pytest.param(10, 0, None, id="current"),
        pytest.param(12, 0, None, id="ahead of what is advertised"),
        pytest.param(9, 1, 1000.0, id="one behind"),
        pytest.param(8, 2, 900.0, id="two behind"),
        pytest.param(6, 4, 500.0, id="the next was never advertised itself"),
        pytest.param(1, 9, 500.0, id="older than all that is remembered"),
    ],
)
def test_behind(tmp_path: Path, version: int, behind: int, since: float | None) -> None:
    put_rows(tmp_path, row("a", daily=version), releases={7: None, 8: 500.0, 9: 900.0, 10: 1000.0})
    (machine,) = read(tmp_path)
    database = machine.databases["daily"]
    assert (database.version, database.behind, database.behind_since) == (version, behind, since)
    assert database.seen_at == NOW - 60


@pytest.mark.parametrize(
    ("releases", "builds", "since"),
    [
        pytest.param({10: 900.0}, {10: 500}, 500.0, id="built before it was seen"),
        pytest.param({}, {10: 500}, 500.0, id="never seen advertised"),
        pytest.param({10: 900.0}, {}, 900.0, id="its build is not known"),
        pytest.param({10: 900.0}, {9: 100}, 900.0, id="the build of what it has says nothing"),
        pytest.param({10: 900.0}, {11: 500}, 900.0, id="nor that of a later one"),
        pytest.param({10: 900.0}, {10: 5000}, 900.0, id="a clock was wrong"),
    ],
)
def test_behind_since_the_release(
    tmp_path: Path, releases: dict[int, float | None], builds: dict[int, float], since: float
) -> None:
    put_rows(tmp_path, row("a", daily=9), releases=releases, builds=builds)
    assert read(tmp_path)[0].databases["daily"].behind_since == since


@pytest.mark.parametrize(
    ("least", "seconds", "is_behind"),
    [(1, 0, True), (1, DAY, True), (1, DAY + 1, False), (3, DAY, True), (4, 0, False), (0, 0, True)],
)
def test_behind_by_so_much_for_so_long(tmp_path: Path, least: int, seconds: float, is_behind: bool) -> None:
    """Both in the same database: main is behind for long, but by one."""
    put_rows(tmp_path, row("a", daily=7, main=61), row("b", daily=10), releases={8: NOW - DAY})
    a, b = read(tmp_path, {"daily": 10, "main": 62})
    main = replace(a.databases["main"], behind_since=NOW - 2 * DAY if least > 1 else NOW)
    a = replace(a, databases={"daily": a.databases["daily"], "main": main})
    assert a.is_behind(NOW, releases=least, seconds=seconds) == is_behind
    assert not b.is_behind(NOW, releases=0)


def test_behind_since_nobody_knows_when(tmp_path: Path) -> None:
    """A warning too many is better than silence."""
    put_rows(tmp_path, row("a", daily=9))
    assert read(tmp_path)[0].is_behind(NOW, seconds=9 * DAY)


def test_since_is_not_known_where_nothing_was_seen(tmp_path: Path) -> None:
    put_rows(tmp_path, row("a", daily=9, main=60), releases={9: 5.0})
    databases = read(tmp_path)[0].databases
    assert [(one.behind, one.behind_since) for one in databases.values()] == [(1, None), (2, None)]


def test_since_lies_not_in_the_future(tmp_path: Path) -> None:
    put_rows(tmp_path, row("a", daily=9), releases={10: NOW + 999})
    assert read(tmp_path)[0].databases["daily"].behind_since == NOW


def test_behind_is_not_known_where_nothing_is_advertised(tmp_path: Path) -> None:
    put_rows(tmp_path, row("a", daily=9, test=1), releases={10: 5.0})
    machine = read(tmp_path)[0]
    assert (machine.databases["test"].behind, machine.databases["test"].behind_since) == (None, None)
    assert read(tmp_path, {})[0].databases["daily"].behind is None


@pytest.mark.parametrize(
    ("versions", "state", "behind"),
    [
        ({}, MachineState.UNKNOWN, 0),
        ({"daily": 10}, MachineState.UP_TO_DATE, 0),
        ({"daily": 10, "main": 62}, MachineState.UP_TO_DATE, 0),
        ({"daily": 10, "main": 61}, MachineState.BEHIND, 1),
        ({"daily": 7, "main": 61}, MachineState.BEHIND, 3),
        ({"daily": 10, "test": 1}, MachineState.UNKNOWN, 0),
        ({"daily": 7, "test": 1}, MachineState.BEHIND, 3),
    ],
)
def test_states(tmp_path: Path, versions: dict[str, Any], state: MachineState, behind: int) -> None:
    put_rows(tmp_path, row("a", **versions))
    machine = read(tmp_path)[0]
    assert (machine.state, machine.behind) == (state, behind)


def test_the_worst_first_and_counted(tmp_path: Path) -> None:
    put_rows(
        tmp_path,
        row("current", daily=10),
        row("silent", daily=10, seen=NOW - DAY),
        row("unknown"),
        row("refused", daily=10, freshclam="0.103.12"),
        row("behind", daily=9),
        row("worst", daily=3),
        row("behind and old", daily=9, freshclam="1.0.9"),
        row("odd", daily=10, freshclam=None),
    )
    machines = read(tmp_path)
    assert [one.uuid for one in machines] == [
        "worst",
        "behind and old",
        "behind",
        "refused",
        "unknown",
        "silent",
        "current",
        "odd",
    ]
    assert summary(machines) == {"total": 8, "up_to_date": 4, "behind": 3, "unknown": 1, "end_of_life": 2}
    assert summary([]) == {"total": 0, "up_to_date": 0, "behind": 0, "unknown": 0, "end_of_life": 0}


@pytest.mark.parametrize(
    ("at", "is_trouble"), [(NOW - 61, False), (NOW - 60, True), (NOW, True)], ids=["over", "then", "since"]
)
def test_an_error_is_trouble_until_something_is_heard(tmp_path: Path, at: float, is_trouble: bool) -> None:
    error = Failure(at, "daily.cvd: status 503")
    put_rows(tmp_path, row("a", daily=9, error=error))
    machine = read(tmp_path)[0]
    assert machine.last_error == error
    assert machine.trouble == (error if is_trouble else None)


def test_the_form_for_programs(tmp_path: Path) -> None:
    error = Failure(NOW - 30, "daily.cvd: status 503")
    put_rows(tmp_path, row("a", daily=9, main=62, error=error), row("b", freshclam=None), releases={10: 5.0})
    first, second = (json.loads(json.dumps(one.to_json())) for one in read(tmp_path))
    assert first == {
        "uuid": "a",
        "address": "10.0.0.1",
        "name": None,
        "group": None,
        "cloned": False,
        "freshclam": "1.4.6",
        "os": "Linux",
        "arch": "x86_64",
        "last_seen": NOW - 60,
        "first_seen": NOW - 60 - DAY,
        "end_of_life": False,
        "databases": {
            "daily": {"version": 9, "behind": 1, "behind_since": 5.0, "seen_at": NOW - 60},
            "main": {"version": 62, "behind": 0, "behind_since": None, "seen_at": NOW - 60},
        },
        "last_error": {"at": NOW - 30, "what": "daily.cvd: status 503"},
    }
    assert (second["freshclam"], second["databases"], second["last_error"]) == (None, {}, None)


def test_what_is_advertised(store: Store) -> None:
    store.set_note("advertised/daily", [10, NOW])
    store.set_note("advertised/main", None)
    assert advertised_to_clients(store, Settings()) == {"daily": 10}


def test_what_can_be_had_offline(store: Store, make_cvd: MakeCvd) -> None:
    store.set_note("advertised/daily", [10, NOW])
    put_cvd(store, 5, make_cvd(5))
    put(store, cdiff(6), b"patch")
    put(store, cdiff(7, "main"), b"patch")
    settings = Settings.model_validate({"upstream": {"offline": True}})
    assert advertised_to_clients(store, settings) == {"daily": 6}
