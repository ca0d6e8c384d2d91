"""The express lane: what it doesn't answer goes to mitmproxy, and nobody can tell the difference."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.big import PATH, Forgery, begun_download
from tests.support.faults import Fault
from tests.support.freshclam import OK
from tests.support.gateway import CDN, PATIENT_ADDON, USER_AGENT, Gateway, Way, receive, send, tunnel
from tests.support.raw import RawServer
from tests.support.raw_http import LOCALHOST, exchange, parse_answers
from tests.support.site import Site, eventually, open_site, signed

from .conftest import MakeForged, MakeSite

NAME = "test-6.cvd.sign"
TUNNEL = f"{CDN}:80"
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
DOORS = {"absolute": f"http://{CDN}/{NAME}", "tunnel": f"/{NAME}", "reverse": f"/{NAME}"}


@dataclass(frozen=True)
class Pair:
    """Two sites that differ in one setting only."""

    express: Site
    plain: Site


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both have the same files in their caches; tests only read."""
    with ExitStack() as stack:
        sites = []
        for is_express in (True, False):
            directory = tmp_path_factory.mktemp("lane")
            site = open_site(directory, serving={"hosts": [CDN], "express": is_express})
            stack.callback(site.close)
            site.publish(6)
            assert site.gateway.ask(f"/{NAME}", Way.ABSOLUTE).status == 200
            sites.append(site)
        yield Pair(*sites)
        assert not [site.gateway.log for site in sites if "Traceback" in site.gateway.log]


def statuses_of(site: Site, sent: bytes, door: str, pause_at: int = 0) -> list[int]:
    port = site.gateway.reverse_port if door == "reverse" else site.gateway.port
    inside = TUNNEL if door == "tunnel" else None
    received = exchange(port, sent, inside=inside, half_closes=True, pause_at=pause_at)
    return [int(status) for status in _STATUS.findall(received)]


# Heads

HEADS = {
    "ordinary": ("GET {f} HTTP/1.1|Host: x|Connection: close||", [200]),
    "folded": ("GET {f} HTTP/1.1|Host: x|Range: bytes=0-|\t9|Connection: close||", [206]),
    "content": ("POST {f} HTTP/1.1|Host: x|Content-Length: 3||abcGET {f} HTTP/1.0||", [405, 200]),
    "no Host": ("GET {f} HTTP/1.1|Connection: close||", [400]),
    "a bare LF": ("GET {f} HTTP/1.1\nHost: x\nConnection: close\n\n", [200]),
    "no HTTP": ("nonsense||", [400]),
    "RTSP": ("GET {f} RTSP/1.0|Host: x||", [400]),
    "a control character": ("GET {f} HTTP/1.1|Host: x|X: \x01||", [400]),
    "a coding after VT": ("POST {f} HTTP/1.1|Host: x|Transfer-Encoding: \x0bchunked||0||", [400]),
    "CR first": ("\rHEAD {f} HTTP/1.1|Host: x||", [400]),
    "empty lines first": ("|\nHEAD {f}x HTTP/1.1|Host: x|Connection: close||", [404]),
    "ordinary, then TLS": ("HEAD {f}x HTTP/1.1|Host: x||\x16\x03\x01\0\x05 |Host: x||", [404, 400]),
    "ordinary, then PROXY": ("HEAD {f}x HTTP/1.1|Host: x||PROXY TCP4 127.0.0.1 127.0.0.1 1 2||", [404, 400]),
    "ordinary, then odd": ("HEAD {f}x HTTP/1.1|Host: x|||GET  {f} HTTP/1.1|Host: x|Upgrade: y||", [404, 200]),
}


@pytest.mark.parametrize("head", HEADS)
def test_heads_in_two_pieces(pair: Pair, head: str) -> None:
    """Wherever the first piece ends."""
    text, statuses = HEADS[head]
    text = text.replace("|", "\r\n")

    def statuses_cut(cut: int) -> list[int]:
        door = list(DOORS)[cut % len(DOORS)]
        return statuses_of(pair.express, text.replace("{f}", DOORS[door]).encode(), door, cut)

    cuts = range(1, len(text))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(statuses_cut, cuts)) == [statuses] * len(cuts)


# Tunnels


