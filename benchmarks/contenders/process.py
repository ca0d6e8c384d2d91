"""A server's processes: starting them, measuring them by means of /proc, and stopping them."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.load.asking import HOST

PROJECT = Path(__file__).resolve().parents[2]
_START_LIMIT = 30.0
"""Seconds that a server may take to start, or to stop."""
_KIB_PER_MIB = 1024
_TICKS = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server that didn't start, has died, or serves wrong bytes."""


class Process:
    """A running server: the process that was started, and all its children."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def alive(self) -> bool:
        """Whether the first process is running."""
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """Processor time since the start, of all processes and threads, including those that have ended."""
        total = 0
        for pid in self.pids():
            # proc(5): after the name in brackets, utime, stime, cutime and cstime are 11 fields on.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
        return total / _TICKS

    def reset_peak(self) -> None:
        """Start a new measurement of the peak memory (proc(5), clear_refs)."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """Peak resident memory since `reset_peak`, of all processes together."""
        return self._memory("VmHWM")

    def resident_mib(self) -> float:
        """Resident memory now, of all processes together."""
        return self._memory("VmRSS")

    def _memory(self, name: str) -> float:
        kib = 0
        for pid in self.pids():
            match = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            kib += int(match[1]) if match else 0
        return kib / _KIB_PER_MIB

    def pids(self) -> list[int]:
        found, unseen = [], [self._process.pid]
        while unseen:
            pid = unseen.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    unseen += map(int, children.read_text().split())
        return found


def find_program(name: str) -> str | None:
    """The path of a server, which is often outside an ordinary user's PATH; None if it isn't installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def program(name: str) -> str:
    """The path of an installed server."""
    return find_program(name) or name


def answers(port: int, url: str) -> bool:
    """Whether a server responds with anything but a failure of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", url, headers={"Host": HOST, "Connection": "close"})
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def running(
    command: Sequence[str],
    work: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Run a server from the project's directory; yields it once it is ready.

    Args:
        command: must stay in the foreground.
        work: where its output goes, into ``output.log``.
        ready: whether it is serving.
        environment: replaces this process's; None to inherit that.

    Raises:
        ServerError: it ended, or wasn't ready in time; its log is in the message.
    """
    log = work / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=PROJECT
        )
    try:
        give_up = time.monotonic() + _START_LIMIT
        while not ready():
            if process.poll() is not None or time.monotonic() > give_up:
                raise ServerError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield Process(process)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_START_LIMIT)
        if process.poll() is None:
            process.kill()
            process.wait()
