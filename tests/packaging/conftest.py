"""The wheel and the sdist, built as `make package` does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.contrib import ROOT
from tests.support.programs import require_program

VENV = Path(sys.executable).parent.parent
_NOT_SOURCE = {".git", ".venv", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
_NOT_SOURCE |= {"build", "ca", "cache", "cache-state", "dist", "man"}
"""What a checkout may have in its root besides the source."""
BUILD_LIMIT = 300
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Packages:
    wheel: Path
    sdist: Path


def _left_out(directory: str, names: list[str]) -> set[str]:
    not_source = _NOT_SOURCE if Path(directory) == ROOT else set()
    return not_source.intersection(names) | {name for name in names if name == "__pycache__"}


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Built in a copy of the checkout."""
    make = require_program("make")
    copy = tmp_path_factory.mktemp("packages") / "clamproxy"
    shutil.copytree(ROOT, copy, ignore=_left_out)
    # The tests' own environment, which is to stay as it is.
    command = [make, "package", f"VENV={VENV}", f"--assume-old={VENV}/.dev"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=BUILD_LIMIT)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    return Packages(wheel, sdist)
