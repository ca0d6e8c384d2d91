"""What is kept up besides the requests of machines: their names, and the trend of 30 days."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.settings import Settings
from clamproxy.fleet import fleet_upkeep
from clamproxy.fleet.fleet_upkeep import FleetUpkeep, take_sample
from clamproxy.fleet.live_labels import LiveLabels
from clamproxy.fleet.machine_names import LONGEST
from clamproxy.fleet.reading import read_trend
from clamproxy.fleet.reverse_dns import SHORTEST, WITHOUT_ANSWER, WITHOUT_NAME
from clamproxy.fleet.table import Table, reading
from clamproxy.fleet.trend import STEP, STEPS, Sample, hour_of, to_json
from tests.harness.fleet import FleetHarness, uuid
from tests.harness.status import machine
from tests.support.clock import Clock
from tests.support.dns_server import FakeDns, Mode
from tests.support.stored import until

NOW = 1_795_000_123.0
YEAR = 365 * 86400


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[FleetHarness]:
    harness = FleetHarness(tmp_path)
    yield harness
    harness.writer.close()


@pytest.fixture
def name_server() -> Iterator[FakeDns]:
    with FakeDns() as server:
        server.pointers["10.0.0.1"] = "Web01.example.net."
        server.pointers["10.0.0.2"] = "<b>\\010evil\\.name</b>.example."
        server.pointers["fd00::1"] = "six.example."
        yield server


def made(harness: FleetHarness, sample: Sample | None = None, **settings: Any) -> FleetUpkeep:
    values = Settings.model_validate(settings)
    return FleetUpkeep(harness.directory, values, harness.writer, LiveLabels(None), lambda: sample)


async def meet(harness: FleetHarness, *addresses: str) -> None:
    fleet = harness.make()
    for number, address in enumerate(addresses):
        fleet.see(harness.visit(number, address=address))
    await harness.written()


def names(harness: FleetHarness) -> dict[str, str | None]:
    return {one.address: one.name for one in harness.machines()}


def lifetimes(harness: FleetHarness, now: float) -> dict[str, float]:
    with reading(harness.directory) as rows:
        assert rows is not None
        query = "SELECT address, until FROM names"
        return {address: until - now for address, until in rows.names._connection.execute(query)}


class TestNames:
    async def test_they_are_asked_for_once(
        self, harness: FleetHarness, name_server: FakeDns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(NOW)
        monkeypatch.setattr("clamproxy.fleet.fleet_upkeep.time.time", clock)
        await meet(harness, "10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "a socket")
        keeper = made(harness, fleet={"reverse_dns": True, "nameservers": [name_server.nameserver]})
        assert await keeper.name_some() >= 0
        assert names(harness) == {
            "10.0.0.1": "web01.example.net",
            "10.0.0.2": "bevilnameb.example",
            "10.0.0.3": None,
            "fd00::1": "six.example",
            "a socket": None,
        }
        assert lifetimes(harness, NOW) == {
            **dict.fromkeys(("10.0.0.1", "10.0.0.2", "fd00::1"), SHORTEST),  # the TTL is shorter
            **dict.fromkeys(("10.0.0.3", "a socket"), WITHOUT_NAME),
        }
        asked = len(name_server.queries)
        assert asked == 4
        await keeper.name_some()
        assert len(name_server.queries) == asked
        name_server.pointers["10.0.0.1"] = "web02.example.net."
        clock.now += SHORTEST + 1
        await keeper.name_some()
        assert names(harness)["10.0.0.1"] == "web02.example.net"
        assert len(name_server.queries) == asked + 3

    async def test_names_that_were_asked_for_while_the_clock_was_fast(
        self, harness: FleetHarness, name_server: FakeDns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(NOW + YEAR)
        monkeypatch.setattr("clamproxy.fleet.fleet_upkeep.time.time", clock)
        await meet(harness, "10.0.0.1")
        keeper = made(harness, fleet={"reverse_dns": True, "nameservers": [name_server.nameserver]})
        await keeper.name_some()
        clock.now = NOW
        name_server.pointers["10.0.0.1"] = "web02.example.net."
        await keeper.name_some()
        assert names(harness) == {"10.0.0.1": "web02.example.net"}
        asked = len(name_server.queries)
        await keeper.name_some()
        assert len(name_server.queries) == asked

    async def test_a_few_at_a_time(
        self, harness: FleetHarness, name_server: FakeDns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fleet_upkeep, "BATCH", 2)
        await meet(harness, "10.0.0.1", "10.0.0.2", "10.0.0.3")
        keeper = made(harness, fleet={"reverse_dns": True, "nameservers": [name_server.nameserver]})
        assert 0 <= await keeper.name_some() <= 2 / 20
        assert len(name_server.queries) == 2

    async def test_a_server_that_fails_is_left_alone_for_a_while(
        self, harness: FleetHarness, name_server: FakeDns
    ) -> None:
        name_server.mode = Mode.SERVFAIL
        await meet(harness, "10.0.0.1")
        keeper = made(harness, fleet={"reverse_dns": True, "nameservers": [name_server.nameserver]})
        assert await keeper.name_some() == fleet_upkeep.LONG_REST
        assert names(harness) == {"10.0.0.1": None}
        assert 0 < WITHOUT_ANSWER < WITHOUT_NAME < LONGEST

    async def test_names_of_machines_that_are_gone_are_dropped(
        self, harness: FleetHarness, name_server: FakeDns
    ) -> None:
        await meet(harness, "10.0.0.1")
        keeper = made(harness, fleet={"reverse_dns": True, "nameservers": [name_server.nameserver]})
        await keeper.name_some()
        with Table(harness.directory).writing() as rows:
            rows.forget(uuid(0), harness.clock.now)
        harness.clock.now += 1
        await meet(harness, "10.0.0.3")
        await keeper.name_some()
        assert set(lifetimes(harness, NOW)) == {"10.0.0.3"}

    @pytest.mark.parametrize(
        ("fleet", "offline", "asks"),
        [
            ({}, False, False),
            ({"reverse_dns": True}, False, True),
            ({"reverse_dns": True}, True, False),
            ({"reverse_dns": True, "nameservers": ["127.0.0.1:9"]}, True, True),
            ({"nameservers": ["127.0.0.1:9"]}, False, False),
            ({"reverse_dns": True, "enabled": False}, False, False),
        ],
    )
    async def test_who_is_asked(
        self,
        harness: FleetHarness,
        monkeypatch: pytest.MonkeyPatch,
        fleet: dict[str, Any],
        offline: bool,
        asks: bool,
    ) -> None:
        looked: list[int] = []

        async def name_some(self: FleetUpkeep) -> float:
            looked.append(1)
            return 60.0

        monkeypatch.setattr(FleetUpkeep, "name_some", name_some)
        monkeypatch.setattr(socket, "getaddrinfo", None)
        keeper = made(harness, fleet=fleet, upstream={"offline": offline})
        keeper.start()
        if asks:
            await until(lambda: bool(looked))
        await harness.writer.run(lambda: None)
        keeper.stop()
        assert bool(looked) == asks

    async def test_they_go_when_they_are_switched_off(
        self, harness: FleetHarness, name_server: FakeDns
    ) -> None:
        await meet(harness, "10.0.0.1")
        await made(harness, fleet={"reverse_dns": True, "nameservers": [name_server.nameserver]}).name_some()
        keeper = made(harness)
        keeper.start()
        await harness.writer.run(lambda: None)
        keeper.stop()
        assert names(harness) == {"10.0.0.1": None}


class TestTrend:
    async def test_one_sample_an_hour_whoever_takes_it(self, harness: FleetHarness) -> None:
        hour = hour_of(NOW)
        for sample in (Sample(hour - 2, 10, 8, 1), Sample(hour, 10, 9, 0), Sample(hour, 20, 1, 20), None):
            await made(harness, sample).sample()
        shares = read_trend(harness.directory, NOW)
        assert (shares["step"], shares["until"]) == (STEP, (hour + 1) * STEP)
        assert shares["series"]["up_to_date"][-3:] == [0.8, None, 0.9]
        assert shares["series"]["overdue"][-3:] == [0.1, None, 0.0]
        assert {len(values) for values in shares["series"].values()} == {STEPS}

    async def test_thirty_days(self, harness: FleetHarness) -> None:
        hour = hour_of(NOW)
        for number in (hour - STEPS, hour - STEPS + 1, hour):
            await made(harness, Sample(number, 1, 1, 0)).sample()
        with reading(harness.directory) as rows:
            assert rows is not None
            assert [one.hour for one in rows.shares.until(hour)] == [hour - STEPS + 1, hour]
            assert [one.hour for one in rows.shares.until(hour - 1)] == [hour - STEPS, hour - STEPS + 1]

    @pytest.mark.parametrize("off", [YEAR, -YEAR])
    async def test_a_clock_that_is_wrong_for_a_moment(self, harness: FleetHarness, off: int) -> None:
        hour = hour_of(NOW)
        wrong = hour + off // STEP
        for number in (*range(hour - STEPS, hour), wrong, hour):
            await made(harness, Sample(number, 1, 1, 0)).sample()
        with reading(harness.directory) as rows:
            assert rows is not None
            assert [one.hour for one in rows.shares.until(hour)] == [*range(hour - STEPS + 1, hour + 1)]

    async def test_no_more_are_kept_than_can_be_shown(self, harness: FleetHarness) -> None:
        hour = hour_of(NOW)
        for number in range(hour - STEPS - 50, hour + 1):
            await made(harness, Sample(number, 1, 1, 0)).sample()
        with reading(harness.directory) as rows:
            assert rows is not None
            (count,) = rows.shares._connection.execute("SELECT count(*) FROM shares").fetchone()
        assert count == STEPS

    def test_no_table(self, tmp_path: Path) -> None:
        assert read_trend(tmp_path, NOW) == to_json([], NOW)

    def test_what_is_counted(self) -> None:
        late, fine, unknown = machine(1, daily=3), machine(2, daily=0), machine(3)
        assert take_sample([late, fine, unknown], 86400.0, NOW) == Sample(hour_of(NOW), 3, 1, 1)
        assert take_sample([unknown], 86400.0, NOW) is None
        assert take_sample([], 86400.0, NOW) is None
