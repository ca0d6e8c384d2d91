"""Memory that the workers of a machine share, for limits that hold for all of them together.

It is an anonymous file (memfd_create(2)), which needs no writable disk and is gone with its last process.
Parts that several workers change are locked (fcntl(2)); the system releases the locks of a process that dies.
Other parts have a row for each worker, which it alone changes, and which the parent erases when it has died.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from clamproxy.config.units import KIB

KEY_SIZE = 16
CELLS = 16 * KIB
"""Cells by client address in each table."""
FIGURES_SIZE = 128 * KIB
"""Bytes for what a worker tells the others of itself."""
_HEAD = 4 * KIB
_METER = _HEAD // 2
"""Where the meter of the link begins."""
_CLIENTS = CELLS * 16
_CONNECTIONS = 8 + CELLS * 4
_ROW = _CONNECTIONS + FIGURES_SIZE
PATIENCE = 1.0
"""Seconds to wait for a lock, which a worker holds for microseconds, if nothing suspends it."""
_LOOK_EVERY = 0.0002
"""Seconds between two looks at a lock that another process has."""


class Lock(IntEnum):
    """What is locked on its own."""

    LINK = 0
    CLIENTS = 1
    FIGURES = 2


def create(count: int) -> int:
    """Memory for that many workers, as a file descriptor for `Memory`."""
    descriptor = os.memfd_create("clamproxy", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _HEAD + _CLIENTS + count * _ROW)
    os.pwrite(descriptor, os.urandom(KEY_SIZE), 0)
    return descriptor


class Memory:
    """The shared memory as one process sees it. Thread-safe.

    Args:
        descriptor: from `create`; it stays open, as closing it would release all locks.
        count: how many workers there are.
    """

    def __init__(self, descriptor: int, count: int) -> None:
        self._descriptor = descriptor
        self._count = count
        self._view = memoryview(mmap.mmap(descriptor, _HEAD + _CLIENTS + count * _ROW))
        self._locks = {which: threading.Lock() for which in Lock}
        self._stuck: set[Lock] = set()
        """Locks that were waited for in vain."""
        self.key = bytes(self._view[:KEY_SIZE])
        """Random, so that nobody can choose addresses that share a cell."""

    @contextmanager
    def locked(self, which: Lock) -> Iterator[None]:
        """Keep other threads and processes out. For microseconds only.

        A worker that is suspended at that moment doesn't suspend the others, too: they go on without the
        lock. A limit that counts something wrong is better than a gateway that hangs.
        """
        with self._locks[which]:
            is_locked = self._lock(which)
            try:
                yield
            finally:
                if is_locked:
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, int(which))

    def _lock(self, which: Lock) -> bool:
        """Wait for a lock, but not for long, and after that not at all until it is free again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(which))
            except BlockingIOError:
                if which in self._stuck or time.monotonic() > deadline:
                    self._stuck.add(which)
                    return False
                time.sleep(_LOOK_EVERY)
            else:
                self._stuck.discard(which)
                return True

    @property
    def link(self) -> memoryview[float]:
        """When the link is paid for, in monotonic seconds: one number."""
        return self._view[KEY_SIZE : KEY_SIZE + 8].cast("d")

    @property
    def meter(self) -> memoryview[int]:
        """Pairs of a second and the bytes that were read in it."""
        return self._view[_METER:_HEAD].cast("q")

    @property
    def clients(self) -> tuple[memoryview[int], memoryview[float]]:
        """For each cell, which client it belongs to, and when that one has paid, in monotonic seconds."""
        part = self._view[_HEAD : _HEAD + _CLIENTS]
        return part[: CELLS * 8].cast("Q"), part[CELLS * 8 :].cast("d")

    def connections(self, number: int) -> tuple[memoryview[int], memoryview[int]]:
        """How many connections a worker has, and how many in each cell."""
        row = self._row(number)
        return row[:8].cast("q"), row[8:_CONNECTIONS].cast("I")

    def figures(self, number: int) -> memoryview[int]:
        """What a worker tells of itself."""
        return self._row(number)[_CONNECTIONS:]

    @property
    def numbers(self) -> range:
        """The numbers of all workers."""
        return range(1, self._count + 1)

    def erase(self, number: int) -> None:
        """Forget what a worker has that has died."""
        row = self._row(number)
        row[:] = bytes(len(row))

    def _row(self, number: int) -> memoryview[int]:
        start = _HEAD + _CLIENTS + (number - 1) * _ROW
        return self._view[start : start + _ROW]
