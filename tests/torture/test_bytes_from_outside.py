"""A gateway gets bytes that mean little or nothing, at each of its ports and in the files that it reads.

Whatever they are: no traceback in its log, it goes on serving, and it keeps nothing of it in memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from clamproxy.releases.holds import FILE_NAME as HOLDS
from clamproxy.site_files.catalog import FILE_NAME as CATALOG
from clamproxy.site_files.ignoring import HISTORY as IGNORED
from tests.support.data import require_testdata
from tests.support.dns_server import open_dns
from tests.support.gateway import Gateway, free_ports, tunnel
from tests.support.origin import OriginServer
from tests.support.proxy_headers import binary_header, text_header
from tests.support.site import LOCALHOST, Site, eventually, settings_for
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds
from tests.torture.inputs import HOSTILE, mutated
from tests.torture.parsers import BY_NAME

TARGET = "database.clamav.net"
BALANCER = "127.0.0.77"
"""Connections from this address begin with a PROXY header."""
AT_A_TIME = 6
PATIENCE = 1.0
"""Seconds to wait for an answer: the gateway may be waiting for more."""
ROOM = 48 * 2**20
"""Bytes by which its memory may grow with as many inputs again: caches fill."""
CRIES = ("Traceback (most recent call last)", "has crashed", "was never retrieved", "Unhandled error")


class Outside:
    """A gateway with all of its ports, and somebody who sends to them."""

    def __init__(self, directory: Path) -> None:
        self.status_port, self.dns_port = free_ports(2)
        origin, dns = OriginServer(), open_dns()
        settings = settings_for(
            origin,
            dns,
            status={"listen": f"{LOCALHOST}:{self.status_port}"},
            access={"proxy_protocol": [BALANCER]},
        )
        self.gateway = Gateway(directory, settings, modes=[f"dns@{LOCALHOST}:{self.dns_port}"])
        self.site = Site(directory, origin, dns, self.gateway)

    def connected(self, port: int, source: str = LOCALHOST) -> socket.socket:
        return socket.create_connection((LOCALHOST, port), 20, source_address=(source, 0))

    def serves(self) -> bool:
        """Whether clients get what they ask for at each port."""
        with self.connected(self.status_port) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            is_live = b" 200 " in connection.recv(200)
        with socket.socket(type=socket.SOCK_DGRAM) as connection:
            connection.settimeout(20)
            connection.sendto(BY_NAME["DNS query"].seeds[0], (LOCALHOST, self.dns_port))
            is_named = len(connection.recv(2000)) > 12
        return is_live and is_named and self.gateway.ask("/test-6.cdiff").status == 200

    @property
    def memory(self) -> int:
        """Bytes of its process, resident."""
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.gateway.pid}/fd"))  # noqa: PTH208


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    require_testdata()
    outside = Outside(tmp_path / "gateway")
    try:
        outside.gateway.start()
        outside.site.publish(6)
        assert outside.serves()
        yield outside
    finally:
        outside.site.close()


def spoken(connection: socket.socket, data: bytes) -> None:
    """Send everything, and take what comes, until either side has had enough."""
    connection.settimeout(PATIENCE)
    with contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def to_proxy(outside: Outside, data: bytes) -> None:
    with outside.connected(outside.gateway.port) as connection:
        spoken(connection, data)


def to_reverse(outside: Outside, data: bytes) -> None:
    with outside.connected(outside.gateway.reverse_port) as connection:
        spoken(connection, data)


def to_status(outside: Outside, data: bytes) -> None:
    with outside.connected(outside.status_port) as connection:
        spoken(connection, data)


def from_balancer(outside: Outside, data: bytes) -> None:
    with outside.connected(outside.gateway.port, BALANCER) as connection:
        spoken(connection, data)


def in_tunnel(outside: Outside, data: bytes) -> None:
    with outside.connected(outside.gateway.port) as connection:
        tunnel(connection, f"{TARGET}:443" if data[:1] == b"\x16" else f"{TARGET}:80")
        spoken(connection, data)


def in_tls(outside: Outside, data: bytes) -> None:
    context = ssl.create_default_context(cafile=str(outside.gateway.ca))
    with outside.connected(outside.gateway.port) as connection:
        tunnel(connection, f"{TARGET}:443")
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_hostname=TARGET) as secure:
            spoken(secure, data)


def by_datagram(outside: Outside, data: bytes) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as connection:
        connection.settimeout(PATIENCE / 10)
        with contextlib.suppress(OSError):
            connection.sendto(data[:1400], (LOCALHOST, outside.dns_port))
            connection.recv(65536)


def by_stream(outside: Outside, data: bytes) -> None:
    with outside.connected(outside.dns_port) as connection:
        spoken(connection, len(data[:65535]).to_bytes(2) + data[:65535])


def client_hello() -> bytes:
    """The first bytes of TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=TARGET)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


