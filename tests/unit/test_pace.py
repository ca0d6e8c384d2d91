"""How the link and the clients' rates are shared, by a clock that only waiting moves."""

from __future__ import annotations

import asyncio
import heapq
import tracemalloc
from itertools import count

import pytest

from clamproxy.access.client_rates import ALLOWANCE, LONGEST_DEBT, ClientRates
from clamproxy.config.rates import LEAST_RATE, Rates
from clamproxy.config.units import KIB, MIB
from clamproxy.origin.link import Link
from clamproxy.pace import METER_WINDOW, Meter
from tests.support.clock import Clock

CHUNK = 256 * KIB


class Reader:
    """A transfer that reads over a link as fast as it may."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.delay = 0.0

    def pause(self, seconds: float) -> None:
        self.delay = seconds


def ends(link: Link, clock: Clock, *readers: tuple[float, int]) -> list[float]:
    """Run transfers, each given by its start and size; returns how many seconds each one took."""
    begun, numbers, ended = clock.now, count(), {}
    due = [(begun + start, next(numbers), start, Reader(size)) for start, size in readers]
    heapq.heapify(due)
    while due:
        at, number, start, reader = heapq.heappop(due)
        clock.now = max(clock.now, at)
        length = min(link.turn(CHUNK), reader.left)
        reader.left -= length
        reader.delay = 0.0
        link.pay(length, reader)
        if reader.left:
            heapq.heappush(due, (clock.now + reader.delay, number, start, reader))
        else:
            ended[number] = clock.now - begun - start
    return [ended[number] for number in range(len(readers))]


def limited(rate: object, clock: Clock) -> Link:
    link = Link(clock)
    link.follow(Rates.parse(rate))
    return link


@pytest.mark.parametrize("rate", [LEAST_RATE, 500_000, 20 * MIB])
def test_one_transfer_gets_the_whole_link_and_no_more(rate: int) -> None:
    clock = Clock()
    (took,) = ends(limited(rate, clock), clock, (0, 20 * rate))
    assert took == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("rate", [LEAST_RATE, 500_000, 20 * MIB])
def test_transfers_share_the_link_equally(rate: int) -> None:
    clock = Clock()
    took = ends(limited(rate, clock), clock, *[(0, 5 * rate)] * 4)
    assert took == pytest.approx([20] * 4, rel=0.05)


def test_a_patch_does_not_wait_for_large_files() -> None:
    clock, rate = Clock(), 500_000
    *_, patch, header = ends(limited(rate, clock), clock, *[(0, 100_000_000)] * 3, (20, 20_000), (20, 512))
    assert patch < 0.5
    assert header == 0


def test_with_as_many_transfers_as_there_can_be_nobody_is_silent_for_long() -> None:
    clock = Clock()
    link, silence = limited(LEAST_RATE, clock), 0.0
    readers = [Reader(MIB) for _ in range(40)]
    for _ in range(10):
        for reader in readers:
            link.pay(link.turn(CHUNK), reader)
            silence = max(silence, reader.delay)
    assert silence < 10 * 40 * KIB / LEAST_RATE + 1
    one_round = 40 * KIB / LEAST_RATE
    assert one_round < 5  # the window in which a connection must bring something


def test_without_a_limit_nobody_waits_and_all_is_read_at_once() -> None:
    clock = Clock()
    link = Link(clock)
    assert link.turn(CHUNK) == CHUNK
    assert link.receive_buffer is None
    assert ends(link, clock, (0, 10**9)) == [0]


def test_a_limit_that_is_lifted_does_not_go_on() -> None:
    clock = Clock()
    link = limited("16KiB/s", clock)
    link.pay(16 * KIB, Reader(1))
    link.follow(None)
    reader = Reader(1)
    link.pay(MIB, reader)
    assert reader.delay == 0


def test_the_receive_buffer_holds_less_than_a_second_of_the_link() -> None:
    assert limited("500KB/s", Clock()).receive_buffer == 250_000
    assert limited("16KiB/s", Clock()).receive_buffer == 16 * KIB
    assert limited("1GB/s", Clock()).receive_buffer == 4 * MIB


def test_the_present_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    link = Link(clock)
    for _ in range(METER_WINDOW):
        link.pay(1000, Reader(1))
        clock.now += 1
    assert link.rate == 1000
    clock.now += METER_WINDOW / 2
    assert link.rate == 500
    clock.now += METER_WINDOW
    assert link.rate == 0


def test_a_meter_stays_small() -> None:
    meter = Meter()
    for second in range(10_000):
        meter.count(1, second)
        meter.count(1, second + 0.5)
    assert meter.rate(10_000) == 2


# Clients


def clients(rate: object, clock: Clock) -> ClientRates:
    rates = ClientRates(clock)
    rates.follow(Rates.parse(rate))
    return rates


def test_a_clients_connections_share_its_rate() -> None:
    clock = Clock()
    rates = clients("100kB/s", clock)
    delays = [rates.charge("192.0.2.1", 100_000) for _ in range(4)]
    assert delays == pytest.approx([0, 1, 2, 3])
    assert rates.charge("192.0.2.2", 100_000) == 0
    assert rates.waiting() == 1


def test_small_answers_to_an_idle_client_come_at_once() -> None:
    clock = Clock()
    rates = clients("100kB/s", clock)
    for _ in range(9):
        assert rates.charge("192.0.2.1", 10_000) == 0
        assert rates.delay_of("192.0.2.1") == 0
    rates.charge("192.0.2.1", 100_000)
    assert rates.delay_of("192.0.2.1") == pytest.approx(0.9)
    clock.now += 0.9
    assert rates.delay_of("192.0.2.1") == 0


async def test_a_body_is_sent_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    rates = clients("160kB/s", clock)
    share, begun = rates.share_of("192.0.2.1"), clock.now
    assert share.turn == 10_000
    for number in range(160):
        await share.pay(share.turn, is_last=number == 159)
    assert clock.now - begun == pytest.approx(10 - ALLOWANCE, abs=0.1)


async def test_nobody_waits_long_for_a_burst_of_small_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of machines behind one address ask at the same time, while one of them takes a large body."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    clock = Clock()
    rates = clients("1MB/s", clock)
    for _ in range(900):
        rates.charge("192.0.2.1", 300_000)
    share = rates.share_of("192.0.2.1")
    await share.pay(share.turn, is_last=False)
    assert pauses == [LONGEST_DEBT]
    clock.now += LONGEST_DEBT
    assert rates.delay_of("192.0.2.1") == 0


async def test_a_limit_that_comes_during_a_body_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    rates = ClientRates(clock)
    share, begun = rates.share_of("192.0.2.1"), clock.now
    await share.pay(8 * MIB, is_last=False)
    assert clock.now == begun
    rates.follow(Rates.parse("160kB/s"))
    for _ in range(160):
        await share.pay(share.turn, is_last=False)
    assert clock.now - begun == pytest.approx(10 - ALLOWANCE, abs=0.1)


def test_without_a_limit_nothing_is_paced_or_remembered() -> None:
    rates = ClientRates(Clock())
    assert rates.charge("192.0.2.1", MIB) == 0
    assert rates.delay_of("192.0.2.1") == 0


def test_memory_for_many_clients_is_bounded() -> None:
    clock = Clock()
    rates = clients("1MB/s", clock)
    tracemalloc.start()
    try:
        for number in range(100_000):
            rates.charge(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1000)
            clock.now += 0.001  # a thousand new clients per second
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 2 * MIB
