"""The processes that the machines run in, and the outcome of a load."""

from __future__ import annotations

import os
import resource
import select
import ssl
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from typing import Self

from benchmarks.load.asking import Entry, Fetch
from benchmarks.load.machine import FetchError, Machine, Tally

PROCESSES = 2
GIVE_UP = 180.0
"""Seconds after which machines that haven't finished count as failed."""

_HEAD_START = 0.05
"""Seconds between handing out a run and its start, so that all processes start at the same time."""
_SPARE_FILES = 100


@dataclass(frozen=True, slots=True)
class Load:
    """A number of machines that start at once, each with its own address.

    Attributes:
        entry: how they reach the server.
        scripts: what each machine asks for, in order: the first machine has the first script, and so on.
        machines: how many.
        keep_alive: each machine uses one connection for all requests, instead of one for each.
        seconds: how long the machines repeat their scripts; None: they go through them once.
        verify: one machine checks SHA-256, for which it has to copy and hash what it reads.
    """

    entry: Entry
    scripts: tuple[tuple[Fetch, ...], ...]
    machines: int
    keep_alive: bool = False
    seconds: float | None = None
    verify: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a load.

    Attributes:
        machines: how many there were.
        done: how many of them finished without a failure.
        requests: how many got the right response.
        size: bytes of all bodies.
        failures: by kind.
        wall: seconds from the start to the end of the last machine.
        cpu: processor time used by the machines, in seconds.
        first_bytes: for each request, seconds from before its connection to the first bytes of the
            response.
    """

    machines: int
    done: int
    requests: int
    size: int
    failures: dict[str, int]
    wall: float
    cpu: float
    first_bytes: list[float]

    @property
    def first_byte(self) -> float:
        """Median time to the first byte, in seconds; 0 if there was none."""
        return statistics.median(self.first_bytes) if self.first_bytes else 0.0


@dataclass(frozen=True, slots=True)
class _Share:
    """One process's part of an outcome; times in seconds of the computer's monotonic clock."""

    tally: Tally
    start: float
    end: float
    cpu: float


class _Loop:
    """One epoll loop for all machines of a process, with nothing in between."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, Machine] = {}
        self._unfinished: set[Machine] = set()

    def watch(self, machine: Machine, fd: int, events: int) -> None:
        # epoll removes a socket by itself when it is closed.
        self._by_fd[fd] = machine
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def run(self, machines: list[Machine], give_up: float) -> None:
        """Run all machines to their end; those that haven't finished by `give_up` have failed."""
        self._unfinished.update(machines)
        for machine in machines:
            self._step(machine)
        by_fd, poll, checked_at = self._by_fd, self._epoll.poll, time.monotonic()
        while self._unfinished:
            for fd, _ in poll(1.0):
                self._step(by_fd[fd])
            if (now := time.monotonic()) - checked_at > 1:
                checked_at = now
                self._end_the_late(now, give_up)
        self._epoll.close()

    def _step(self, machine: Machine, error: FetchError | None = None) -> None:
        try:
            next(machine.steps) if error is None else machine.steps.throw(error)
        except StopIteration:
            self._unfinished.discard(machine)

    def _end_the_late(self, now: float, give_up: float) -> None:
        for machine in list(self._unfinished):
            if now > give_up:
                self._step(machine, FetchError("given up"))
            elif now > machine.deadline:
                self._step(machine, FetchError(f"{machine.phase} timeout"))


def _address(index: int) -> str:
    """A different loopback address for each machine."""
    return f"127.{64 + (index >> 16)}.{index >> 8 & 255}.{index & 255}"


def _run_share(load: Load, first: int, count: int, start_at: float) -> _Share:
    """Run one process's share of the machines."""
    tls = None
    if load.entry.ca_file is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(load.entry.ca_file)
    tally, loop = Tally(), _Loop()
    until = None if load.seconds is None else start_at + load.seconds
    machines = [
        Machine(
            loop,
            load.entry,
            load.scripts[index % len(load.scripts)],
            tally,
            address=_address(index),
            tls=tls,
            keep_alive=load.keep_alive,
            until=until,
            verify=load.verify and not index,
        )
        for index in range(first, first + count)
    ]
    time.sleep(max(0.0, start_at - time.monotonic()))
    start, cpu = time.monotonic(), time.process_time()
    loop.run(machines, start_at + GIVE_UP)
    return _Share(tally, start, time.monotonic(), time.process_time() - cpu)


def allow_files() -> int:
    """Let this process and its children open as many files as they may; returns how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def most_machines() -> int:
    """How many connections a single-process server can hold."""
    return allow_files() - _SPARE_FILES


class LoadGenerator:
    """Runs loads, in processes that live as long as this context manager."""

    def __init__(self) -> None:
        context = get_context("spawn")
        together = context.Barrier(PROCESSES, timeout=GIVE_UP)
        self._pool = ProcessPoolExecutor(PROCESSES, context, initializer=together.wait)

    def __enter__(self) -> Self:
        # The pool starts one process per job; the barrier makes each wait until all have started.
        list(self._pool.map(time.sleep, [0.0] * PROCESSES))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, load: Load) -> Outcome:
        """Run the machines of a load, half of them in each process."""
        half = -(-load.machines // PROCESSES)
        parts = [(first, min(half, load.machines - first)) for first in range(0, load.machines, half)]
        # Creating thousands of machines takes a moment as well.
        start_at = time.monotonic() + _HEAD_START + load.machines * 30e-6
        jobs = [self._pool.submit(_run_share, load, *part, start_at) for part in parts]
        shares = [job.result(GIVE_UP + 60) for job in jobs]
        tallies = [share.tally for share in shares]
        return Outcome(
            machines=load.machines,
            done=sum(tally.done for tally in tallies),
            requests=sum(tally.requests for tally in tallies),
            size=sum(tally.size for tally in tallies),
            failures=dict(sum((tally.failures for tally in tallies), Counter())),
            wall=max(share.end for share in shares) - min(share.start for share in shares),
            cpu=sum(share.cpu for share in shares),
            first_bytes=[seconds for tally in tallies for seconds in tally.first_bytes],
        )


def processors() -> int:
    """How many processors the servers and the load share."""
    return len(os.sched_getaffinity(0))
