"""The parts of several workers that one process can show: cores, ports, and limits in shared memory."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamproxy.access.limits import ConnectionLimits
from clamproxy.cli.run import MOST_WORKERS, _count_of_workers
from clamproxy.pace import METER_WINDOW
from clamproxy.web.gathering import feeds_of_all, processes_of_all, transfers_of_all
from clamproxy.workers.cores import usable_cores
from clamproxy.workers.memory import CELLS, Lock, Memory, create
from clamproxy.workers.parent import Parent
from clamproxy.workers.ports import Port, Ports
from clamproxy.workers.shared_limits import (
    OtherConnections,
    SharedClientPayments,
    SharedFigures,
    SharedLinkPayments,
    SharedMeter,
)

LOCAL = "127.0.0.1"
COUNT = 3


@pytest.fixture
def memory() -> Iterator[Memory]:
    descriptor = create(COUNT)
    yield Memory(descriptor, COUNT)
    os.close(descriptor)


# How many


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"": "max 100000", "a": "max 100000"}, None),
        ({"a/b": "100000 100000"}, 1),
        ({"a/b": "50000 100000"}, 1),
        ({"a": "100000 100000", "a/b": "900000 100000"}, 1),
        ({"a/b": "rubbish"}, None),
    ],
)
def test_cores(tmp_path: Path, limits: dict[str, str], expected: int | None) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, text in limits.items():
        (tmp_path / name / "cpu.max").write_text(f"{text}\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert usable_cores(tmp_path, own) == (expected or len(os.sched_getaffinity(0)))


def test_cores_without_cgroups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "missing") == len(os.sched_getaffinity(0))


def test_counts_on_the_command_line() -> None:
    assert [_count_of_workers(text) for text in ("1", "2", str(MOST_WORKERS))] == [1, 2, MOST_WORKERS]
    assert _count_of_workers("auto") == usable_cores()
    for text in ("0", "-1", "two", "", "1.5", "٢", str(MOST_WORKERS + 1)):
        with pytest.raises(ValueError, match="auto, or a number from 1 to 64"):
            _count_of_workers(text)


# Ports


def test_a_port_is_opened_once_and_closed_when_nobody_uses_it() -> None:
    ports = Ports()
    (one,) = ports.open(Port(LOCAL, 0))
    assert ports.open(Port(LOCAL, 0)) == [one]
    number = one.getsockname()[1]
    with pytest.raises(OSError, match="in use") as raised:
        Ports().open(Port(LOCAL, number))
    assert raised.value.errno == errno.EADDRINUSE
    ports.keep([Port(LOCAL, 0)])
    assert one.fileno() >= 0
    ports.keep([])
    Ports().open(Port(LOCAL, number))[0].close()


def test_all_addresses_have_the_same_free_port() -> None:
    ports = Ports()
    found = ports.open(Port("", 0, socket.SOCK_DGRAM))
    assert len({one.getsockname()[1] for one in found}) == 1
    assert ports.open(Port("*", 0, socket.SOCK_DGRAM)) == found
    ports.close()
    assert all(one.fileno() < 0 for one in found)


# Limits


def test_the_link_is_paid_for_together(memory: Memory) -> None:
    workers = [SharedLinkPayments(memory) for _ in range(2)]
    assert workers[0].due_after(1000, 1000, 0.0, now=50.0) == 1.0
    assert workers[1].due_after(1000, 1000, 0.0, now=50.0) == 2.0
    assert workers[0].due_after(1000, 1000, 0.0, now=60.0) == 1.0


def test_the_meter_counts_all(memory: Memory) -> None:
    workers = [SharedMeter(memory) for _ in range(2)]
    for second in range(3 * METER_WINDOW):
        for worker in workers:
            worker.count(100, second + 0.5)
    assert {worker.rate(3 * METER_WINDOW) for worker in workers} == {200.0}
    assert workers[0].rate(5 * METER_WINDOW) == 0.0


def _read_quickly(memory: Memory) -> None:
    payments = SharedLinkPayments(memory)
    for _ in range(200):
        payments.due_after(100, 1_000_000, 0.0, now=1.0)


def _forked(work: object) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    return pid


def test_nothing_is_lost_between_processes(memory: Memory) -> None:
    pids = [_forked(lambda: _read_quickly(memory)) for _ in range(4)]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    assert memory.link[0] == pytest.approx(1.0 + 4 * 200 * 100 / 1_000_000)


def test_clients_pay_together(memory: Memory) -> None:
    workers = [SharedClientPayments(memory) for _ in range(2)]
    assert workers[0].charge(LOCAL, 1000, 1000, 0.0, 50.0, 30.0) == 1.0
    assert workers[1].charge(LOCAL, 1000, 1000, 0.0, 50.0, 30.0) == 2.0
    assert workers[1].charge("10.0.0.1", 1000, 1000, 0.0, 50.0, 30.0) == 1.0
    assert workers[0].due_at(LOCAL) == 52.0
    assert workers[0].waiting(50.0) == workers[1].waiting(50.0) == 2
    assert workers[0].charge(LOCAL, 10**9, 1000, 0.0, 50.0, 30.0) == 30.0
    assert workers[0].waiting(90.0) == 0


def test_more_clients_than_places(memory: Memory) -> None:
    payments = SharedClientPayments(memory)
    for number in range(CELLS * 2):
        assert payments.charge(f"client {number}", 1000, 1000, 0.0, 50.0, 30.0) == 1.0
    assert 0 < payments.waiting(50.0) <= CELLS


def test_connections_are_counted_together(memory: Memory) -> None:
    first, second = (ConnectionLimits(5, 3) for _ in range(2))
    first.elsewhere, second.elsewhere = OtherConnections(memory, 1), OtherConnections(memory, 2)
    assert [first.take(LOCAL), second.take(LOCAL), second.take(LOCAL)] == [None, None, None]
    assert first.take(LOCAL) == second.take(LOCAL) == "access.max_connections_per_client"
    assert [first.take("10.0.0.1"), second.take("10.0.0.2")] == [None, None]
    assert first.is_full
    assert second.is_full
    assert first.take("10.0.0.3") == "access.max_connections"
    second.leave(LOCAL)
    assert not first.is_full
    assert first.take(LOCAL) is None
    memory.erase(2)  # it was killed
    assert [first.take(LOCAL), first.is_full] == [None, False]


@pytest.mark.parametrize("which", list(Lock))
def test_a_suspended_worker_keeps_no_lock(memory: Memory, which: Lock) -> None:
    """The others go on without it, and with it once it is free."""
    started, begin = os.pipe()

    def suspend() -> None:
        with memory.locked(which):
            os.write(begin, b"x")
            os.kill(os.getpid(), signal.SIGSTOP)

    pid = _forked(suspend)
    os.read(started, 1)
    os.waitpid(pid, os.WUNTRACED)
    payments, figures = SharedLinkPayments(memory), SharedFigures(memory, 1)
    for number in range(100):
        assert payments.due_after(1000, 1000, 0.0, now=50.0) == number + 1.0
        figures.tell({"transfers": [number]})
    assert SharedFigures(memory, 2).others() == [{"transfers": [99], "pid": os.getpid()}]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with memory.locked(which):
        assert _is_locked_for_others(memory, which)
    for one in (started, begin):
        os.close(one)


def _is_locked_for_others(memory: Memory, which: Lock) -> bool:
    def take() -> None:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(memory._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(which))

    return os.waitpid(_forked(take), 0)[1] == 0


# Figures


def test_workers_learn_of_each_other(memory: Memory) -> None:
    first, second = (SharedFigures(memory, number) for number in (1, 2))
    assert first.others() == []
    second.tell({"transfers": [["daily-3.cdiff", 5, 10]]})
    assert first.others() == [{"transfers": [["daily-3.cdiff", 5, 10]], "pid": os.getpid()}]
    second.tell({"transfers": []})
    assert first.others() == [{"transfers": [], "pid": os.getpid()}]
    second.tell({"transfers": ["x" * 10**6]})  # too much: the last figures stay
    assert first.others()[0]["transfers"] == []
    memory.erase(2)
    assert first.others() == []


def test_half_of_what_a_dead_worker_told(memory: Memory) -> None:
    """It was killed while it wrote."""
    first, second, third = (SharedFigures(memory, number) for number in (1, 2, 3))
    second.tell({"transfers": ["a", "b"]})
    third.tell({"transfers": []})
    memory.figures(2)[20:] = bytes(len(memory.figures(2)) - 20)
    assert first.others() == [{"transfers": [], "pid": os.getpid()}]


def test_what_is_known_is_put_together() -> None:
    others = [
        {"pid": 7, "transfers": [["daily-3.cdiff", 5, 10], ["main-63.cvd", 1, 0]], "feeds": [_host(1, 9.0)]}
    ]
    assert processes_of_all(others) == [os.getppid(), *sorted([7, os.getpid()])]
    assert processes_of_all([]) == [os.getpid()]
    (daily, main) = transfers_of_all([], others)
    assert transfers_of_all([(daily[0], 7, 10)], others) == [(daily[0], 7, 10), main]
    assert transfers_of_all([(daily[0], 2, 10)], others) == [daily, main]
    own = {"objects": 1, "bytes": 2, "hosts": [_host(2, None)]}
    assert feeds_of_all(own, others) == {**own, "hosts": [_host(3, 9.0)]}
    assert feeds_of_all(own, []) == own


def _host(count: int, until: float | None) -> dict[str, object]:
    return {"host": "a", "requests": count, "hits": count, "errors": 0, "cooldown_until": until}


async def test_a_worker_that_dies_during_the_start_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    parent = Parent(["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], 2, os.environ)
    assert await parent.run() == 1
    assert capfd.readouterr().err == "clamproxy: Worker 1 has ended (SIGKILL) during the start.\n"
