"""Commands whose standard input is closed, as some schedulers start them: it is empty, and no terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clamproxy.cache.store import Store
from tests.support.stored import cdiff, put

REFUSALS = {
    ("import", "-"): "-: the bundle is cut off",
    ("hash-password", "alice"): "the password is empty.",
    ("purge",): "1 object (1 cdiff), 4 B would be deleted; use --yes",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside a cache, with something to delete."""
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "cache")
    put(store, cdiff(5), b"body")
    store.close()


@pytest.mark.parametrize("arguments", REFUSALS, ids=" ".join)
def test_a_closed_input(arguments: tuple[str, ...]) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "clamproxy.cli", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"clamproxy: {REFUSALS[arguments]}")