@pytest.mark.parametrize("options", ["http2: true", "request_client_cert: true", ""], ids=str)
def test_tls_that_mitmproxy_has_to_speak(make_site: MakeSite, tmp_path: Path, options: str) -> None:
    """It gets the connection once."""
    place = tmp_path / "site-0" / "gateway" / "conf" / "config.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(f"{options}\n")
    site = make_site()
    site.publish(6)
    for _ in range(2):
        assert site.gateway.ask(f"/{NAME}", Way.CONNECT_HTTPS).body == signed(NAME)


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS])
def test_a_tunnel_is_handed_over(make_forged: MakeForged, forgery: Forgery, way: Way) -> None:
    """An odd request in a tunnel that the lane has opened, and the next one, get what others get."""
    site = make_forged()
    with site.gateway.connection(way) as connection:
        for fields in ({}, {"content_length": "0"}, {}):
            send(connection, PATH, way, **{"connection": "keep-alive", **fields})
            answer = receive(connection)
            assert (answer.status, answer.body) == (200, forgery.body)
        connection.sock.sendall(b"nonsense\r\n\r\n")
        assert connection.sock.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in site.gateway.log


@pytest.mark.parametrize("fields", [{}, {"content_length": "0"}], ids=["lane", "mitmproxy"])
def test_tls_that_breaks_before_the_answer(make_site: MakeSite, fields: dict[str, str]) -> None:
    """The connection ends; nothing fails when there is an answer that can't be sent any more."""
    site = make_site()
    site.publish(6)
    site.origin.rule("/test-5.cdiff", Fault(silent=True))
    with site.gateway.connection(Way.CONNECT_HTTPS) as connection:
        send(connection, "/test-5.cdiff", Way.CONNECT_HTTPS, **fields)
        assert eventually(lambda: site.origin.count("/test-5.cdiff"))
        with socket.socket(fileno=os.dup(connection.sock.fileno())) as beneath:
            beneath.settimeout(20)
            beneath.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            while beneath.recv(1000):
                pass
    assert eventually(lambda: "GET /test-5.cdiff" in site.gateway.log)
    assert "Traceback" not in site.gateway.log


def test_many_requests_on_one_connection(pair: Pair) -> None:
    """Pipelined requests, more of them than are read ahead, are answered in their order."""
    ask = "GET /{} HTTP/1.1\r\nHost: x\r\nRange: bytes={}-{}\r\n{}\r\n"
    count = 2000
    sent = "".join(ask.format(NAME, n, n, "Connection: close\r\n" * (n == count - 1)) for n in range(count))
    answers = parse_answers(exchange(pair.express.gateway.port, sent.encode(), inside=TUNNEL))
    assert [answer.headers["content-range"].split("/")[0] for answer in answers] == [
        f"bytes {n}-{n}" for n in range(count)
    ]


def test_a_client_that_reads_late(pair: Pair) -> None:
    """What is not read yet when the answers have filled its buffers is read when there is room again."""
    count, field = 6000, f"User-Agent: {USER_AGENT}\r\n"
    sent = f"GET /{NAME} HTTP/1.1\r\nHost: x\r\n{field}\r\n" * (count - 1)
    sent += f"GET /{NAME} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    received = bytearray()
    with ThreadPoolExecutor(1) as pool, socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        stream.settimeout(20)
        stream.connect((LOCALHOST, pair.express.gateway.reverse_port))
        sending = pool.submit(stream.sendall, sent.encode())
        time.sleep(0.5)
        while piece := stream.recv(1024 * 1024):
            received += piece
        sending.result()
    assert received.count(b"HTTP/1.1 200 ") == received.count(signed(NAME)) == count


def test_one_client_keeps_nobody_waiting(pair: Pair) -> None:
    """Whatever one client has sent at once, others are answered in between."""
    ask = f"GET /{NAME} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0\r\n"
    sent = f"{ask}\r\n" * 4000 + f"{ask}Connection: close\r\n\r\n"
    with ThreadPoolExecutor(1) as pool:
        greedy = pool.submit(exchange, pair.express.gateway.reverse_port, sent.encode())
        between = 0
        while not greedy.done():
            assert pair.express.gateway.ask(f"/{NAME}", Way.ABSOLUTE).status == 200
            between += 1
    assert greedy.result().count(b"HTTP/1.1 206 ") == 4001
    assert between > 10


