"""Asking other gateways, with servers that aren't what they should be."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from clamproxy.config.servers import Peer
from clamproxy.config.settings import Settings
from clamproxy.peers import asking
from clamproxy.peers import peers as peers_module
from clamproxy.peers.peers import Peers, PeerState
from tests.harness.status import machine
from tests.support.clock import Clock
from tests.unit.test_peers_answers import STATUS, body

TOKEN = "0123456789abcdef"

type Answer = tuple[int, bytes]


@dataclass
class Other:
    """Another gateway, or what passes for one."""

    url: str = ""
    answer: Callable[[str], Answer] = lambda path: (404, b"")
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


def gateway_with(count: int, *, limit: bool = True) -> Callable[[str], Answer]:
    """A right answer to each question, with this many machines."""
    machines = [machine(number, daily=0).to_json() for number in range(count)]

    def answer(path: str) -> Answer:
        if path.startswith("/status.json"):
            return 200, body(STATUS)
        query = dict(pair.split("=") for pair in path.partition("?")[2].split("&"))
        first = int(query["offset"])
        return 200, body({"machines": machines[first : first + int(query["limit"])] if limit else machines})

    return answer


@contextmanager
def other_gateway(tls: ssl.SSLContext | None = None) -> Iterator[Other]:
    other = Other()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            other.asked.append(self.path)
            other.tokens.append(self.headers.get("Authorization"))
            status, content = other.answer(self.path)
            if status == 0:
                other.over.wait(30)
                self.close_connection = True
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{other.url}/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that leaves is no error."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    other.url = f"{'https' if tls else 'http'}://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield other
    finally:
        other.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def other() -> Iterator[Other]:
    with other_gateway() as other:
        yield other


class Asker:
    """A gateway that asks another one whenever a test wants that."""

    def __init__(self, other: Other, clock: Clock, **sections: Any) -> None:
        fleet = {"peers": [{"url": other.url, "token": TOKEN}], **sections.pop("fleet", {})}
        self.settings = Settings.model_validate({"fleet": fleet, **sections})
        self.peers = Peers(self.settings, clock)

    async def look(self) -> PeerState:
        await self.peers.look(self.settings.fleet.peers[0])
        (state,) = self.peers.states
        return state


@pytest.fixture
def clock() -> Clock:
    return Clock(1_790_000_000.0)


@pytest.fixture
def asker(other: Other, clock: Clock) -> Iterator[Asker]:
    asker = Asker(other, clock)
    yield asker
    asker.peers.stop()


async def test_status_and_machines(asker: Asker, other: Other, clock: Clock) -> None:
    other.answer = gateway_with(3)
    state = await asker.look()
    assert (state.up, state.reason, state.answered_at) == (True, "", clock.now)
    assert state.name == other.url.partition("://")[2]
    assert state.answer is not None
    assert [one.address for one in state.answer.machines] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    # Neither more than is needed, nor what it says of its own peers.
    assert other.asked == ["/status.json?machines=0", "/fleet.json?offset=0&limit=1000"]
    assert other.tokens == [f"Bearer {TOKEN}"] * 2


async def test_many_machines_come_in_pages(asker: Asker, other: Other, monkeypatch: Any) -> None:
    monkeypatch.setattr(asking, "PER_PAGE", 10)
    other.answer = gateway_with(25)
    state = await asker.look()
    assert state.answer is not None
    assert len({one.uuid for one in state.answer.machines}) == 25
    assert len(other.asked) == 1 + 3


async def test_no_more_machines_than_this_gateway_may_keep(
    other: Other, clock: Clock, monkeypatch: Any
) -> None:
    monkeypatch.setattr(asking, "PER_PAGE", 10)
    other.answer = gateway_with(1000)
    asker = Asker(other, clock, fleet={"max_clients": 25})
    state = await asker.look()
    assert state.answer is not None
    assert len(state.answer.machines) == 25
    asker.peers.stop()


async def test_what_was_last_known_stays(asker: Asker, other: Other, clock: Clock) -> None:
    other.answer = gateway_with(3)
    before = await asker.look()
    clock.now += 3600
    other.answer = lambda _: (503, b"no figures are available now\n")
    state = await asker.look()
    assert (state.up, state.reason) == (False, "it answers 503: no figures are available now")
    assert (state.answer, state.answered_at) == (before.answer, before.answered_at)
    other.answer = gateway_with(4)
    assert (await asker.look()).up is True


HUGE = b'{"machines": [' + b" " * (asking.LARGEST_PAGE + 1)


@pytest.mark.parametrize(
    ("status", "machines", "reason"),
    [
        ((200, b"<html>"), None, "not the status.json of a gateway: no JSON"),
        ((200, b"{" + b" " * 2**21), None, "its answer is larger than 1 MiB"),
        ((401, b"a token"), None, "it answers 401: its status.token is required in fleet.peers"),
        (
            (421, b"not served under this name; use an IP address\n"),
            *(None, "it answers 421: not served under this name; use an IP address"),
        ),
        ((302, b""), None, "it answers 302"),
        ((400, f"what is Bearer {TOKEN}?".encode()), None, "it answers 400"),
        ((500, b"\x1b[31m\x00"), None, "it answers 500"),
        ((200, body(STATUS)), (200, b"<html>"), "not the fleet.json of a gateway"),
        ((200, body(STATUS)), (200, HUGE), "its answer is larger than 4 MiB"),
        ((200, body(STATUS)), (200, body({"machines": [{}] * 1001})), "more machines than were asked for"),
        ((200, body(STATUS)), (302, b""), "it answers 302"),
    ],
)
async def test_what_no_gateway_answers(
    asker: Asker, other: Other, status: Answer, machines: Answer | None, reason: str
) -> None:
    other.answer = lambda path: status if path.startswith("/status") or machines is None else machines
    state = await asker.look()
    assert (state.up, state.reason, state.answer) == (False, reason, None)
    assert not any("elsewhere" in path for path in other.asked)


async def test_one_that_never_answers(asker: Asker, other: Other, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers_module, "DEADLINE", 0.5)
    other.answer = lambda _: (0, b"")
    state = await asker.look()
    assert (state.up, state.reason) == (False, "it takes too long to answer")
    other.over.set()


async def test_trouble_is_logged_once(asker: Asker, other: Other, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clamproxy.peers")
    for answer in ([lambda _: (500, b"")] * 3) + [gateway_with(1)] * 2:
        other.answer = answer
        await asker.look()
    name = other.url.partition("://")[2]
    assert [one.getMessage() for one in caplog.records if one.name.startswith("clamproxy")] == [
        f"The gateway {name} in fleet.peers doesn't answer: it answers 500",
        f"The gateway {name} in fleet.peers answers again.",
    ]


async def test_the_asking_goes_on_after_an_error(asker: Asker, other: Other, monkeypatch: Any) -> None:
    for name in ("LATEST_START", "INTERVAL"):
        monkeypatch.setattr(peers_module, name, 0.05)
    is_first, look, worked = True, asker.peers.look, asyncio.Event()

    async def fail_first(peer: Peer) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            raise RuntimeError("something that nobody has thought of")
        await look(peer)
        worked.set()

    monkeypatch.setattr(asker.peers, "look", fail_first)
    other.answer = gateway_with(1)
    asker.peers.start()
    async with asyncio.timeout(60):
        await worked.wait()


async def test_https(clock: Clock, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with other_gateway(context) as other:
        other.answer = gateway_with(1)
        stranger = Asker(other, clock)
        assert "certificate verify failed" in (await stranger.look()).reason
        friend = Asker(other, clock, upstream={"ca_bundle": tmp_path / "ca.pem"})
        assert (await friend.look()).up is True
        assert json.loads(json.dumps((await friend.look()).to_json()))["version"] == "0.2.0"
        stranger.peers.stop()
        friend.peers.stop()
