"""What the tests of this folder tried is noted here, and printed by `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from tests.torture.effort import SEED


class Figures(Protocol):
    """Notes what was tried: `figures("kill -9", moments=200, wrong_files=0)`."""

    def __call__(self, what: str, /, **counts: object) -> None: ...


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Says what was tried, at the end of the run and in a JUnit report."""

    def note(what: str, /, **counts: object) -> None:
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
        record_property("tried", f"{what}: {told} (seed {SEED})")

    return note
