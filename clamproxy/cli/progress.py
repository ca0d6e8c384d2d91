"""Progress bars, where somebody looks at them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bars:
    """One bar for each database on stderr; nothing at all if that is not a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def begin(self, totals: Mapping[str, int]) -> None:
        """Show the bars."""
        self._tasks = {name: self._progress.add_task(name, total=total) for name, total in totals.items()}

    def advance(self, database: str, size: int) -> None:
        """Move the bar of a database on."""
        self._progress.advance(self._tasks[database], size)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
