"""fleet.json: every machine can be found, whatever the size of the fleet."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.fleet.biography import Biography
from clamproxy.fleet.groups import MOST_GROUPS, OTHER, count_groups
from clamproxy.fleet.machine import Database, Machine
from clamproxy.fleet.observer import Failure
from clamproxy.messages import Response
from clamproxy.peers.answers import parse_status
from clamproxy.peers.asking import PeerAnswer
from clamproxy.peers.peers import PeerState
from clamproxy.web.machines import LONGEST_SEARCH, Query, fleet_json, select
from clamproxy.web.status import MOST_MACHINES
from tests.harness.status import TOKEN, StatusHarness, machine, text_of
from tests.support.machines import machine_of
from tests.unit.test_peers_answers import STATUS, body

DAY = 86400.0
NOW = 1_790_000_000.0


def late(number: int, releases: int, since: float | None) -> Machine:
    database = Database(10 - releases, releases, since, NOW - 60)
    return replace(machine(number), databases={"daily": database})


GROUPED = [
    replace(machine(1, daily=0), name="web01.example.net", group="servers", cloned=True),
    replace(late(2, 2, None), group="servers"),
    replace(machine(3), name="=cmd()", group="@desktops"),
    late(4, 1, NOW),
]

MACHINES = [
    late(1, 5, NOW - 5 * DAY),
    replace(late(2, 2, None), address="fd00::9", freshclam="1.0.9", end_of_life=True),
    replace(late(3, 1, NOW - 3600), address="10.0.0.20", freshclam="1.4.10", last_seen=NOW - 9),
    replace(machine(4), address="10.0.0.3", os="FreeBSD", last_seen=NOW - 7 * DAY),
    replace(machine(5, daily=0), last_error=Failure(NOW, "daily-8.cdiff: status 503"), freshclam="1.4.9"),
    replace(machine(6, daily=0, main=0), address="a socket", freshclam=None),
]


def found(query: str) -> list[int]:
    """The numbers of the machines that a query gives."""
    return [int(one.uuid[-2:]) for one in select(MACHINES, Query.parse(query), DAY, NOW)]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [1, 2, 3, 4, 5, 6]),
        ("state=behind", [1, 2, 3]),
        ("state=overdue", [1, 2]),  # of 2 nobody knows since when
        ("state=unknown", [4]),
        ("state=up_to_date", [5, 6]),
        ("state=end_of_life", [2]),
        ("q=10.0.0.3", [4]),
        ("q=FREEBSD", [4]),
        ("q=daily+503", [5]),
        ("q=status%20503", [5]),
        ("q=linux+daily&state=behind", [1, 2, 3]),
        ("q=deadbeef", []),
        ("q=000000000006", [6]),
        ("q=%3Cimg", []),
        ("q=+++", [1, 2, 3, 4, 5, 6]),
        ("sort=worst", [1, 2, 3, 4, 5, 6]),
        ("sort=-worst", [6, 5, 4, 3, 2, 1]),
        ("sort=address", [1, 4, 5, 3, 2, 6]),
        ("sort=last_seen&q=FreeBSD", [4]),
        ("sort=freshclam", [6, 2, 1, 4, 5, 3]),
        ("sort=-freshclam", [3, 5, 1, 4, 2, 6]),
        ("state=behind&sort=-address", [2, 3, 1]),
        ("v=1&colour=green", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_which_machines(query: str, numbers: list[int]) -> None:
    assert found(query) == numbers


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("group=servers", [1, 2]),
        ("group=servers&state=behind", [2]),
        ("group=-", [4]),
        ("group=nothing", []),
        ("group=", [1, 2, 3, 4]),
        ("q=SERVERS", [1, 2]),
        ("q=web01", [1]),
        ("state=cloned", [1]),
        ("sort=name", [3, 1, 2, 4]),
    ],
)
def test_names_and_groups(query: str, numbers: list[int]) -> None:
    assert [int(one.uuid[-2:]) for one in select(GROUPED, Query.parse(query), DAY, NOW)] == numbers


async def test_csv(store: Store) -> None:
    harness = StatusHarness(store, machines=GROUPED)
    response = await harness.ask("/fleet.csv?sort=address")
    assert response.headers["Content-Disposition"] == 'attachment; filename="fleet.csv"'
    text = text_of(response)
    assert text.count("\r\n") == text.count("\n") == 5
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [line["name"] for line in lines] == ["web01.example.net", "", "'=cmd()", ""]
    assert [line["group"] for line in lines] == ["servers", "servers", "'@desktops", ""]
    first, second, third, _ = lines
    assert (first["state"], first["cloned"], first["overdue"]) == ("up_to_date", "yes", "no")
    assert (second["releases_behind"], second["overdue"], second["daily_behind"]) == ("2", "yes", "2")
    assert second["daily_behind_since"] == ""
    assert datetime.fromisoformat(first["last_seen"]).timestamp() == pytest.approx(
        GROUPED[0].last_seen, abs=1
    )
    assert first["last_seen"].endswith("+00:00")
    assert third["daily"] == ""
    assert len((await harness.ask("/fleet.csv?group=servers&limit=1")).body.splitlines()) == 2  # type: ignore[union-attr]
    assert (await harness.ask("/fleet.csv?state=x")).status == 400
    harness.guard()
    assert (await harness.ask("/fleet.csv")).status == 401


async def test_csv_of_other_gateways(store: Store) -> None:
    status = parse_status(body(STATUS))
    other = PeerState("b:8080", "http://b:8080", up=True, answer=PeerAnswer(status, (machine(9),)))
    harness = StatusHarness(store, machines=GROUPED, peers=[other])

    async def places(query: str) -> list[tuple[str, str | None]]:
        text = text_of(await harness.ask(f"/fleet.csv{query}"))
        lines = csv.DictReader(io.StringIO(text, newline=""))
        return [(line["uuid"][-1], line.get("gateway")) for line in lines]

    assert await places("?sort=address") == [("1", None), ("2", None), ("3", None), ("4", None)]
    assert await places("?sort=-address&gateway=all&limit=2") == [("9", "b:8080"), ("4", "")]
    assert await places("?gateway=b:8080") == [("9", "b:8080")]
    refused = await harness.ask("/fleet.csv?gateway=c")
    assert (refused.status, text_of(refused)) == (400, "clamproxy: gateway is one of all, b:8080\n")
    assert "Content-Disposition" not in refused.headers


async def test_one_machine(store: Store) -> None:
    one = GROUPED[0]
    harness = StatusHarness(store, machines=GROUPED)
    harness.biographies[one.uuid] = Biography([one], [], [("1.4.6", 5.0)], [], [], 7, 3.0)
    story = values_of(await harness.ask(f"/fleet.json?machine={one.uuid.upper()}"))
    assert (story["uuid"], story["name"], story["cloned"]) == (one.uuid, "web01.example.net", True)
    assert (story["machines"], story["request_count"]) == ([one.to_json()], 7)
    assert story["freshclam"] == [{"version": "1.4.6", "at": 5.0}]
    assert (await harness.ask("/fleet.json?machine=x")).status == 404
    harness.guard()
    assert (await harness.ask(f"/fleet.json?machine={one.uuid}")).status == 401


def test_groups_are_counted() -> None:
    assert count_groups(MACHINES, DAY, NOW) == []
    assert count_groups(GROUPED, DAY, NOW) == [
        {
            "group": name,
            "total": total,
            "behind": behind,
            "unknown": unknown,
            "up_to_date": fine,
            "overdue": late,
        }
        for name, total, behind, unknown, fine, late in (
            ("@desktops", 1, 0, 1, 0, 0),
            ("servers", 2, 1, 0, 1, 1),
            (None, 1, 1, 0, 0, 0),
        )
    ]


def test_only_so_many_groups_are_counted_apart() -> None:
    machines = [replace(machine(n, daily=0), group=f"group {n:03}") for n in range(MOST_GROUPS + 5)]
    machines.append(machine(900))
    *shown, other, alone = count_groups(machines, DAY, NOW)
    assert [one["group"] for one in shown] == [f"group {n:03}" for n in range(MOST_GROUPS)]
    assert (other["group"], other["total"], other["up_to_date"]) == (OTHER, 5, 5)
    assert (alone["group"], alone["total"]) == (None, 1)


def test_order_by_time() -> None:
    assert found("sort=last_seen")[0] == 4
    assert found("sort=-last_seen")[-1] == 4
    assert len(found("sort=first_seen")) == 6


COUNTS = {"enabled": True, "total": 6, "behind_for": DAY}


@pytest.mark.parametrize(
    ("query", "numbers", "offset"),
    [
        ("", [1, 2, 3, 4, 5, 6], 0),
        ("limit=2", [1, 2], 0),
        ("limit=2&offset=4", [5, 6], 4),
        ("offset=5", [6], 5),
        ("offset=6&limit=9", [], 6),
        ("offset=999999999", [], 999_999_999),
        ("limit=0", [], 0),
    ],
)
def test_pages(query: str, numbers: list[int], offset: int) -> None:
    values = json.loads(fleet_json(MACHINES, COUNTS, Query.parse(query), NOW))
    assert [int(one["uuid"][-2:]) for one in values.pop("machines")] == numbers
    assert values == COUNTS | {"now": NOW, "found": 6, "offset": offset}


def test_a_machine_in_json_is_the_same_everywhere() -> None:
    values = json.loads(fleet_json(MACHINES, COUNTS, Query(), NOW))
    assert values["machines"] == [one.to_json() for one in MACHINES]
    assert [machine_of(one) for one in values["machines"]] == MACHINES


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("state=all", "state is one of behind, "),
        ("sort=uuid", "sort is one of worst, "),
        ("limit=-1", "limit is a whole number"),
        ("limit=1e3", "limit is a whole number"),
        ("limit=%D9%A3", "limit is a whole number"),
        ("offset=1234567890", "offset is a whole number"),
        (f"q={'x' * (LONGEST_SEARCH + 1)}", "q has at most"),
        ("&".join("x=1" for _ in range(99)), "fields"),
    ],
)
async def test_queries_that_make_no_sense(store: Store, query: str, words: str) -> None:
    response = await StatusHarness(store, machines=[]).ask(f"/fleet.json?{query}")
    assert response.status == 400
    assert words in text_of(response)


def values_of(response: Response) -> dict[str, Any]:
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    values: dict[str, Any] = json.loads(text_of(response))
    return values


async def test_the_whole_fleet(store: Store) -> None:
    """Without a limit it is complete; status.json lists the worst and counts the same."""
    machines = [machine(number, daily=0) for number in range(MOST_MACHINES + 700)]
    machines += [late(9001, 3, NOW), late(9002, 1, None)]
    harness = StatusHarness(store, machines=machines)
    whole = values_of(await harness.ask("/fleet.json"))
    status = json.loads(text_of(await harness.ask("/status.json")))
    assert len(whole["machines"]) == whole["total"] == whole["found"] == MOST_MACHINES + 702
    assert len({one["uuid"] for one in whole["machines"]}) == len(machines)
    assert whole["machines"][:MOST_MACHINES] == status["fleet"].pop("machines")
    assert status["fleet"].items() <= whole.items()
    found = values_of(await harness.ask("/fleet.json?q=0.0.2.9&state=up_to_date&limit=3"))
    assert 0 < len(found["machines"]) <= 3


async def test_no_fleet(store: Store) -> None:
    values = values_of(await StatusHarness(store).ask("/fleet.json?limit=5"))
    assert (values["enabled"], values["total"], values["found"], values["machines"]) == (False, 0, 0, [])


async def test_the_setting_says_who_is_overdue(store: Store) -> None:
    settings = Settings.model_validate({"fleet": {"behind_for": "365d"}})
    harness = StatusHarness(store, settings, machines=[late(1, 1, NOW - DAY), late(2, 1, None)])
    values = values_of(await harness.ask("/fleet.json?state=overdue"))
    assert (values["behind"], values["overdue"], values["behind_for"]) == (2, 1, 365 * DAY)
    assert [one["uuid"][-1] for one in values["machines"]] == ["2"]


async def test_a_brief_status(store: Store) -> None:
    harness = StatusHarness(store, machines=[machine(1, daily=0)])
    brief = json.loads(text_of(await harness.ask("/status.json?machines=0")))
    whole = json.loads(text_of(await harness.ask("/status.json")))
    assert (brief["fleet"].pop("machines"), len(whole["fleet"].pop("machines"))) == ([], 1)
    assert brief == whole


@pytest.mark.parametrize("value", ["-1", "abc", "1e9", "5", "00", "0&machines=0"])
async def test_a_status_with_another_number_of_machines(store: Store, value: str) -> None:
    """As for a page of the list, what can't be given is refused."""
    response = await StatusHarness(store, machines=[]).ask(f"/status.json?machines={value}")
    assert (response.status, "machines can only be 0" in text_of(response)) == (400, True)


async def test_the_list_is_guarded(store: Store) -> None:
    harness = StatusHarness(store, machines=[machine(1)])
    harness.guard()
    assert (await harness.ask("/fleet.json?limit=1")).status == 401
    assert (await harness.ask("/fleet.json?limit=1", Authorization=f"Bearer {TOKEN}")).status == 200


async def test_the_loop_goes_on_meanwhile(store: Store) -> None:
    """Many who ask for all of it are served one after the other, by a thread."""
    harness = StatusHarness(store, machines=[machine(number, daily=0) for number in range(3000)])
    await harness.ask("/fleet.json?limit=1")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    responses = await asyncio.gather(*(harness.ask(f"/fleet.json?q=10.0.{n}.") for n in range(8)))
    ticking.cancel()
    assert {response.status for response in responses} == {200}
    assert ticks > 50
