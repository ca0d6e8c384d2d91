"""Progress bars, if somebody is looking at them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NoReturn, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from clamproxy import bundle
from clamproxy.objects import ObjectId

LOOK_EVERY = 0.1
"""Seconds between updates of the downloads' bars."""


@asynccontextmanager
async def shown_downloads(
    under_way: Callable[[], Iterable[tuple[ObjectId, int, int]]],
) -> AsyncIterator[None]:
    """Show a bar for each file that is being downloaded, on stderr, if that is a terminal.

    Args:
        under_way: gives each file, how many of its bytes are here, and its size in bytes.
    """
    if not sys.stderr.isatty():
        yield
        return
    with _new_progress() as progress:
        task = asyncio.create_task(_follow(progress, under_way))
        try:
            yield
        finally:
            task.cancel()


async def _follow(
    progress: Progress, under_way: Callable[[], Iterable[tuple[ObjectId, int, int]]]
) -> NoReturn:
    bars: dict[ObjectId, TaskID] = {}
    while True:
        seen = {object_id: (have, size) for object_id, have, size in under_way()}
        for object_id in bars.keys() - seen.keys():
            progress.remove_task(bars.pop(object_id))
        for object_id, (have, size) in seen.items():
            if object_id not in bars:
                bars[object_id] = progress.add_task(object_id.file_name, total=None)
            progress.update(bars[object_id], completed=have, total=size or None)
        await asyncio.sleep(LOOK_EVERY)


def _new_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


class Bars(bundle.Reporter):
    """One bar for each database on stderr; nothing at all if that isn't a terminal."""

    def __init__(self) -> None:
        self._progress = _new_progress()
        self._tasks: dict[str, TaskID] = {}

    def begin(self, totals: Mapping[str, int]) -> None:
        self._tasks = {name: self._progress.add_task(name, total=total) for name, total in totals.items()}

    def advance(self, database: str, size: int) -> None:
        """Advance a database's bar by this many bytes."""
        self._progress.advance(self._tasks[database], size)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