@dataclass(frozen=True, slots=True)
class Door:
    """One way in."""

    name: str
    send: Callable[[Outside, bytes], None]
    seeds: tuple[bytes, ...]


HEADS = BY_NAME["request head, mitmproxy"].seeds
PAGES = tuple(
    b"GET /%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path
    for path in (
        b"status.json",
        b"fleet.json?q=a&limit=5&sort=-address",
        b"metrics",
        b"readyz",
        b"",
        b"dns.txt",
    )
)
HEADERS = tuple(
    header + HEADS[0] for header in (text_header("192.0.2.9"), binary_header("192.0.2.9", extra=b"abc"))
)
QUERIES = BY_NAME["DNS query"].seeds
DNS_MESSAGES = (*QUERIES, QUERIES[0][:2] + b"\x81" + QUERIES[0][3:])
"""Queries, and a response that nobody asked for."""
DOORS = (
    Door("the proxy's port", to_proxy, (*HEADS, client_hello())),
    Door("the port of the mirror", to_reverse, (*HEADS, client_hello())),
    Door("the status page", to_status, PAGES),
    Door("a balancer's connections", from_balancer, HEADERS),
    Door("a tunnel", in_tunnel, (*HEADS, client_hello())),
    Door("TLS in a tunnel", in_tls, (*HEADS, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")),
    Door("datagrams of DNS", by_datagram, DNS_MESSAGES),
    Door("streams of DNS", by_stream, DNS_MESSAGES),
)


def assert_unmoved(outside: Outside) -> None:
    log = outside.gateway.log
    assert [cry for cry in CRIES if cry in log] == [], log[-6000:]
    assert outside.serves()


def test_bytes_at_each_port(outside: Outside, figures: Figures) -> None:
    choices = random.Random(SEED)

    def send_some(count: int) -> None:
        inputs = [
            (
                door,
                mutated(choices.choice(door.seeds), choices)
                if choices.random() < 0.9
                else choices.randbytes(200),
            )
            for _ in range(count)
            for door in DOORS
        ]
        with ThreadPoolExecutor(AT_A_TIME) as senders:
            list(senders.map(lambda one: one[0].send(outside, one[1]), inputs))

    unchanged = [(door, data) for door in DOORS for data in (*HOSTILE, *door.seeds)]
    with ThreadPoolExecutor(AT_A_TIME) as senders:
        list(senders.map(lambda one: one[0].send(outside, one[1]), unchanged))
    count = rounds(12, 900)
    send_some(count)
    before, open_before = outside.memory, outside.descriptors
    send_some(count)
    assert eventually(lambda: outside.descriptors <= open_before + 8)
    grown = outside.memory - before
    figures(
        "bytes at ports",
        ports=len(DOORS),
        inputs=2 * count * len(DOORS) + len(unchanged),
        tracebacks=sum(outside.gateway.log.count(cry) for cry in CRIES),
        MiB_more=round(grown / 2**20),
    )
    assert grown < ROOM
    assert_unmoved(outside)


def records(outside: Outside) -> dict[Path, tuple[bytes, ...]]:
    """Files that a gateway and its commands read again and again, with what they may hold."""
    directory = outside.gateway.cache
    return {
        directory / HOLDS: BY_NAME["holds.json"].seeds,
        directory / CATALOG: BY_NAME["catalog of the site's files"].seeds,
        directory / IGNORED: BY_NAME["history of ignored signatures"].seeds,
        directory / "partial" / "test-5.json": BY_NAME["beside a partial file"].seeds,
        directory / "partial" / "test-5.cdiff.json": BY_NAME["beside a partial file"].seeds,
    }


def test_bytes_in_files(outside: Outside, figures: Figures, tmp_path: Path) -> None:
    """Imports, and records that are overwritten under the running gateway."""
    choices = random.Random(SEED)
    commands = (["import", str(tmp_path / "bundle")], ["stats", "--json"], ["hold"], ["ls"])
    tries = rounds(2, 60)
    for _ in range(tries):
        (tmp_path / "bundle").write_bytes(mutated(BY_NAME["bundle"].seeds[0], choices))
        for path, seeds in records(outside).items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(mutated(choices.choice(seeds), choices))
        for command in commands:
            done = outside.gateway.tool(*command)
            assert done.returncode in (0, 1), done.stderr
            assert "Traceback" not in done.stderr, done.stderr
        outside.gateway.ask("/test-5.cdiff")
    figures("bytes in files", imports=tries, records=tries * len(records(outside)))
    for path in records(outside):
        path.unlink(missing_ok=True)
    assert_unmoved(outside)
