"""A small separate disk for a test, which can be filled or made read-only."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE = 8 * 2**20
"""Bytes."""
_PIECE = 64 * 1024


class Disk:
    """A file system in memory, mounted at a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, leave: int = 0) -> None:
        """Leave only this many bytes free."""
        free = shutil.disk_usage(self.path).free - leave
        with self._filler.open("ab", buffering=0) as file:
            while free > 0:
                try:
                    free -= file.write(bytes(min(free, _PIECE)))
                except OSError:
                    return

    def clear(self) -> None:
        """Remove what `fill` wrote."""
        self._filler.unlink()

    def make_read_only(self) -> None:
        """Make the disk read-only; files that are open for writing must have been closed."""
        _run("mount", "-o", "remount,ro", str(self.path))

    def make_writable(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.path))


@contextmanager
def open_disk(path: Path, size: int = SIZE) -> Iterator[Disk]:
    """Mount a disk of `size` bytes; skips the test if that isn't allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"no disk can be mounted: {done.stderr.strip()}"
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """Files of this process can't grow beyond a size in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, former)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
