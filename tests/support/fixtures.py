"""Types of what the fixtures in tests/conftest.py give."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

type Fill = Callable[..., None]
type MakeCvd = Callable[..., bytes]
type Write = Callable[[str], Path]
type Child = Callable[..., subprocess.CompletedProcess[str]]
