"""Small files that would become huge: each is refused before it takes much memory or time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.forge import forge_keys
from tests.torture.bombs import databases, patches
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

HARMLESS = {
    "verify a patch": {"files", "rewriting", "moving"},
    "follow a patch": {"files", "rewriting", "moving"},
    "verify a database": {"bytes after .info", "many files"},
}
"""What is not refused in that way, because it does no harm there."""
MOST_CPU = {
    "verify a patch": 60,
    "follow a patch": 60,
    "apply a patch": 150,
    "verify a database": 10,
    "unpack a database": 15,
}
"""How many times as much processor time a file may take as it takes to inflate the longest script, and do
nothing with it; measured: 24, 25, 59, 1 and 5."""
MOST_HELD = 5
"""The same for the longest time in which the thread lets nobody else use the interpreter; measured: 1."""


@pytest.mark.parametrize("way", ["verify a patch", "follow a patch", "apply a patch"])
def test_patches(tmp_path: Path, figures: Figures, way: str) -> None:
    _open_all(way, patches(forge_keys()), tmp_path, figures)


@pytest.mark.parametrize("way", ["verify a database", "unpack a database"])
def test_databases(tmp_path: Path, figures: Figures, way: str) -> None:
    _open_all(way, databases(forge_keys()), tmp_path, figures)


def _open_all(way: str, bombs: Mapping[str, bytes], directory: Path, figures: Figures) -> None:
    forge_keys().save(directory / "keys")
    names = random.Random(SEED).sample(sorted(bombs), min(len(bombs), rounds(2, len(bombs))))
    for name in names:
        (directory / name).write_bytes(bombs[name])
    command = [sys.executable, "-m", "tests.torture.bombs", way, str(directory), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{names}: {done.returncode} {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(done.stdout)
    opened: dict[str, dict[str, Any]] = result["opened"]
    refused = {name for name, one in opened.items() if one["refusal"]}
    assert refused == set(names) - HARMLESS.get(way, set()), opened
    figures(
        f"{way} that grows",
        opened=len(opened),
        most_MiB=result["peak"],
        most_CPU_seconds=f"{max(one['cpu'] for one in opened.values()):.1f}",
        longest_wait_of_the_loop_in_CPU_ms=f"{1000 * max(one['wait'] for one in opened.values()):.0f}",
        plain_inflation_in_CPU_ms=f"{1000 * result['plain']:.0f}",
    )
    costly = {name for name, one in opened.items() if one["cpu"] > MOST_CPU[way] * result["plain"]}
    holding = {name for name, one in opened.items() if one["wait"] > MOST_HELD * result["plain"]}
    assert not costly | holding, opened
