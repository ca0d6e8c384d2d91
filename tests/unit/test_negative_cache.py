"""What can't be had is remembered for a while."""

from __future__ import annotations

import pytest

from clamproxy import negative_cache
from clamproxy.negative_cache import NegativeCache
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def cache(clock: Clock) -> NegativeCache[str]:
    return NegativeCache(clock)


@pytest.mark.parametrize(
    ("moment", "is_remembered"),
    [pytest.param(9.9, True, id="before its time is over"), pytest.param(10.0, False, id="when it is over")],
)
def test_a_key_is_remembered_for_its_time(
    cache: NegativeCache[str], clock: Clock, moment: float, is_remembered: bool
) -> None:
    cache.add("a", 10)
    cache.add("b", 20)
    clock.now = moment
    assert ("a" in cache) is is_remembered
    assert "b" in cache


def test_adding_a_key_again_begins_its_time_anew(cache: NegativeCache[str], clock: Clock) -> None:
    cache.add("a", 10)
    clock.now = 9
    cache.add("a", 10)
    clock.now = 18
    assert "a" in cache


def test_a_key_can_be_forgotten(cache: NegativeCache[str]) -> None:
    cache.add("a", 10)
    cache.discard("a")
    cache.discard("never added")
    assert "a" not in cache


def test_no_time_is_no_memory(cache: NegativeCache[str]) -> None:
    cache.add("a", 0)
    assert "a" not in cache


def test_those_that_would_be_forgotten_first_make_room(
    cache: NegativeCache[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negative_cache, "MOST", 2)
    for key, seconds in (("an hour", 3600), ("a minute", 60), ("half an hour", 1800)):
        cache.add(key, seconds)
    assert [key in cache for key in ("an hour", "a minute", "half an hour")] == [True, False, True]
