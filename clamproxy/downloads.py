"""Downloads: a file on its way from a server to the disk, and its readers in the meantime.

A download belongs to no client: it continues when they leave, so that the next one finds the file here.
Its owner runs it in a task, and a thread appends to the file. Each reader follows with its own
descriptor. Subclasses decide what is fetched and how, what is verified or revalidated, and what is kept.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from clamproxy.messages import SourceError

PAUSE = 0.025
"""Seconds between two wake-ups. A hundred readers of a growing file, woken for every piece, keep the loop
busy with small writes. After a pause, each of them sends everything that has arrived in the meantime."""
STOPPING = "the gateway is stopping"
"""The reason given to readers when a download is cancelled."""


class Progress:
    """Wakes its waiters: immediately by `wake`, or at intervals by `report`.

    It belongs to the event loop in which it is created.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_reported = False
        self._next_at = 0.0

    async def wait(self) -> None:
        """Wait for the next wake-up. Check first whether there is anything to wait for."""
        await self._changed.wait()

    def wake(self) -> None:
        """Wake all waiters immediately. Event loop only."""
        self._next_at = self._loop.time() + PAUSE
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def report(self) -> None:
        """Wake all waiters soon: now, or when the pause since the last time is over. Any thread."""
        if not self._is_reported:
            self._is_reported = True
            self._call(self._arrange)

    def _call[*Ts](self, function: Callable[[*Ts], None], *arguments: *Ts) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(function, *arguments)

    def _arrange(self) -> None:
        if self._loop.time() >= self._next_at:
            self._tell()
        else:
            self._loop.call_at(self._next_at, self._tell)

    def _tell(self) -> None:
        self._is_reported = False  # first: progress from here on is reported anew
        self._on_progress()
        self.wake()

    def _on_progress(self) -> None:
        """Called on the loop after a `report`, just before the waiters are woken."""


class Download[T](Progress, ABC):
    """What all downloads have in common: they can be waited for at the start, for more bytes, and at the end.

    `T` is what waiters get at the start. Event loop only, except `announce` and `report`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ready: asyncio.Future[T] = self._loop.create_future()
        self._error: Exception | None = None

    async def ready(self) -> T:
        """Wait until there is something to answer with. Later failures show up in `available`.

        Raises:
            Exception: it could not be fetched; the subclass says which.
        """
        # Not `SingleFlight`: this is a moment within the run, not its end. The shield keeps a cancelled
        # caller from cancelling the future that all others wait for.
        return await asyncio.shield(self._ready)

    @property
    def is_ready(self) -> bool:
        """Whether `ready` returns without waiting."""
        return self._ready.done()

    async def available(self, offset: int, last: int | None = None) -> int:
        """Wait for bytes after `offset` that may be shown; returns their end.

        Args:
            last: where the reader ends, if that is not the end of the file.

        Raises:
            SourceError: there will be no more.
        """
        while (end := self._readable(last)) <= offset:
            if self._error is not None:
                raise SourceError(str(self._error))
            await self.wait()
        return end

    async def run(self) -> T:
        """Fetch the file, and inform all waiters. Cancel this when the gateway stops.

        Returns:
            What `ready` returns.

        Raises:
            Exception: what `ready` raises; also any failure after that, once readers have started.
        """
        try:
            result = await self._fetch()
            self._set_ready(result)
            return result
        except (Exception, asyncio.CancelledError) as error:
            failure = self._explain(error)
            self._error = failure
            if not self._ready.done():
                self._ready.set_exception(failure)
                self._ready.exception()  # there may be no waiters left
            if failure is error or isinstance(error, asyncio.CancelledError):
                raise
            # Without its cause: that text may hold a feed's URL, and the URL a subscriber's key.
            raise failure from None
        finally:
            try:
                self._end()
            finally:
                self.wake()

    def announce(self, value: T) -> T:
        """Report that there is something to answer with; returns `value`. Any thread."""
        self._call(self._set_ready, value)
        return value

    @abstractmethod
    async def _fetch(self) -> T:
        """Do all of the work."""

    @abstractmethod
    def _readable(self, last: int | None) -> int:
        """The end of what readers may have now; `last` is as in `available`."""

    @abstractmethod
    def _explain(self, error: BaseException) -> Exception:
        """The error that waiters get and `run` raises. Logs what only the gateway's administrator can fix."""

    @abstractmethod
    def _end(self) -> None:
        """Stop all writing, and release resources. Readers have their own descriptors."""

    def _set_ready(self, value: T) -> None:
        if not self._ready.done():
            self._ready.set_result(value)


class FileSource:
    """A file for one reader, complete or still arriving: a `messages.Source`.

    Args:
        descriptor: the reader's own, which this object closes; it outlives the file's name.
        size: bytes of the whole file.
        download: fetches the file; None if all of it is here.
        closed: called once the descriptor is closed.
        distrusted: called if the file could not be read.
    """

    def __init__(
        self,
        descriptor: int,
        size: int,
        download: Download[Any] | None = None,
        closed: Callable[[], None] = lambda: None,
        distrusted: Callable[[], None] = lambda: None,
    ) -> None:
        self.size = size
        self.is_arriving = download is not None
        self.last: int | None = None
        """Where the reader ends. The last byte of a part of an object waits for verification as well."""
        self._file = open(descriptor, "rb", buffering=0)  # noqa: SIM115 - closed by the reader
        self._download = download
        self._closed = closed
        self._distrusted = distrusted

    def fileno(self) -> int:
        return self._file.fileno()

    async def wait(self, offset: int) -> int:
        return self.size if self._download is None else await self._download.available(offset, self.last)

    def distrust(self) -> None:
        """See `messages.Source`."""
        self._distrusted()

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._closed()
