"""Single flight: what several callers want at the same time is done once, for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any


class SingleFlight[K: Hashable, R]:
    """Runs work at most once at a time for each key. Event loop only.

    Each run is a task that belongs to this object, not to the caller that began it:

    * A caller that is cancelled, or that runs out of time, leaves alone. The run goes on for the others,
      and to its end even when nobody is left: what it puts into the cache is wanted all the same.
    * Every caller that still waits gets what the run returns or raises. An exception that nobody waits for is
      dropped, but `on_failure` hears of each.
    * Nothing is remembered. When a run has ended, the next caller begins another.
    * `stop` cancels all runs, and their callers get `asyncio.CancelledError`. It doesn't wait for them to
      end, nor refuse later ones. A thread that a run waits for goes on, and its result is dropped.
    """

    def __init__(self, name: str, on_failure: Callable[[K, BaseException], None] = lambda *_: None) -> None:
        """Nothing runs yet.

        Args:
            name: what the runs do; their tasks are named after it and the key.
            on_failure: called with the key and the exception of a run, before its callers get that.
        """
        self._name = name
        self._on_failure = on_failure
        self._tasks: dict[K, asyncio.Task[R]] = {}

    def __contains__(self, key: K) -> bool:
        task = self._tasks.get(key)
        return task is not None and not task.done()

    def __len__(self) -> int:
        return sum(not task.done() for task in self._tasks.values())

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Wait for the run of a key, begun now unless it is under way.

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
        """The same without waiting, for work in the background and for callers that wait by `asyncio.wait`.

        Returns:
            The task. Don't await it: a caller that is cancelled would take it along for all others.
        """
        task = self._tasks.get(key)
        if task is None or task.done():
            task = asyncio.create_task(work(), name=f"{self._name} {key}")
            self._tasks[key] = task
            task.add_done_callback(partial(self._ended, key))
        return task

    def stop(self) -> None:
        """Cancel what is running."""
        for task in list(self._tasks.values()):
            task.cancel()

    def _ended(self, key: K, task: asyncio.Task[R]) -> None:
        if self._tasks.get(key) is task:  # else another caller has begun the next run already
            del self._tasks[key]
        # Looking at the exception keeps asyncio from logging what nobody waited for.
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(key, error)
