"""Every parser, fuzzed by atheris: it goes on from each input that has reached new code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import ROOT
from tests.support.programs import give_up
from tests.torture.conftest import Figures
from tests.torture.effort import FULL, SEED, rounds
from tests.torture.parsers import BY_NAME


# Instrumenting alone takes 8 s of a processor, which others may be using.
@pytest.mark.timeout(5400)
def test_no_parser_falls(tmp_path: Path, figures: Figures) -> None:
    if importlib.util.find_spec("atheris") is None:
        give_up("atheris is not installed")
    # Counted in runs where it has to be cheap, and in seconds where there is time.
    extent = ["--seconds", "8"] if FULL else ["--runs", str(rounds(60, 0))]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.torture.fuzzing",
            *extent,
            "--seed",
            str(SEED),
            "--crashes",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    fallen = {name: one["trouble"] for name, one in found.items() if one["trouble"]}
    figures(
        "atheris",
        parsers=len(found),
        runs=sum(one["runs"] for one in found.values()),
        fallen=len(fallen),
    )
    assert not fallen, "\n".join(f"{name}: {trouble}" for name, trouble in fallen.items())
    assert found.keys() == BY_NAME.keys()
