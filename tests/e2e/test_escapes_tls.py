"""Ways out from inside TLS: by the name in SNI, and by the fields of HTTP/2. None leads anywhere else."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, ResponseReceived, StreamReset

from tests.support.gateway import CDN, tunnel
from tests.support.raw import RawServer
from tests.support.site import LOCALHOST, Site, open_site
from tests.support.witness import Witness

NAMES = [
    "evil.example",
    "localhost:{p}",
    "127.0.0.1:{p}",
    "[::1]:{p}",
    f"{CDN}.evil.example",
    "database.clamav.net@127.0.0.1:{p}",
]
REJECTED = 0
"""Stands for the end of the stream or connection by a frame of HTTP/2 that says so."""
type Fields = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Place:
    """A site that speaks HTTP/2, whose gateway is watched, and a server that nobody may reach."""

    site: Site
    witness: Witness
    victim: RawServer

    @contextlib.contextmanager
    def tls(self, name: str, *protocols: str) -> Iterator[ssl.SSLSocket]:
        """TLS inside a tunnel to the CDN, in which the client names another host."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(protocols)
        with socket.create_connection((LOCALHOST, self.site.gateway.port), timeout=20) as stream:
            tunnel(stream, f"{CDN}:443")
            with context.wrap_socket(stream, server_hostname=name) as inside:
                yield inside


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("place")
    options = directory / "site" / "gateway" / "conf" / "config.yaml"
    options.parent.mkdir(parents=True)
    options.write_text("http2: true\n")
    witness = Witness.make(directory)
    serving = {"hosts": [CDN], "pass_through": ["127.0.0.80"], "prefetch": "none"}
    site = open_site(directory / "site", script=str(witness.script), serving=serving)
    with contextlib.closing(site), RawServer(lambda _: None) as victim:
        site.publish(6)
        assert site.gateway.ask("/test.cvd").status == 200
        yield Place(site, witness, victim)
        assert victim.accepted == 0
        assert "Traceback" not in site.gateway.log


@pytest.fixture(autouse=True)
def _nobody_is_reached(place: Place) -> Iterator[None]:
    known = place.witness.seen("look up"), place.witness.seen("contact")
    yield
    assert place.witness.seen("look up") <= known[0]
    assert place.witness.seen("contact") <= known[1]


@pytest.mark.parametrize("name", ["evil.example", "localhost", "127.0.0.80", f"{CDN}.evil.example"])
def test_another_name_in_sni(place: Place, name: str) -> None:
    """The tunnel says where to, and that is the cache."""
    with place.tls(name, "http/1.1") as stream:
        stream.sendall(f"GET /x HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        assert stream.recv(1000).startswith(b"HTTP/1.1 404 ")


REQUESTS: list[Fields] = [
    ((":method", "GET"), (":scheme", "https"), (":authority", "{h}"), (":path", "/x")),
    ((":method", "GET"), (":scheme", "http"), (":authority", "{h}"), (":path", "/x"), ("host", CDN)),
    ((":method", "GET"), (":scheme", "https"), (":authority", CDN), (":path", "/x"), ("host", "{h}")),
    ((":method", "GET"), (":scheme", "https"), (":path", "/x"), ("host", "{h}")),
    ((":method", "GET"), (":scheme", "https"), (":authority", CDN), (":path", "http://{h}/x")),
    ((":method", "GET"), (":scheme", "https"), (":authority", CDN), (":path", "//{h}/x")),
    ((":method", "GET"), (":scheme", "https"), (":authority", CDN), (":path", "@{h}/x")),
    ((":method", "GET"), (":scheme", "ftp"), (":authority", "{h}"), (":path", "/x\r\nHost: {h}")),
    ((":method", "CONNECT"), (":authority", "{h}")),
    (
        *((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https")),
        *((":authority", "{h}"), (":path", "/x")),
    ),
    (
        *((":method", "POST"), (":scheme", "https"), (":authority", CDN), (":path", "/x")),
        *(("transfer-encoding", "chunked"), ("content-length", "0"), ("upgrade", "websocket")),
    ),
]


RIGHT: list[Fields] = [
    ((":method", "GET"), (":scheme", "https"), (":authority", CDN), (":path", "/test.cvd")),
    ((":method", "GET"), (":scheme", "https"), (":authority", CDN), (":path", "/test.cvd"), ("host", CDN)),
    ((":method", "GET"), (":scheme", "https"), (":path", "/test.cvd"), ("host", CDN)),
]
"""Those requests with nothing wrong in them."""


@pytest.mark.parametrize("fields", RIGHT, ids=["authority", "both", "Host"])
def test_the_right_name_in_http_2(place: Place, fields: Fields) -> None:
    """Otherwise, that the others are refused would mean nothing."""
    assert _status(place, fields) == 200


@pytest.mark.parametrize("name", NAMES)
def test_another_name_in_http_2(place: Place, name: str) -> None:
    host = name.replace("{p}", str(place.victim.port))
    for request in REQUESTS:
        fields = [(key, value.replace("{h}", host)) for key, value in request]
        assert _status(place, fields) in (REJECTED, 404), fields


def _status(place: Place, fields: Fields) -> int:
    """The status of the answer; `REJECTED` if there is none."""
    configuration = H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    client = H2Connection(configuration)
    with place.tls(CDN, "h2") as stream:
        assert stream.selected_alpn_protocol() == "h2"
        client.initiate_connection()
        client.send_headers(1, fields, end_stream=True)
        stream.sendall(client.data_to_send())
        while data := stream.recv(65536):
            for event in client.receive_data(data):
                if isinstance(event, ResponseReceived):
                    return int(dict(event.headers or ())[b":status"])
                if isinstance(event, StreamReset | ConnectionTerminated):
                    return REJECTED
    raise AssertionError("neither an answer nor a rejection")
