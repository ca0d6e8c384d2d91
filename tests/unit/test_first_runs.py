"""First runs: a machine's two requests may come to different processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from clamproxy.messages import Request
from clamproxy.serving import first_runs
from clamproxy.serving.first_runs import LONGEST_RUN, FirstRuns
from tests.support.clock import Clock
from tests.support.stored import cvd


def request(number: int) -> Request:
    return Request("GET", "/daily.cvd", (("User-Agent", f"ClamAV/1.4.6 (UUID: {number})"),), "10.0.0.1")


def test_another_process_answers_again_but_only_once(tmp_path: Path) -> None:
    given, asked = FirstRuns(tmp_path / "runs"), FirstRuns(tmp_path / "runs")
    assert not asked.take(request(1), cvd(5))
    given.note(request(1), cvd(5))
    assert not asked.take(request(2), cvd(5))
    assert not asked.take(request(1), cvd(6))
    assert asked.take(request(1), cvd(5))
    assert not given.take(request(1), cvd(5))


def test_what_is_too_old_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_runs, "_SWEPT_EVERY", 1)
    clock = Clock()
    runs = FirstRuns(tmp_path / "runs", clock)
    for number in (1, 2):
        runs.note(request(number), cvd(5))
    clock.now += LONGEST_RUN
    assert not runs.take(request(1), cvd(5))
    runs.note(request(3), cvd(5))
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    runs = FirstRuns(tmp_path / "runs")
    runs.note(request(1), cvd(5))
    assert not runs.take(request(1), cvd(5))


def test_invented_machines_are_not_remembered_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_runs, "_SWEPT_EVERY", 1)
    monkeypatch.setattr(first_runs, "_MOST", 3)
    clock = Clock()
    runs = FirstRuns(tmp_path / "runs", clock)
    for number in range(10):
        runs.note(request(number), cvd(5))
    assert len(list((tmp_path / "runs").iterdir())) == 3
    clock.now += LONGEST_RUN
    runs.note(request(10), cvd(5))
    assert runs.take(request(10), cvd(5))
