"""Requests that are answered at the door, before their connection has a transport."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import pytest

from clamproxy.access.balancers import Balancers
from clamproxy.front import Front
from clamproxy.proxy.door import Door, Leave, Prompt, Threshold
from clamproxy.proxy.lane import Lane
from clamproxy.proxy.lane_connection import LaneConnection
from tests.harness.service import RELEASES, ServiceHarness, open_harness
from tests.support.origin import OriginServer
from tests.support.proxy_headers import binary_header, text_header
from tests.support.stored import AGENT, until

CDIFF = "/daily-2.cdiff"


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.hold(1, 2)
        await harness.ask(CDIFF)
        yield harness


class Slow(socket.socket):
    """A client that takes a few bytes at a time at first."""

    def send(self, data: bytes, *_: object) -> int:  # type: ignore[override]
        return super().send(data[:100])


def front_of(harness: ServiceHarness) -> Front:
    front = Front()
    front.install(harness.service)
    return front


def connection_of(front: Front) -> LaneConnection:
    def hand_over(*_: object) -> None:
        pytest.fail("handed over")

    return LaneConnection(Lane(front, lambda _: None), lambda: None, hand_over, ("192.0.2.1", 80))


def request(*fields: str) -> bytes:
    return "\r\n".join([f"GET {CDIFF} HTTP/1.1", "Host: x", f"User-Agent: {AGENT}", *fields, "", ""]).encode()


def pair(kind: type[socket.socket] = socket.socket) -> tuple[socket.socket, socket.socket]:
    """A client and the server's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        server = kind(fileno=accepted.detach())
    server.setblocking(False)
    client.settimeout(20)
    return client, server


@pytest.mark.parametrize(
    ("sent", "is_answered"),
    [
        (request("Connection: close"), True),
        (request(), False),  # it stays open
        (request("Connection: close", "Range: bytes=0-9"), False),  # not from memory
        (request("Connection: close") + b"G", False),
        (request("Connection: close")[:-1], False),
        (b"GET", False),
        (b"\x16\x03\x01", False),
        (b"", False),
    ],
)
async def test_what_is_answered_at_the_door(harness: ServiceHarness, sent: bytes, is_answered: bool) -> None:
    client, server = pair()
    with closing(client), closing(server):
        client.sendall(sent)
        assert connection_of(front_of(harness)).answer_at_door(server) is is_answered
        if is_answered:
            assert client.recv(65536).endswith(RELEASES.cdiff(2))


async def test_the_rest_follows(harness: ServiceHarness) -> None:
    """A client that can't take the whole answer at once gets it all the same, and once."""
    client, server = pair(Slow)
    client.sendall(request("Connection: close"))
    connection = connection_of(front_of(harness))
    assert not connection.answer_at_door(server)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, server)
    reader, writer = await asyncio.open_connection(sock=client)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == RELEASES.cdiff(2)
    writer.close()
    await harness.service.flush()
    counters = harness.service.store.counters()
    assert counters["hits"] == 1


@pytest.mark.parametrize("header", [text_header("192.0.2.7"), binary_header("192.0.2.7")])
async def test_clients_of_a_balancer(
    harness: ServiceHarness, header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """They get their answer at the door, too, and it is known whose it is."""
    caplog.set_level(logging.INFO)
    front, balancers, received = front_of(harness), Balancers(), list[LaneConnection]()
    front.limits.in_all = 10
    balancers.announcing = [ip_network("127.0.0.0/8")]
    threshold = Threshold(lambda _: True, front.limits, balancers)
    lane = Lane(front, lambda _: None)

    def receive(leave: Leave) -> LaneConnection:
        received.append(LaneConnection(lane, leave, lambda *_: None, ("192.0.2.1", 80)))
        return received[-1]

    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    Door([listener], threshold, receive)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(header + request("Connection: close"))
    assert (await reader.read()).endswith(RELEASES.cdiff(2))
    writer.close()
    (connection,) = received
    assert not hasattr(connection, "transport")
    assert f"192.0.2.7 GET {CDIFF} " in caplog.text
    threshold.close()


async def test_a_place_is_free_again(harness: ServiceHarness) -> None:
    front = front_of(harness)
    front.limits.in_all = 1
    threshold = Threshold(lambda _: True, front.limits)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    lane = Lane(front, lambda _: None)
    Door([listener], threshold, lambda leave: LaneConnection(lane, leave, lambda *_: None, ("192.0.2.1", 80)))
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request("Connection: close"))
        assert (await reader.read()).endswith(RELEASES.cdiff(2))
        writer.close()
        await until(lambda: not front.limits.is_full)
    threshold.close()


class Failing(Prompt):
    """A server with a bug."""

    def answer_at_door(self, client: socket.socket) -> bool:
        raise RuntimeError("a bug")


async def test_a_bug_costs_no_place(harness: ServiceHarness) -> None:
    front = front_of(harness)
    front.limits.in_all = 1
    threshold = Threshold(lambda _: True, front.limits)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    Door([listener], threshold, lambda _: Failing())
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not front.limits.is_full)
    threshold.close()