@pytest.mark.parametrize("way", list(Way))
def test_a_client_that_leaves_in_the_middle(make_forged: MakeForged, forgery: Forgery, way: Way) -> None:
    """It is in the log once, as not complete, and nothing of it is left."""
    site = make_forged()
    assert site.gateway.ask(PATH).body == forgery.body
    with begun_download(site.gateway, 1000, way, buffer=8192):
        pass
    assert eventually(lambda: _descriptors(site.gateway, "daily") == 0)
    assert eventually(lambda: site.gateway.log.count(f"{PATH} ") == 2)
    assert "Traceback" not in site.gateway.log
    assert site.gateway.ask(PATH, way).body == forgery.body


def _descriptors(gateway: Gateway, name: str) -> int:
    links = Path(f"/proc/{gateway.pid}/fd").iterdir()
    return sum(name in str(link.readlink()) for link in links if link.is_symlink())


@pytest.mark.parametrize("hello", [b"no ClientHello", b"a" * 40_000], ids=["short", "long"])
def test_tls_that_is_none(pair: Pair, hello: bytes) -> None:
    """What follows the first bytes may come while mitmproxy ends the handshake; the fixture reads the log."""
    for site in (pair.express, pair.plain):
        with socket.create_connection((LOCALHOST, site.gateway.port), timeout=20) as stream:
            tunnel(stream, f"{CDN}:443")
            with suppress(ConnectionError):
                stream.sendall(b"\x16\x03\x01\x00\x05" + hello[:10])
                stream.sendall(hello[10:])
                assert stream.recv(1) == b""


def test_a_client_without_the_certificate(pair: Pair) -> None:
    """The log says so in the words that the documents explain."""
    for site in (pair.express, pair.plain):
        with socket.create_connection((LOCALHOST, site.gateway.port), timeout=20) as stream:
            tunnel(stream, f"{CDN}:443")
            with pytest.raises(ssl.SSLCertVerificationError):
                ssl.create_default_context().wrap_socket(stream, server_hostname=CDN)
        words = f"The client does not trust the proxy's certificate for {CDN}"
        assert eventually(lambda: words in site.gateway.log)  # noqa: B023  (called at once)


def test_an_address_among_the_hosts(make_site: MakeSite) -> None:
    """Its certificate is for an address: clients look for no name then."""
    site = make_site(serving={"hosts": [CDN, "127.0.0.9"]})
    site.publish(6)
    assert site.gateway.ask(f"/{NAME}", Way.CONNECT_HTTPS, host="127.0.0.9").status == 200


# The door


