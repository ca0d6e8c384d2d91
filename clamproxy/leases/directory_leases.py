"""Leases by locks on files of the cache directory, for the processes of one machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import time
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote

from clamproxy.files import is_named, try_lock, unlock
from clamproxy.leases.leases import Learnt, Lease, Leases, UnkeptLease, WaitEnding, WaitOutcome
from clamproxy.untrusted import parse_json

logger = logging.getLogger(__name__)

DIRECTORY = "leases"
"""The directory of the locks, below the cache directory."""

_SUFFIX = ".lock"
_LONGEST_NAME = 200
_PAUSES = (0.01, 0.5)
"""Shortest and longest seconds between looks at somebody else's lease: a fifth of the time waited so far."""
_LONGEST_DOUBT = 1.0
"""Seconds in which everybody that only looks at a lock has let go of it, unless it was stopped."""


class _State(Enum):
    TAKEN = auto()
    HELD = auto()
    UNCLEAR = auto()
    """Somebody else is looking at the lock, or has just removed its file."""


class DirectoryLeases(Leases):
    """Each lease is a file, which its holder has locked and removes in the end.

    The system ends the lock with the process, however that ends. A holder writes into the file what was
    learnt before it removes it, where those that wait find it: they have opened it before.

    Args:
        cache: the cache directory.
    """

    def __init__(self, cache: Path) -> None:
        """Remove the files of processes that were killed. Quick."""
        self._directory = cache / DIRECTORY
        self._held: set[_DirectoryLease] = set()
        self._is_stopped = False
        self._sweep()

    async def take(self, name: str) -> Lease | None:
        if self._is_stopped:
            return None
        path, deadline = self._path(name), time.monotonic() + _LONGEST_DOUBT
        while time.monotonic() < deadline:
            try:
                state, descriptor = self._try_to_take(path)
            except OSError as error:
                logger.debug("No lock for %s: %s", name, error)
                return UnkeptLease(name)
            if state is _State.TAKEN:
                lease = _DirectoryLease(name, path, descriptor, self._held)
                self._held.add(lease)
                return lease
            if state is _State.HELD:
                return None
            await asyncio.sleep(random.uniform(0.001, 0.005))  # noqa: S311
        return None

    async def wait(self, name: str, limit: float) -> WaitOutcome:
        if self._is_stopped:  # whoever took it for released would try to take it, without end
            return WaitOutcome(WaitEnding.FAILED)
        begun = time.monotonic()
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return WaitOutcome(WaitEnding.RELEASED)
        except OSError:
            return WaitOutcome(WaitEnding.FAILED)
        was_held = False
        try:
            while not self._is_stopped:
                if try_lock(descriptor, shared=True):
                    unlock(descriptor)
                    return WaitOutcome(WaitEnding.RELEASED, _read(descriptor) if was_held else {})
                was_held = True
                waited = time.monotonic() - begun
                if waited >= limit:
                    return WaitOutcome(WaitEnding.HELD)
                shortest, longest = _PAUSES
                await asyncio.sleep(min(max(shortest, waited / 5), longest, limit - waited))
        except OSError:
            pass
        finally:
            os.close(descriptor)
        return WaitOutcome(WaitEnding.FAILED)

    def stop(self) -> None:
        self._is_stopped = True
        for lease in list(self._held):
            lease.release()

    def _path(self, name: str) -> Path:
        encoded = quote(name, safe="")
        if len(encoded) > _LONGEST_NAME:
            encoded = hashlib.sha256(name.encode()).hexdigest()
        return self._directory / f"{encoded}{_SUFFIX}"

    def _try_to_take(self, path: Path) -> tuple[_State, int]:
        """What has become of it, and the descriptor if the lock is ours.

        Raises:
            OSError: files can't be made or locked here.
        """
        descriptor, state = self._open_to_take(path), _State.UNCLEAR
        try:
            state = _try(path, descriptor)
        finally:
            if state is not _State.TAKEN:
                os.close(descriptor)
        return state, descriptor

    def _open_to_take(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            if self._directory.parent.stat().st_uid != os.geteuid():
                raise  # a user can't write to what root creates for them
            self._directory.mkdir(mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)

    def _sweep(self) -> None:
        for path in self._directory.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _try(path, descriptor) is _State.TAKEN:
                        path.unlink()
                finally:
                    os.close(descriptor)


class _DirectoryLease(Lease):
    """Held as long as the descriptor is open.

    Args:
        held: the leases of this process; the lease leaves them when it is released.
    """

    def __init__(self, name: str, path: Path, descriptor: int, held: set[_DirectoryLease]) -> None:
        self.name = name
        self._path = path
        self._descriptor = descriptor
        self._held = held

    @property
    def is_lost(self) -> bool:
        """Whether it was released, or somebody has removed the file: then another one can be locked."""
        return self._descriptor < 0 or not is_named(self._descriptor, self._path)

    def release(self, learnt: Learnt | None = None) -> None:
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        self._held.discard(self)
        try:
            with suppress(OSError):
                if learnt:
                    os.pwrite(descriptor, json.dumps(learnt).encode(), 0)
            with suppress(OSError):
                # A name that is somebody else's by now must stay.
                if is_named(descriptor, self._path):
                    self._path.unlink()
        finally:
            unlock(descriptor)
            os.close(descriptor)


def _try(path: Path, descriptor: int) -> _State:
    """Try to lock a file under its name.

    Raises:
        OSError: files can't be locked here.
    """
    if not try_lock(descriptor):
        # Those that wait look by a shared lock, for a moment. That isn't holding it.
        if not try_lock(descriptor, shared=True):
            return _State.HELD
        unlock(descriptor)
        return _State.UNCLEAR
    if not is_named(descriptor, path):
        return _State.UNCLEAR  # released, and the name removed, between opening and locking
    with suppress(OSError):
        os.ftruncate(descriptor, 0)  # what was learnt under an earlier lease, if its file couldn't be removed
    return _State.TAKEN


def _read(descriptor: int) -> Learnt:
    """What the last holder has left."""
    try:
        found = parse_json(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    except OSError:
        return {}
    return found if isinstance(found, dict) else {}
