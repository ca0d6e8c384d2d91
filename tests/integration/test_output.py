"""The standard output of all commands: on a full disk, without a reader, closed, in any encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clamproxy.cache.store import Store
from clamproxy.cli.output import CANNOT_WRITE
from clamproxy.fleet.table import Table
from clamproxy.releases import holds
from clamproxy.releases.holds import Hold
from clamproxy.site_files.ignoring import IgnoreList
from tests.support.fixtures import Child

COMMANDS = (
    ["--help"],
    ["--version"],
    ["stats"],
    ["stats", "--json"],
    ["ls"],
    ["fleet"],
    ["fleet", "--json"],
    ["config", "show"],
    ["config", "check"],
    ["config", "schema"],
    ["client-config", "--gateway", "gw"],
    ["doctor", "--no-local", "--gateway", "127.0.0.1:1"],
)
FULL = Path("/dev/full")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside a cache, which is empty."""
    monkeypatch.chdir(tmp_path)
    Store(tmp_path / "cache").close()
    with Table(tmp_path / "cache").writing():
        pass  # makes the file


def clamproxy(arguments: list[str], stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clamproxy.cli", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=60)


def code_of(arguments: list[str]) -> int:
    """With a reader."""
    return clamproxy(arguments, subprocess.PIPE).returncode


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_disk(arguments: list[str]) -> None:
    """One line, and never the exit code of a verdict."""
    with FULL.open("wb") as full:
        result = clamproxy(arguments, full.fileno())
    assert result.returncode == CANNOT_WRITE
    assert result.stderr == "clamproxy: the standard output can't be written: No space left on device\n"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_nobody_reads(arguments: list[str]) -> None:
    """As in ``… | head -1``: silent, and the exit code is what it would be."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = clamproxy(arguments, writing)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (code_of(arguments), "")


@pytest.mark.parametrize("arguments", [["stats"], ["fleet", "--json"], ["--help"]], ids=" ".join)
def test_a_closed_output(arguments: list[str]) -> None:
    script = f'exec "{sys.executable}" -m clamproxy.cli "$@" >&-'
    result = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (code_of(arguments), "")


@pytest.mark.parametrize(
    ("encoding", "shown"), [("latin-1", r"100 \u20ac für"), ("utf-8", "100 € für"), ("ascii", "100 ")]
)
@pytest.mark.parametrize("arguments", [["hold"], ["stats"], ["ignore", "list"]], ids=" ".join)
def test_an_encoding_without_the_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], encoding: str, shown: str
) -> None:
    """An escape takes its place, and the exit code is that of the command."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    holds.hold(tmp_path / "cache", "daily", Hold(1, 0, "joe", "100 € für"))
    (tmp_path / "proxy.yaml").write_text("files: {directory: files}")
    IgnoreList(tmp_path / "files", tmp_path / "cache").add("Win.Test-1", "100 € für")
    command = [sys.executable, "-m", "clamproxy.cli", *arguments]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    # Where only ASCII is expected, click writes UTF-8.
    assert shown in result.stdout.decode(encoding, "replace")


def test_a_name_that_is_no_text(child: Child) -> None:
    """Python reads bytes of a file's name that are no UTF-8 as lone surrogates, which UTF-8 doesn't have."""
    code = """
from clamproxy.cli.output import checked_output
with checked_output():
    print("caf\\udce9")
"""
    result = child(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "caf\\udce9\n", "")
