"""Rows of the fleet's table, for the tests of what is read from it."""

from __future__ import annotations

from pathlib import Path

from clamproxy.fleet.agent import Agent
from clamproxy.fleet.observer import Failure, Holding, Knowledge
from clamproxy.fleet.table import MachineRow, Release, Table
from tests.support.stored import DAY

NOW = 1_795_000_000.0
"""In November 2026."""


def put_rows(
    directory: Path,
    *rows: MachineRow,
    releases: dict[int, float | None] | None = None,
    builds: dict[int, float] | None = None,
) -> None:
    """Write machines, and when which version of daily was first advertised, and built."""
    with Table(directory).writing() as table:
        for row in rows:
            table.put([row])
        for version, first_seen in (releases or {}).items():
            table.note(Release("daily", version, first_seen))
        for version, built_at in (builds or {}).items():
            table.note(Release("daily", version, built_at=int(built_at)))


def row(
    name: str,
    *,
    freshclam: str | None = "1.4.6",
    seen: float = NOW - 60,
    error: Failure | None = None,
    **versions: int,
) -> MachineRow:
    holdings = {database: Holding(version, seen) for database, version in versions.items()}
    return MachineRow(
        Agent(name, freshclam, "Linux", "x86_64"), "10.0.0.1", seen - DAY, seen, Knowledge(holdings, error)
    )