def test_above_the_limit_connections_wait(make_site: MakeSite) -> None:
    """A fleet wakes within one second: no connection is closed, and all machines are answered."""
    count = 1500
    # All the clients are one process, which may take longer than a client may be idle at the limit.
    limits = {"max_connections": 100, "max_connections_per_client": 100}
    site = make_site(script=PATIENT_ADDON, access=limits)
    site.publish(6)
    assert site.gateway.ask(f"/{NAME}").status == 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count * 2), hard))
    try:
        answers = asyncio.run(_storm(site.gateway.port, count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answers == [signed(NAME)] * count
    assert "closed a connection" not in site.gateway.log
    assert site.gateway.ask(f"/{NAME}").status == 200


async def _storm(port: int, count: int) -> list[bytes]:
    return await asyncio.gather(*(_update(port, f"127.0.{n // 250}.{n % 250 + 1}") for n in range(count)))


async def _update(port: int, address: str) -> bytes:
    """What freshclam does for one file, from an address of its own."""
    fields = f"Host: {CDN}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(LOCALHOST, port, local_addr=(address, 0))
    writer.write(f"CONNECT {TUNNEL} HTTP/1.1\r\n{fields}".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.write(f"GET /{NAME} HTTP/1.1\r\n{fields}".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    writer.close()
    return body


@pytest.mark.parametrize("is_express", [True, False])
def test_a_connection_waits_for_another_to_end(make_site: MakeSite, *, is_express: bool) -> None:
    site = make_site(access={"max_connections": 2}, serving={"hosts": [CDN], "express": is_express})
    site.publish(6)
    held = [socket.create_connection((LOCALHOST, site.gateway.port), timeout=20) for _ in range(2)]
    for stream in held:
        stream.sendall(b"GET ")  # so that it was accepted before the next one
    with site.gateway.connection(Way.ABSOLUTE) as late, ThreadPoolExecutor(1) as pool:
        send(late, f"/{NAME}", Way.ABSOLUTE)
        answer = pool.submit(receive, late)
        time.sleep(0.5)
        assert not answer.done()
        held[0].close()
        assert answer.result(30).body == signed(NAME)
    held[1].close()
    assert site.gateway.log.count("access.max_connections has been reached: further connections wait.") == 1


@pytest.mark.parametrize("is_express", [True, False])
def test_who_has_left_meanwhile_is_let_go(make_site: MakeSite, *, is_express: bool) -> None:
    """A connection that was reset while it waited has no address any more, and no rights."""
    site = make_site(access={"max_connections": 1}, serving={"hosts": [CDN], "express": is_express})
    site.publish(6)
    address = (LOCALHOST, site.gateway.port)
    with RawServer(lambda _: None) as elsewhere:
        with socket.create_connection(address, timeout=20) as held:
            held.sendall(b"GET ")  # so that it was accepted before the next ones
            for _ in range(20):
                with socket.create_connection(address, timeout=20) as stream:
                    stream.sendall(f"GET {elsewhere.url}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert site.gateway.ask(f"/{NAME}").status == 200
        assert elsewhere.accepted == 0
    assert "Traceback" not in site.gateway.log


def test_idle_connections_make_room(make_site: MakeSite) -> None:
    """Kept-alive connections without requests lock no other client out."""
    site = make_site(access={"max_connections": 2, "idle_timeout": "10m"})
    site.publish(6)
    with ExitStack() as stack:
        for _ in range(2):
            idle = stack.enter_context(site.gateway.connection(Way.ABSOLUTE))
            send(idle, f"/{NAME}", Way.ABSOLUTE, connection="keep-alive")
            assert receive(idle).status == 200
        assert site.gateway.ask(f"/{NAME}", Way.ABSOLUTE, timeout=40).body == signed(NAME)


def test_without_descriptors_connections_wait(make_site: MakeSite) -> None:
    site = make_site()
    site.publish(6)
    assert site.gateway.ask(f"/{NAME}").status == 200
    before = resource.prlimit(site.gateway.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(site.gateway.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    with site.gateway.connection(Way.ABSOLUTE) as late:
        send(late, f"/{NAME}", Way.ABSOLUTE)
        assert eventually(lambda: "New connections have to wait" in site.gateway.log)
        resource.prlimit(site.gateway.pid, resource.RLIMIT_NOFILE, before)
        assert receive(late).body == signed(NAME)


# The setting


@pytest.mark.parametrize("is_express", [True, False])
def test_what_mitmproxy_sees(make_site: MakeSite, tmp_path: Path, *, is_express: bool) -> None:
    """The log says what to set if mitmproxy should write all requests to a file."""
    flows = tmp_path / "flows"
    options = tmp_path / "site-0" / "gateway" / "conf" / "config.yaml"
    options.parent.mkdir(parents=True)
    options.write_text(f"save_stream_file: {flows}\n")
    site = make_site(serving={"hosts": [CDN], "express": is_express})
    site.publish(6)
    outcome = site.client().run()
    assert (outcome.code, outcome.version) == (OK, 6)
    site.gateway.stop()
    assert (b"/test.cvd" in flows.read_bytes()) == (not is_express)
    assert ("with serving.express: false" in site.gateway.log) == is_express


@pytest.mark.parametrize(
    ("option", "status"), [("proxyauth: u:p", 407), ("block_list: ['|~u sign|410']", 410)]
)
def test_what_mitmproxy_refuses_is_refused(
    make_site: MakeSite, tmp_path: Path, option: str, status: int
) -> None:
    """Its own options go on counting: nobody gets past them."""
    options = tmp_path / "site-0" / "gateway" / "conf" / "config.yaml"
    options.parent.mkdir(parents=True)
    options.write_text(f"{option}\n")
    site = make_site()
    site.publish(6)
    assert site.gateway.ask(f"/{NAME}", Way.ABSOLUTE).status == status
