"""Rates: the notation, and which one applies when."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.config.rates import DEFAULT, LEAST_RATE, RATE, Hours, Rates, write_rate
from clamproxy.config.units import KIB, MIB
from clamproxy.pace import LimitInForce
from tests.support.clock import Clock

MONDAY = datetime(2026, 11, 23)
BERLIN = ZoneInfo("Europe/Berlin")
DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")


def at(day: str, clock: str) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=DAYS.index(day), hours=hour, minutes=minute)


# The notation


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("2MB/s", 2_000_000),
        ("500KiB/s", 500 * KIB),
        ("500KB/s", 500_000),
        ("1.5MiB/s", 3 * MIB // 2),
        ("1M/s", MIB),
        ("20000B/s", 20_000),
        (" 20000 B/s ", 20_000),
        ("4Mbit/s", 500_000),
        ("800kbit/s", 100_000),
        ("1Gbit/s", 125_000_000),
        (65536, 65536),
    ],
)
def test_rates_as_people_write_them(text: object, rate: int) -> None:
    assert RATE.parse(text) == rate


@pytest.mark.parametrize(
    "text", ["", "2MB", "2 MB per s", "fast", "-1MB/s", "2Mbps", "2mbit/s", True, None, []]
)
def test_what_is_no_rate(text: object) -> None:
    with pytest.raises(ValueError, match="not a rate"):
        RATE.parse(text)


@given(st.integers(LEAST_RATE, 2**40))
def test_a_rate_is_written_so_that_it_is_read_again(rate: int) -> None:
    assert RATE.parse(write_rate(rate)) == rate


@pytest.mark.parametrize(
    "text",
    [
        *("", "8", "8-", "8-25", "8-8", "24-6", "8:60-9", "8.30-9", "18-8-9"),
        *("Mon", "mo-fr", "Mo-", "Mo Fr", "Mo-Fr8-18", "Mo-Fr 8-18 extra", "Mo-Fr, 8-18", "24:30-3"),
    ],
)
def test_what_are_no_hours(text: str) -> None:
    with pytest.raises(ValueError, match=r"^"):
        Hours.parse(text)


# Which hours


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("Mo-Fr 8-18", "Mo 8:00, We 12:30, Fr 17:59", "Mo 7:59, Mo 18:00, Sa 12:00, Su 8:00"),
        ("8:30-18:00", "Mo 8:30, Su 17:59", "Mo 8:29, Su 18:00"),
        ("08:30-9", "Mo 8:30, Mo 8:59", "Mo 9:00"),
        ("Sa,Su", "Sa 0:00, Su 23:59", "Fr 23:59, Mo 0:00"),
        ("Fr-Mo", "Fr 0:00, Sa 12:00, Su 12:00, Mo 23:59", "Tu 0:00, Th 23:59"),
        ("22-6", "Mo 0:00, Mo 5:59, We 22:00, Su 23:59", "Mo 6:00, Mo 21:59"),
        ("Fr 22-6", "Fr 22:00, Sa 5:59", "Fr 5:59, Sa 6:00, Sa 22:00"),
        ("Su 22-6", "Su 22:00, Mo 5:59", "Mo 6:00, Su 5:59, Mo 22:00"),
        ("Mo 8-12, 13-18", "Mo 8:00, Mo 13:00", "Mo 12:00, Mo 12:59, Tu 8:00"),
        ("Mo, We-Th 0-24", "Mo 0:00, We 23:59, Th 0:00", "Tu 0:00, Fr 0:00"),
        ("0-24", "Mo 0:00, Su 23:59", ""),
        ("18-24", "Mo 18:00, Mo 23:59", "Mo 0:00, Mo 17:59"),
        ("18-0", "Mo 18:00, Mo 23:59", "Mo 0:00, Mo 17:59"),
    ],
)
def test_hours_of_the_week(text: str, inside: str, outside: str) -> None:
    hours = Hours.parse(text)
    for moments, expected in ((inside, True), (outside, False)):
        for moment in filter(None, moments.split(", ")):
            assert hours.include(at(*moment.split())) is expected, moment


@given(
    day=st.integers(0, 6),
    begin=st.integers(0, 24 * 60 - 1),
    length=st.integers(1, 24 * 60 - 1),
    probe=st.integers(0, 7 * 24 * 60 - 1),
)
def test_a_span_is_as_long_as_it_says_wherever_it_begins(
    day: int, begin: int, length: int, probe: int
) -> None:
    end = (begin + length) % (24 * 60)
    hours = Hours.parse(f"{DAYS[day]} {begin // 60}:{begin % 60:02}-{end // 60}:{end % 60:02}")
    since = (probe - day * 24 * 60 - begin) % (7 * 24 * 60)
    assert hours.include(MONDAY + timedelta(minutes=probe)) is (since < length)


def test_the_first_entry_that_includes_the_moment_counts() -> None:
    rates = Rates.parse({"Mo 12-13": None, "Mo-Fr 8-18": "500KB/s", DEFAULT: "2MB/s"})
    assert rates.at(at("Mo", "12:30")) is None
    assert rates.at(at("Tu", "12:30")) == 500_000
    assert rates.at(at("Su", "12:30")) == 2_000_000
    assert Rates.parse({"Mo": "1MB/s"}).at(at("Tu", "0:00")) is None


@pytest.mark.parametrize(
    "value", ["2MB/s", {"22-6": None, DEFAULT: "64KiB/s"}, {"Mo-Fr 8-18": "500kB/s", DEFAULT: None}]
)
def test_rates_are_written_as_they_were_read(value: object) -> None:
    assert Rates.parse(value).write() == value


# Summer time


@pytest.mark.parametrize(
    ("day", "minutes"),
    [
        (datetime(2026, 3, 29), 0),  # 2:00 to 3:00 doesn't exist
        (datetime(2026, 10, 25), 120),  # and exists twice
        (datetime(2026, 10, 26), 60),
    ],
)
def test_hours_go_by_the_clock_on_the_wall(day: datetime, minutes: int) -> None:
    hours, begin = Hours.parse("2-3"), day.replace(tzinfo=BERLIN).astimezone(UTC)
    moments = [(begin + timedelta(minutes=minute)).astimezone(BERLIN) for minute in range(23 * 60)]
    assert sum(hours.include(moment) for moment in moments) == minutes


def test_the_limit_in_force_is_that_of_the_local_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        clock = Clock(datetime(2026, 3, 27, 7, 59, 59, tzinfo=BERLIN).timestamp())  # a Friday
        limit = LimitInForce("upstream.rate_limit", clock)
        limit.follow(Rates.parse({"Mo-Fr 8-18": "500kB/s"}))
        assert limit.now() is None
        clock.now += 1
        assert [limit.now() for _ in range(3)] == [500_000] * 3
        clock.now = datetime(2026, 3, 30, 7, 59, tzinfo=BERLIN).timestamp()  # summer time has begun
        assert limit.now() is None
        clock.now += 60
        assert limit.now() == 500_000
        limit.follow(Rates.parse("1MB/s"))
        limit.follow(None)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert caplog.messages == [
        f"upstream.rate_limit: {what} from now on."
        for what in ("500kB/s", "no limit", "500kB/s", "1MB/s", "no limit")
    ]
