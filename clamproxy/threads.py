"""Threads for blocking work, which must hold up neither the event loop nor the end of the process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

logger = logging.getLogger(__name__)


def in_thread[T](name: str, function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in its own daemon thread.

    With asyncio.to_thread, a connection that hangs would keep the process from ending. Cancelling the
    future abandons the thread, which can't be stopped from outside.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: the process is ending
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Writer:
    """The only thread that writes to the store, in order: several threads would wait for each other's locks.

    Args:
        explains: is given the error of a function that nobody waits for; returns whether it has logged
            it, as trouble with the disk.
    """

    def __init__(self, explains: Callable[[BaseException], bool] = lambda _: False) -> None:
        self._executor = ThreadPoolExecutor(1, "clamproxy-store")
        self._explains = explains

    async def run[T](self, function: Callable[[], T]) -> T:
        """Run a function after everything submitted before, and wait for it."""
        return await asyncio.wrap_future(self._executor.submit(function))

    def submit(self, function: Callable[[], object]) -> None:
        """Run a function soon; an error is logged."""

        def run() -> None:
            try:
                function()
            except Exception as error:
                if not self._explains(error):
                    logger.exception("Writing to the cache directory failed.")

        with suppress(RuntimeError):  # closed: the process is ending
            self._executor.submit(run)

    def close(self) -> None:
        """Finish what has been submitted; this takes milliseconds."""
        self._executor.shutdown(wait=True)
