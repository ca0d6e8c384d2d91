"""Clients that keep the gateway waiting, however they do it: they are cut off, and leave nothing behind."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.big import PATH, Forgery, forge, open_forged_site
from tests.support.gateway import CDN, Gateway, tunnel
from tests.support.site import LOCALHOST, eventually
from tests.torture.conftest import Figures
from tests.torture.crowd import Crowd, Habit
from tests.torture.effort import FULL, rounds
from tests.torture.heads import CONNECT, GET, HELLO

PLAIN = CONNECT.replace("443", "80")
LENGTH = "Content-Length: 9999\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"

HABITS = {
    "nothing": Habit(),
    "a part of a method": Habit(says="G"),
    "a head that drips": Habit(says=GET, drips="X: y\r\n"),
    "a request line that drips": Habit(says="GET /", drips="x"),
    "empty lines": Habit(drips="\r\n"),
    "a CONNECT that drips": Habit(says=CONNECT[:-2], drips="X: y\r\n"),
    "content that drips": Habit(says=GET + LENGTH, drips="x"),
    "chunks that drip": Habit(says=GET + CHUNKED, drips="1\r\nx\r\n"),
    "the size of a chunk that drips": Habit(says=GET + CHUNKED, drips="0"),
    "nothing in a tunnel": Habit(says=CONNECT),
    "content that drips in a tunnel": Habit(says=PLAIN + GET + LENGTH, drips="x"),
    "a handshake that drips": Habit(says=HELLO, drips="\0"),
    "a handshake that drips in a tunnel": Habit(says=CONNECT + HELLO, drips="\0"),
    "a HTTP/2 preface": Habit(says="PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", drips="\0"),
    "half of a head, half-closed": Habit(says=GET, ends=True),
    "a response, then nothing": Habit(says=f"{GET}Range: bytes=0-9\r\n\r\n"),
    "a response, then a head that drips": Habit(says=f"{GET}Range: bytes=0-9\r\n\r\n{GET}", drips="X: y\r\n"),
}
if FULL:  # they have two minutes
    HABITS |= {
        "a response that isn't read": Habit(says=f"{GET}\r\n"),
        "a response that isn't read, and a head that drips": Habit(says=f"{GET}\r\n{GET}", drips="X: y\r\n"),
        "a response that is read at 1 kB/s": Habit(says=f"{GET}\r\n", reads=1000),
    }


@pytest.fixture(scope="module")
def forgery(tmp_path_factory: pytest.TempPathFactory) -> Forgery:
    return forge(tmp_path_factory.mktemp("forged"))


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, forgery: Forgery) -> Iterator[Gateway]:
    """A gateway that doesn't wait long for its clients."""
    access = {"idle_timeout": "2s", "max_connections": 8000}
    site = open_forged_site(tmp_path_factory.mktemp("site"), forgery, access=access)
    yield site.gateway
    site.close()


def test_all_are_cut_off(hasty: Gateway, forgery: Forgery, figures: Figures) -> None:
    """Each client sends a byte or line every second, and idle_timeout is 2 seconds."""
    assert hasty.ask(PATH).body == forgery.body
    descriptors, count = _descriptors(hasty), rounds(5, 100)
    began = time.monotonic()
    with Crowd(hasty.port, count, *HABITS.values()) as crowd:
        assert hasty.ask(PATH).body == forgery.body
        # Not when the clients notice: what the system has taken for a slow one still arrives after that.
        are_gone = eventually(lambda: _descriptors(hasty) <= descriptors + 2, limit=rounds(60, 300))
        took = time.monotonic() - began
        assert are_gone, dict(zip(HABITS, crowd.closed(), strict=True))
        assert hasty.ask(PATH).body == forgery.body
    assert "Traceback" not in hasty.log
    figures(
        "clients that keep the gateway waiting",
        habits=len(HABITS),
        clients=len(HABITS) * count,
        all_gone_after=f"{took:.0f} s",
        outlived=0,
    )


def test_tls_records_that_drip(hasty: Gateway, figures: Figures) -> None:
    """The handshake is complete; then a record of 16 kB arrives byte by byte."""
    with socket.create_connection((LOCALHOST, hasty.port), timeout=60) as stream:
        tunnel(stream, f"{CDN}:443")
        sent = list(_record(hasty, stream))
        count = 0
        stream.settimeout(0.3)
        with suppress(OSError):
            for byte in sent:
                stream.sendall(bytes([byte]))
                count += 1
                with suppress(TimeoutError):
                    if not stream.recv(65536):
                        break
    figures("a TLS record that drips in", bytes_taken=count, of=len(sent))
    assert count < 1000


def _record(gateway: Gateway, stream: socket.socket) -> bytes:
    """Shake hands, and return a record that is still to be sent."""
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(gateway.ca))
    client = context.wrap_bio(received, to_send, server_hostname=CDN)
    is_done = False
    while not is_done:
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
            is_done = True
        stream.sendall(to_send.read())
        received.write(stream.recv(65536))
    client.write(b"x" * 16000)
    return to_send.read()


def test_http_2_is_not_spoken(hasty: Gateway, figures: Figures) -> None:
    """So neither rapid resets nor floods of its frames reach anything."""
    with socket.create_connection((LOCALHOST, hasty.port), timeout=60) as stream:
        tunnel(stream, f"{CDN}:443")
        context = ssl.create_default_context(cafile=str(hasty.ca))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(stream, server_hostname=CDN) as inside:
            assert inside.selected_alpn_protocol() in (None, "http/1.1")
            inside.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" * 1000)
            answer = inside.recv(65536)
    figures("HTTP/2 without being asked", answer=answer.partition(b"\r\n")[0].decode())
    assert answer.startswith(b"HTTP/1.1 ")
    assert answer.split()[1] in (b"400", b"505")


def _descriptors(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
