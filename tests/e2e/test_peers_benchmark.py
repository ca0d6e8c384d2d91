"""The benchmark beside other servers, in its quick form: only what is counted is looked at, no times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import CONTENDERS
from tests.support.gateway import ROOT
from tests.support.programs import give_up

LIMIT = 300
"""Seconds for one contender on a machine that does a lot besides."""
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(LIMIT + 20)]

WORKLOADS = {"lockstep", "small", "tls", "bulk", "herd", "probe", "release"}


def measure(contender: str, directory: Path) -> list[dict[str, Any]]:
    """The measurements of a run with one contender."""
    file = directory / "results.json"
    command = [sys.executable, "-m", "benchmarks.peers", "--quick"]
    command += ["--contenders", contender, "--json", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(file.read_text())
    assert results["errors"] == {}
    measurements: list[dict[str, Any]] = results["measurements"]
    return measurements


@pytest.mark.parametrize("contender", ["clamproxy", "nginx", "squid"])
def test_every_machine_is_done_and_the_origin_is_asked_once(contender: str, tmp_path: Path) -> None:
    if reason := CONTENDERS[contender].missing():
        give_up(f"{contender}: {reason}")
    measurements = measure(contender, tmp_path)
    assert {m["workload"] for m in measurements} == WORKLOADS
    for m in measurements:
        assert m["failures"] == {}, m
        assert m["values"]["undone"] == 0, m
        assert m["values"]["requests"] >= m["values"]["machines"], m
    by_workload = {name: [m["values"] for m in measurements if m["workload"] == name] for name in WORKLOADS}
    assert [values["requests"] for values in by_workload["lockstep"]] == [400]
    assert {values["origin_files"] for values in by_workload["herd"]} == {1}
    if contender == "clamproxy":
        assert [values["origin_bytes"] for values in by_workload["probe"]] == [512]
        (release,) = by_workload["release"]
        # The new file, its patch and their signatures; and the header, once more for each second it takes.
        assert release["origin_files"] <= 4
        assert release["origin_requests"] - release["origin_files"] <= 2 + release["wall"]
