"""The model of the soak: its clock, and what its origin knows about what the gateway has read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.soak.origin import SoakOrigin
from tests.harness.soak.plan import Plan
from tests.support import faults
from tests.support.dns_server import Zone
from tests.support.gateway import free_ports
from tests.support.simulated_time import AWAKE, STEP, Timeline
from tests.support.stored import until

BODY = bytes(range(256)) * 256


def test_time_goes_by_timers_until_what_guests_did_is_written() -> None:
    timeline = Timeline([(0.0, 0.0)])
    with timeline.guest():
        timeline.pass_time(5.0)
    assert timeline.monotonic() == 5
    timeline.pass_time(AWAKE)
    assert timeline.monotonic() == 5 + AWAKE
    timeline.pass_time(1.0)
    assert timeline.monotonic() == STEP


def test_time_goes_by_timers_while_the_origin_is_waited_for() -> None:
    timeline = Timeline([(0.0, 0.0)])
    timeline.sleepers = 1
    timeline.pass_time(1.0)
    assert timeline.monotonic() == 1


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[SoakOrigin]:
    proxy, reverse, port, dns = free_ports(4)
    plan = Plan(tmp_path, 1, 1.0, 1, 1, 1, 1.0, 1.0, [1.0], 0.0, (proxy, reverse, port, dns))
    plan.files.mkdir()
    (plan.files / "daily-1.cvd").write_bytes(BODY)
    origin = SoakOrigin(plan, Timeline([(0.0, 0.0)]), Zone())
    origin.names["daily.cvd"] = "daily-1.cvd"
    await origin.accept()
    yield origin
    origin.refuse()


async def ask(origin: SoakOrigin, length: int, *fields: str) -> None:
    """Read so many bytes of the answer's body, and leave."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", origin.port))
        await loop.sock_sendall(client, "\r\n".join(["GET /daily.cvd HTTP/1.1", *fields, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await loop.sock_recv(client, 1)
        while length > 0:
            length -= len(await loop.sock_recv(client, length))
    await until(lambda: not origin.is_connected)


@pytest.mark.parametrize(
    ("fault", "fields", "read", "sent", "unread"),
    [
        pytest.param(faults.Fault(), [], len(BODY), len(BODY), 0, id="all is read"),
        pytest.param(faults.Fault(), [], 8000, len(BODY), len(BODY), id="given up: nobody knows how much"),
        pytest.param(faults.Fault(), ["Range: bytes=0-511"], 512, 512, 0, id="a range"),
        pytest.param(faults.html(), ["Range: bytes=0-511"], 823, 823, 311, id="more than the range"),
        pytest.param(faults.short(700), [], 700, 700, 0, id="cut short by the origin"),
        pytest.param(faults.status(503), [], 0, 0, 0, id="no file"),
    ],
)
async def test_what_the_gateway_may_not_have_read(
    origin: SoakOrigin, fault: faults.Fault, fields: list[str], read: int, sent: int, unread: int
) -> None:
    origin.fault = fault
    await ask(origin, read, *fields)
    assert (origin.books.bytes, origin.books.unread) == (sent, unread)


async def test_a_gateway_that_leaves_in_the_middle(origin: SoakOrigin) -> None:
    origin.fault = faults.slow(100_000)
    await ask(origin, 100)
    assert 0 < origin.books.unread == origin.books.bytes < len(BODY)
