"""Programs that tests drive."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

_PLACES = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"))
"""Where to look: next to this Python, for programs from the tests' requirements, then in the system."""


def require_program(name: str) -> str:
    """The path of a program; if it is missing, skips the test, or fails if CI is set."""
    path = shutil.which(name, path=_PLACES)
    if path is None:
        give_up(f"{name} is not installed")
    return path


def give_up(reason: str) -> NoReturn:
    """Skip the test because something is missing; fail if CI is set."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
