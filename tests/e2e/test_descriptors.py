"""The limit of open files: connections leave room for the files that are served."""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from clamproxy.access.limits import LEAST_CONNECTIONS, descriptors_for
from tests.support.dns_server import FakeDns
from tests.support.gateway import Gateway, Way, receive, send
from tests.support.origin import OriginServer
from tests.support.processes import children
from tests.support.programs import require_program
from tests.support.site import LOCALHOST, eventually, publish, settings_for, signed

from .test_reload import write

ROOM = 100
"""How many connections fit under the limit that the gateways here get."""
LOW = descriptors_for(ROOM)
NAME = "test-6.cdiff"
MITMPROXYS = ("Loading script addons/clamav_cache.py", "Error logged during startup, exiting...")
"""Lines that mitmdump adds when it is started without `clamproxy run`."""
PORTION = 50
OF_ONE = 150
"""Connections from one address; fewer than `access.max_connections_per_client`."""


class Limited(Gateway):
    """A gateway that may open few files, and can't change that."""

    limit = LOW

    def _program(self) -> list[str]:
        return [require_program("prlimit"), f"--nofile={self.limit}:{self.limit}", *super()._program()]


@contextmanager
def limited(
    directory: Path, origin: OriginServer, dns: FakeDns, *, workers: int = 1, **access: object
) -> Iterator[Gateway]:
    """A gateway that holds a patch and may open few files."""
    publish(origin, 6)
    dns.versions["test"] = 6
    settings = settings_for(origin, dns, access={"idle_timeout": "10m", **access})
    with Limited(directory / "gateway", settings, workers=workers, is_command=True) as gateway:
        assert gateway.ask(f"/{NAME}").status == 200
        yield gateway


def connect(gateway: Gateway, count: int, stack: ExitStack) -> Iterator[int]:
    """Open idle connections, from several addresses; gives how many there are after each portion."""
    for number in range(count):
        if number % PORTION == 0:
            yield number
        stream = stack.enter_context(socket.socket())
        stream.settimeout(20)
        stream.bind((f"127.0.1.{number // OF_ONE + 1}", 0))
        stream.connect((LOCALHOST, gateway.port))
    yield count


def descriptors(gateway: Gateway) -> int:
    """Of the process that has the most; only workers serve clients."""
    pids = [gateway.pid, *children(gateway.pid)]
    return max(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()) for pid in pids)


def assert_files_are_served(gateway: Gateway, count: int) -> None:
    """Beside as many idle clients as may connect, and more."""
    with gateway.connection(Way.ABSOLUTE, timeout=40) as first, ExitStack() as stack:
        for _ in connect(gateway, count, stack):  # and the first one is never idle for long
            send(first, f"/{NAME}", Way.ABSOLUTE, connection="keep-alive")
            assert receive(first).body == signed(NAME)
        assert descriptors(gateway) < LOW - ROOM
        assert eventually(lambda: "further connections wait" in gateway.log)
        # Whoever says nothing makes room for those that wait.
        assert gateway.ask(f"/{NAME}", Way.ABSOLUTE, timeout=60).body == signed(NAME)
    assert "Traceback" not in gateway.log
    assert "Too many open files" not in gateway.log


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_leave_room_for_files(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, workers: int
) -> None:
    with limited(tmp_path, origin, dns, workers=workers) as gateway:
        lines = [line for line in gateway.log.splitlines() if "open files" in line]
        assert len(lines) == 1, gateway.log
        assert f"{ROOM} connections" in lines[0]
        assert "access.max_connections is 2000" in lines[0]
        assert_files_are_served(gateway, LOW * workers + 20)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_that_allows_more(tmp_path: Path, origin: OriginServer, dns: FakeDns, workers: int) -> None:
    with limited(tmp_path, origin, dns, workers=workers, max_connections=ROOM // 2) as gateway:
        assert "open files" not in gateway.log
        write(gateway, access={"max_connections": 5000})
        assert gateway.tool("reload").returncode == 0
        assert eventually(lambda: "access.max_connections is 5000" in gateway.log)
        assert gateway.log.count("access.max_connections is 5000") == 1
        assert_files_are_served(gateway, LOW * workers + 20)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("limit", [96, descriptors_for(LEAST_CONNECTIONS) - 1])
def test_too_few_for_anything(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, limit: int, workers: int
) -> None:
    gateway = Limited(tmp_path / "gateway", settings_for(origin, dns), workers=workers, is_command=True)
    gateway.limit = limit
    with pytest.raises(RuntimeError), gateway:
        pass
    (line,) = (line for line in gateway.log.splitlines() if not line.endswith(MITMPROXYS))
    assert re.search(rf"open files.* {limit}\b", line)
    assert f"at least {descriptors_for(LEAST_CONNECTIONS)}" in line
    assert str(descriptors_for(2000)) in line


def test_when_there_are_none_all_the_same(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    """As when the whole system has no more: machines come again, and the log isn't flooded."""
    with limited(tmp_path, origin, dns) as gateway, ExitStack() as stack:
        assert gateway.ask("/test.cvd").status == 200
        held = [stack.enter_context(gateway.connection(Way.ABSOLUTE)) for _ in range(5)]
        for one in held:
            send(one, f"/{NAME}", Way.ABSOLUTE, connection="keep-alive")
            assert receive(one).status == 200
        before = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        for one in held:
            send(one, "/test.cvd", Way.ABSOLUTE, connection="keep-alive")
            answer = receive(one)
            assert (answer.status, int(answer.headers["retry-after"]) > 0) == (503, True)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
        assert gateway.ask(f"/{NAME}").body == signed(NAME)
    assert "Traceback" not in gateway.log
    assert gateway.log.count(": while that lasts, such failures are logged once a minute") == 1
