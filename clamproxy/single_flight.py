"""Single flight: work that several callers want at the same time is done once, for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any


class SingleFlight[K: Hashable, R]:
    """Runs work at most once at a time for each key. Event loop only.

    Each run is a task that belongs to this object, not to the caller that started it:

    * A caller that is cancelled or runs out of time leaves alone. The run continues for the others, and
      finishes even when nobody is left: its result still belongs in the cache.
    * Every caller that is still waiting gets what the run returns or raises. An exception that nobody waits
      for is dropped, but `on_failure` is called for each.
    * Nothing is remembered. When a run has ended, the next caller starts another.
    * `stop` cancels all runs, and their callers get `asyncio.CancelledError`. It doesn't wait for them to
      end, and doesn't refuse later ones. A thread that a run waits for continues, and its result is dropped.

    Args:
        name: what the runs do; their tasks are named after it and the key.
        on_failure: called with the key and the exception of a run, before its callers get the exception.
    """

    def __init__(self, name: str, on_failure: Callable[[K, BaseException], None] = lambda *_: None) -> None:
        self._name = name
        self._on_failure = on_failure
        self._tasks: dict[K, asyncio.Task[R]] = {}

    def __contains__(self, key: K) -> bool:
        task = self._tasks.get(key)
        return task is not None and not task.done()

    def __len__(self) -> int:
        return sum(not task.done() for task in self._tasks.values())

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Wait for a key's run, and start it unless it is under way.

        Args:
            key: callers with equal keys share a run.
            work: makes the coroutine; not called if the run is under way.

        Raises:
            asyncio.CancelledError: the caller was cancelled, or `stop` was called.
            Exception: whatever the run raised.
        """
        # The shield is what lets a caller leave alone.
        return await asyncio.shield(self.start(key, work))

    def start(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> asyncio.Task[R]:
        """Start a run without waiting, for background work and for callers that use `asyncio.wait`.

        Returns:
            The task. Don't await it: a cancelled caller would cancel it for all others.
        """
        task = self._tasks.get(key)
        if task is None or task.done():
            task = asyncio.create_task(work(), name=f"{self._name} {key}")
            self._tasks[key] = task
            task.add_done_callback(partial(self._ended, key))
        return task

    def stop(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    def _ended(self, key: K, task: asyncio.Task[R]) -> None:
        if self._tasks.get(key) is task:  # otherwise another caller has already started the next run
            del self._tasks[key]
        # Retrieving the exception keeps asyncio from logging it if nobody waited for it.
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(key, error)
