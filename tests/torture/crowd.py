"""A crowd of slow or greedy clients, in a process of its own: it must not slow down who measures.

`python -m tests.torture.crowd` reads what they do from its arguments, as JSON, says how many have connected,
and goes on until its input ends. Each line of input is answered by how many the gateway has closed so far. It
imports nothing of the tests, which would take longer than all it does.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Self

TICK = 0.1
"""Seconds."""
PER_ADDRESS = 100
"""How many clients share an address; they begin at 127.1.0.1."""


@dataclass(frozen=True, slots=True)
class Habit:
    """What each client of a crowd does."""

    says: str = ""
    """What it sends at first, in Latin-1."""
    drips: str = ""
    """What it sends each second after that."""
    floods: int = 0
    """How many bytes it sends, as fast as it can; `says`, again and again."""
    reads: int = 0
    """How many bytes it reads per second; 0 for none."""
    buffer: int = 4096
    """The size of its receive buffer, in bytes."""
    ends: bool = False
    """Whether it says after `says` that it won't send any more."""


class Crowd:
    """Clients that are connected until the end of the context.

    Args:
        port: the gateway's.
        count: how many there are of each habit.
        habits: what they do.
    """

    def __init__(self, port: int, count: int, *habits: Habit) -> None:
        orders = json.dumps([port, count, [asdict(habit) for habit in habits]])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.crowd", orders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self._answer() == "there"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def closed(self) -> list[int]:
        """How many connections the gateway has closed, for each habit."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: list[int] = json.loads(self._answer())
        return found

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class _Client:
    def __init__(self, port: int, address: str, habit: Habit) -> None:
        self.stream = socket.socket()
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, habit.buffer)
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        self.stream.settimeout(60)
        self.stream.bind((address, 0))
        self.stream.connect(("127.0.0.1", port))
        self.stream.setblocking(False)
        self._habit = habit
        self._says = habit.says.encode("latin-1")
        self._left = memoryview(self._says)
        self._ends = habit.ends
        self._flood_left = habit.floods
        self._ticks = 0

    def act(self) -> bool:
        """Do what is due at a tick; returns whether the connection is still open."""
        try:
            self._say()
            self._ticks += 1
            if self._habit.drips and self._ticks % round(1 / TICK) == 0:
                self.stream.send(self._habit.drips.encode("latin-1"))
            if self._habit.reads and not self.stream.recv(max(1, round(self._habit.reads * TICK))):
                return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def has_more(self) -> bool:
        """Whether the client has still something to read."""
        try:
            return self._habit.reads > 0 and bool(self.stream.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _say(self) -> None:
        while self._left:
            count = self.stream.send(self._left)
            self._left = self._left[count:]
            self._flood_left -= count
            if not self._left and self._flood_left > 0:
                self._left = memoryview(self._says)
        if self._ends:
            self._ends = False
            self.stream.shutdown(socket.SHUT_WR)


class _Members:
    """All clients of a crowd."""

    def __init__(self, port: int, count: int, habits: list[Habit]) -> None:
        self.closed = [0] * len(habits)
        self._numbers = dict[_Client, int]()
        """Clients that are still connected, and the numbers of their habits."""
        self._gone = select.poll()
        for number in range(count * len(habits)):
            host = number // PER_ADDRESS
            client = _Client(port, f"127.1.{host // 250}.{host % 250 + 1}", habits[number % len(habits)])
            self._numbers[client] = number % len(habits)
            self._gone.register(client.stream, select.POLLRDHUP)
        self._by_descriptor = {client.stream.fileno(): client for client in self._numbers}

    def act(self) -> None:
        for descriptor, _ in self._gone.poll(0):
            client = self._by_descriptor[descriptor]
            if not client.has_more():
                self._drop(client)
        for client in list(self._numbers):
            if not client.act():
                self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._gone.unregister(client.stream)
        self.closed[self._numbers.pop(client)] += 1


def _run(port: int, count: int, habits: list[Habit]) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    members = _Members(port, count, habits)
    _tell("there")
    while True:
        due = time.monotonic() + TICK
        members.act()
        while select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            if not sys.stdin.readline():
                return
            _tell(json.dumps(members.closed))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _port, _count, _habits = json.loads(sys.argv[1])
    _run(_port, _count, [Habit(**_habit) for _habit in _habits])
