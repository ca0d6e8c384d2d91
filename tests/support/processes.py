"""Processes as /proc shows them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_BUSY = ("R", "D")
"""The states of a thread that runs, wants to run, or waits for the disk; see proc(5)."""


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that haven't ended."""
    with suppress(FileNotFoundError):
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


def family(pid: int) -> list[int]:
    """A process, those that it has started, and so on."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def peak_of(pid: int) -> int:
    """The most memory that a process has had, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def is_at_rest(pid: int) -> bool:
    """Whether a process and those that it has started have nothing to do now.

    On a busy machine, a thread whose timer has gone off may have to wait for its turn; it counts as busy.
    """
    return not any(_is_busy(one) for one in family(pid))


def _is_busy(pid: int) -> bool:
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if thread.read_text().rpartition(")")[2].split()[0] in _BUSY:
                return True
    return False
