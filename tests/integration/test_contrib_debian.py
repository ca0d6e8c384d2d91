"""The recipe of the Debian package, as far as can be told without building it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.contrib import CONTRIB, ROOT

DEBIAN = CONTRIB / "debian"
SCRIPTS = sorted(DEBIAN.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n")
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)


def test_what_is_installed_exists() -> None:
    text = (DEBIAN / "build").read_text()
    sources = re.findall(r"^ +put ([\w/.@-]+) ", text, re.MULTILINE)
    listed = re.search(r"for file in (.*); do", text)
    assert listed is not None
    assert len(sources) > 10
    for source in [*sources, *listed[1].split()]:
        assert any(path.is_file() for path in ROOT.glob(source)), source


def test_a_python_that_cannot_be_moved_is_refused(tmp_path: Path) -> None:
    """Nothing is built with the system's own."""
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\ncase $2 in *base_prefix*) echo /usr;; esac\n")
    fake.chmod(0o755)
    command = [str(DEBIAN / "build"), str(tmp_path / "out")]
    environ = os.environ | {"PYTHON": str(fake)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert result.returncode == 1
    assert "can't be copied" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
