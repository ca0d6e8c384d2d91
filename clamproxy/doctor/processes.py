"""Processes on this machine, as far as this user can see them in /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

_SYSTEM_UNIT = re.compile(r"^0::/system\.slice/([^/\n]+\.service)$", re.MULTILINE)
_DAEMON = re.compile(r"--daemon|-[A-Za-z]*d[A-Za-z]*")
_CONFIG = "--config-file"


@dataclass(frozen=True, slots=True)
class Process:
    """A running freshclam."""

    pid: int
    arguments: tuple[str, ...]
    started_at: float
    """Start time in Unix seconds."""
    unit: str | None
    """The systemd service that it belongs to."""

    @property
    def is_daemon(self) -> bool:
        """Whether it keeps running, and checks for updates periodically."""
        return any(_DAEMON.fullmatch(argument) for argument in self.arguments)

    @property
    def config(self) -> Path | None:
        """The configuration file on its command line; None if it uses the default."""
        for argument, following in zip(self.arguments, [*self.arguments[1:], ""], strict=True):
            name, _, value = argument.partition("=")
            if name == _CONFIG and (value or following):
                return Path(value or following)
        return None

    @property
    def environment(self) -> dict[str, str] | None:
        """Its environment variables; None if this user may not see them."""
        try:
            raw = (PROC / str(self.pid) / "environ").read_bytes()
        except OSError:
            return None
        pairs = (entry.partition("=") for entry in os.fsdecode(raw).split("\0"))
        return {name: value for name, separator, value in pairs if separator}


def are_visible() -> bool:
    """Whether this user sees the processes of others, which proc(5)'s option hidepid prevents."""
    return (PROC / "1" / "stat").exists()


def freshclams() -> Iterator[Process]:
    """The freshclams that run here, without those in containers, which have their own databases."""
    depth = _namespaces(PROC / "self")
    for directory in PROC.iterdir():
        if not directory.name.isdecimal():
            continue
        with suppress(OSError, ValueError, IndexError):  # it has ended in the meantime
            if (directory / "comm").read_text().strip() != "freshclam" or _namespaces(directory) != depth:
                continue
            if (process := _read(directory)) is not None:
                yield process


def lock_holders(path: Path, kind: str, locks: Path = PROC / "locks") -> list[int]:
    """The processes that have locked a file, as far as the system tells. The file itself is not opened.

    Args:
        kind: ``FLOCK`` or ``POSIX``, as in proc_locks(5).
        locks: where the system lists its locks.
    """
    try:
        status = path.stat()
        lines = locks.read_text().splitlines()
    except OSError:
        return []
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    held = [fields for fields in map(str.split, lines) if place in fields and kind in fields]
    pids = [int(fields[fields.index(place) - 1]) for fields in held]
    return [pid for pid in pids if pid > 0]


def _read(directory: Path) -> Process | None:
    """Read a process; None if it is a zombie.

    Raises:
        OSError: it has ended.
        ValueError: its files are not as expected.
    """
    arguments = os.fsdecode((directory / "cmdline").read_bytes()).rstrip("\0").split("\0")
    # After the name in parentheses: the state is the 3rd field of proc_pid_stat(5), the start time the 22nd.
    fields = (directory / "stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        return None
    started_at = _booted_at() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    unit = _SYSTEM_UNIT.search((directory / "cgroup").read_text())
    return Process(int(directory.name), tuple(arguments), started_at, unit[1] if unit else None)


def _booted_at() -> float:
    for line in (PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise ValueError("no btime in /proc/stat")


def _namespaces(directory: Path) -> int:
    """How deeply a process is nested in containers, as seen from here."""
    for line in (directory / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return len(line.split()) - 1
    return 1
