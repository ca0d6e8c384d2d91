"""What the service manager hears, on a socket as systemd has it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamproxy.supervision import Supervisor

SECOND = 1_000_000
"""As WATCHDOG_USEC counts."""


class Manager:
    """The end of the service manager."""

    def __init__(self, address: str, name: str) -> None:
        self.environ = {"NOTIFY_SOCKET": name}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def heard(self) -> list[str] | None:
        """The lines of one message, None if there is none."""
        try:
            return self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    if request.param == "path":
        name = f"/tmp/notify-{uuid.uuid4()}"  # the path of tmp_path may be too long for a socket
        manager = Manager(name, name)
    else:
        name = f"clamproxy-test-{uuid.uuid4()}"
        manager = Manager(f"\0{name}", f"@{name}")
    yield manager
    manager.close()
    if request.param == "path":
        Path(name).unlink()


def test_life_of_a_service(manager: Manager) -> None:
    supervisor = Supervisor(manager.environ)
    supervisor.ready("Serving on port 8080")
    assert manager.heard() == ["READY=1", "STATUS=Serving on port 8080"]
    supervisor.stopping()
    assert manager.heard() == ["STOPPING=1", "STATUS=Stopping"]
    assert manager.heard() is None


def test_reloading_tells_the_time(manager: Manager) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Supervisor(manager.environ).reloading()
    state, clock, status = manager.heard() or ["", "", ""]
    assert (state, status.partition("=")[0]) == ("RELOADING=1", "STATUS")
    name, _, value = clock.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_status_is_one_line(manager: Manager) -> None:
    """What comes from elsewhere can't tell the manager more than a status."""
    Supervisor(manager.environ).ready("a\nMAINPID=1\r\n b")
    assert manager.heard() == ["READY=1", "STATUS=a MAINPID=1 b"]


async def test_watchdog(manager: Manager) -> None:
    supervisor = Supervisor(manager.environ | {"WATCHDOG_USEC": str(SECOND // 10)})
    assert supervisor.watchdog_interval == 0.05
    supervisor.start()
    supervisor.start()
    async with asyncio.timeout(30):
        for _ in range(3):
            while (lines := manager.heard()) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert lines == ["WATCHDOG=1"]
    supervisor.stop()
    supervisor.stop()
    await asyncio.sleep(0.2)
    while manager.heard():
        pass
    await asyncio.sleep(0.2)
    assert manager.heard() is None


async def test_a_loop_that_hangs_gives_no_sign_of_life(manager: Manager) -> None:
    supervisor = Supervisor(manager.environ | {"WATCHDOG_USEC": str(SECOND // 50)})
    supervisor.start()
    await asyncio.sleep(0.1)
    while manager.heard():
        pass
    time.sleep(0.3)  # noqa: ASYNC251
    assert manager.heard() is None
    supervisor.stop()


async def test_watchdog_of_another_process(manager: Manager) -> None:
    environ = manager.environ | {"WATCHDOG_USEC": str(SECOND)}
    assert Supervisor(environ | {"WATCHDOG_PID": str(os.getpid())}).watchdog_interval == 0.5
    other = Supervisor(environ | {"WATCHDOG_PID": str(os.getppid())})
    assert other.watchdog_interval is None
    other.start()
    await asyncio.sleep(0)
    assert manager.heard() is None


@pytest.mark.parametrize("text", ["", "0", "-5", "a minute"])
def test_no_watchdog(manager: Manager, text: str) -> None:
    assert Supervisor(manager.environ | {"WATCHDOG_USEC": text}).watchdog_interval is None


@pytest.mark.parametrize("name", [None, "", "vsock:2:1234", "relative/path"])
async def test_without_a_manager_nothing_happens(name: str | None, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor({"WATCHDOG_USEC": "1000"} | ({} if name is None else {"NOTIFY_SOCKET": name}))
    supervisor.start()
    supervisor.ready("Serving")
    supervisor.reloading()
    supervisor.stopping()
    supervisor.stop()
    assert supervisor.watchdog_interval is None
    assert not caplog.records


def test_a_manager_that_is_gone_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with caplog.at_level(logging.WARNING):
        supervisor.ready()
        supervisor.stopping()
    assert len(caplog.records) == 1


def test_a_manager_that_does_not_read_holds_nothing_up(manager: Manager) -> None:
    """Its queue is full: messages are dropped, nobody waits."""
    supervisor = Supervisor(manager.environ)
    for _ in range(2000):
        supervisor.ready("x" * 100)
    assert manager.heard() is not None
