"""The last day: steps, gaps, restarts, several processes on a cache."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from clamproxy import history as history_module
from clamproxy.history import SERIES, STEP, STEPS, History, Past, read_past
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.notes import UNKEPT, Notes
from tests.support.clock import Clock
from tests.support.notes import notes_in
from tests.support.stored import until

T0 = 6_000_000 * STEP
"""The beginning of a step."""


def counters(requests: int, **others: int) -> dict[str, int]:
    return {"requests": requests, "refused": 99, **others}


def shown(past: Past, requests: int, now: float, series: str = "requests") -> list[int | None]:
    values: list[int | None] = past.to_json(counters(requests), now)["series"][series]
    return values


def test_nothing_is_known_at_first() -> None:
    picture = Past().to_json(counters(5), T0 + 10)
    assert (picture["step"], picture["until"]) == (STEP, T0 + STEP)
    assert set(picture["series"]) == set(SERIES)
    assert all(values == [None] * STEPS for values in picture["series"].values())


def test_what_was_before_the_first_look_is_not_counted() -> None:
    past = Past().noted(counters(1000), T0 + 10)
    assert shown(past, 1003, T0 + 20)[-2:] == [None, 3]


def test_steps() -> None:
    past = Past().noted(counters(0), T0)
    past = past.noted(counters(7, hits=5, bytes_served=700), T0 + STEP)
    past = past.noted(counters(9, hits=6, bytes_served=900), T0 + 2 * STEP)
    series = past.to_json(counters(10, hits=6, bytes_served=1000), T0 + 2 * STEP + 3)["series"]
    assert series["requests"][-4:] == [None, 7, 2, 1]
    assert series["hits"][-4:] == [None, 5, 1, 0]
    assert series["bytes_served"][-4:] == [None, 700, 200, 100]
    assert series["misses"][-4:] == [None, 0, 0, 0]
    assert all(len(values) == STEPS for values in series.values())


def test_several_looks_in_a_step_add_up() -> None:
    past = Past().noted(counters(0), T0)
    for requests in (2, 3, 7):
        past = past.noted(counters(requests), T0 + requests)
    assert shown(past, 8, T0 + 100)[-1] == 8


def test_a_look_that_comes_late_counts_for_the_step_before() -> None:
    past = Past().noted(counters(0), T0).noted(counters(4), T0 + STEP + 0.3)
    assert shown(past, 4, T0 + STEP + 1)[-2:] == [4, 0]


def test_a_day_is_kept() -> None:
    past = Past()
    for number in range(STEPS + 20):
        past = past.noted(counters(number * number), T0 + number * STEP)
    values = shown(past, (STEPS + 19) ** 2, T0 + (STEPS + 19) * STEP + 1)
    assert values == [2 * number + 1 for number in range(20, STEPS + 19)] + [0]
    assert len(past.steps) == STEPS + 1


def test_a_gap_while_the_gateway_was_not_there() -> None:
    """What it counted after its last look belongs to the step that ran then."""
    past = Past().noted(counters(0), T0)
    past = Past.parse(json.loads(json.dumps(past.saved())))
    past = past.noted(counters(6), T0 + 4 * STEP + 10)
    assert shown(past, 8, T0 + 4 * STEP + 20)[-6:] == [None, 6, None, None, None, 2]


def test_a_restart_within_a_step() -> None:
    past = Past().noted(counters(0), T0 + 1)
    past = Past.parse(past.saved()).noted(counters(3), T0 + 60)
    assert shown(past, 5, T0 + 90)[-2:] == [None, 5]


def test_a_gap_longer_than_a_day() -> None:
    past = Past().noted(counters(0), T0).noted(counters(6), T0 + 400 * STEP)
    assert shown(past, 6, T0 + 400 * STEP) == [None] * (STEPS - 1) + [0]


def test_counters_that_begin_anew() -> None:
    """The cache was deleted: what is there was counted since."""
    past = Past().noted(counters(1000, hits=900), T0).noted(counters(3, hits=1), T0 + STEP)
    series = past.to_json(counters(3, hits=1), T0 + STEP)["series"]
    assert (series["requests"][-2:], series["hits"][-2:]) == ([3, 0], [1, 0])


def test_a_clock_that_is_set_back() -> None:
    past = Past().noted(counters(0), T0).noted(counters(5), T0 + 50 * STEP)
    past = past.noted(counters(7), T0 + 10 * STEP)
    assert shown(past, 8, T0 + 10 * STEP)[-11:] == [5, *[None] * 9, 3]
    past = past.noted(counters(9), T0 + 11 * STEP)
    assert shown(past, 9, T0 + 11 * STEP)[-2:] == [4, 0]


def test_a_clock_that_is_fast_for_a_moment() -> None:
    past = Past()
    for number in range(STEPS):
        past = past.noted(counters(number), T0 + number * STEP)
    now = T0 + STEPS * STEP
    past = past.noted(counters(STEPS), now + 10**8).noted(counters(STEPS + 1), now)
    assert shown(past, STEPS + 1, now) == [1] * STEPS


@pytest.mark.parametrize("set_back", [3 * STEP, 2 * STEPS * STEP])
async def test_after_the_clock_was_set_back_all_processes_show_the_same(set_back: int) -> None:
    """Whoever takes over the duty goes on with what the one before has saved."""
    saved: dict[str, Any] = {}
    count = {"requests": 0}
    clock = Clock(float(T0))
    on_duty, other = (History(lambda: dict(count), notes_in(saved), clock) for _ in range(2))
    for process in (on_duty, other):
        await process.sample()
    clock.now -= set_back
    for requests in (5, 12):
        count["requests"] = requests
        await on_duty.sample()
        clock.now += STEP
    count["requests"] = 20
    await other.sample()
    assert shown(other.past, 20, clock.now)[-3:] == [12, 8, 0]


def test_two_processes_that_look_at_the_same_counters() -> None:
    one = other = Past()
    for number in range(5):
        one = one.noted(counters(number * 10), T0 + number * STEP)
        other = other.noted(counters(number * 10), T0 + number * STEP + 0.5)
    assert one.steps == other.steps
    # Whichever was written last, a third one goes on with it.
    third = Past.parse(other.saved()).noted(counters(45), T0 + 4 * STEP + 9)
    assert shown(third, 45, T0 + 4 * STEP + 9)[-5:] == [10, 10, 10, 10, 5]


def test_saved_and_parsed() -> None:
    past = Past().noted(counters(0), T0).noted(counters(4, hits=2), T0 + STEP)
    assert Past.parse(json.loads(json.dumps(past.saved()))) == past


@pytest.mark.parametrize(
    "saved",
    [
        None,
        7,
        "text",
        [],
        {},
        {"series": ["requests"], "steps": [], "step": 1, "counters": [1]},
        {"series": list(SERIES), "steps": [[1, 2]], "step": 1, "counters": [0] * 6},
        {"series": list(SERIES), "steps": [], "step": 1, "counters": [-1] * 6},
        {"series": list(SERIES), "steps": [], "step": 1, "counters": [0.5] * 6},
        {"series": list(SERIES), "steps": [], "step": 1, "counters": [True] * 6},
        {"series": list(SERIES), "steps": [], "step": "1", "counters": [0] * 6},
        {"series": list(SERIES), "steps": [], "step": 1, "counters": [2**80] * 6},
        {"series": list(SERIES), "steps": {}, "step": 1, "counters": [0] * 6},
    ],
)
def test_something_else_was_saved(saved: Any) -> None:
    assert Past.parse(saved) == Past()


async def test_samples_are_taken_and_saved() -> None:
    saved: dict[str, Any] = {}
    count = {"requests": 3}
    clock = Clock(float(T0))
    history = History(lambda: dict(count), notes_in(saved), clock)
    await history.sample()
    count["requests"] = 10
    clock.now += STEP
    await history.sample()
    assert history.past.to_json(count, clock.now)["series"]["requests"][-2:] == [7, 0]
    later = History(lambda: dict(count), notes_in(saved), clock)
    assert later.past == history.past


async def test_past_is_a_value() -> None:
    history = History(lambda: {"requests": 1}, UNKEPT, Clock(float(T0)))
    before = history.past
    await history.sample()
    assert before == Past()
    assert history.past != before


async def test_runs_by_itself_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "STEP", 0.05)
    looks: list[int] = []

    def read() -> dict[str, int]:
        looks.append(1)
        return {"requests": len(looks)}

    history = History(read, UNKEPT)
    history.start()
    await until(lambda: len(looks) >= 3)
    history.stop()
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "history"]


async def test_goes_on_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history_module, "STEP", 0.05)
    looks = 0

    def read() -> dict[str, int]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("disk I/O error")
        return {"requests": looks}

    history = History(read, UNKEPT)
    history.start()
    await until(lambda: history.past.step is not None)
    history.stop()
    assert "disk I/O error" in caplog.text


async def test_stopped_before_it_was_started() -> None:
    History(dict, UNKEPT).stop()


async def test_whoever_reads_along_goes_on_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "STEP", 0.05)
    monkeypatch.setattr(history_module, "_AFTER_STEP", 0.0)
    saved: dict[str, Any] = {}
    notes = notes_in(saved)
    on_duty, leases = DirectoryLeases(tmp_path), DirectoryLeases(tmp_path)
    assert await on_duty.take("history") is not None
    history = History(lambda: counters(0), notes, leases=leases)
    errors = [RuntimeError("can't start new thread")]

    def fails_first(read: Notes) -> Past:
        if errors:
            raise errors.pop()
        return read_past(read)

    monkeypatch.setattr(history_module, "read_past", fails_first)
    history.start()
    await until(lambda: not errors)
    notes.save("day", Past().noted(counters(5), 1.0).saved())
    await until(lambda: history.past.counters)
    history.stop()
    for one in (leases, on_duty):
        one.stop()
