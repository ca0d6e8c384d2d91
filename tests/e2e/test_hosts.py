"""Which hosts and which clients are served: the ClamAV hosts, what is passed through, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support import faults
from tests.support.freshclam import OK
from tests.support.gateway import CDN, TunnelRefused, Way, receive, send
from tests.support.origin import OriginServer
from tests.support.site import Site, SitePool, open_site, signed

from .conftest import MakeSite

FORWARD_WAYS = [Way.CONNECT_HTTP, Way.ABSOLUTE]
FEED = b"Sample.Test:0:*:deadbeef\n" * 5000


def status_or_closed(site: Site, path: str, way: Way, host: str) -> int:
    """The status of an answer, 0 when the connection ends without one."""
    try:
        return site.gateway.ask(path, way, host=host).status
    except TunnelRefused as refused:
        return refused.status
    except (http.client.HTTPException, ConnectionError, ssl.SSLError):
        return 0


@pytest.fixture(scope="module")
def site(sites: SitePool) -> Iterator[Site]:
    """A site with the usual settings for all tests here."""
    site = sites.take()
    site.publish(6)
    yield site
    site.close()


@pytest.mark.parametrize("way", [*FORWARD_WAYS, Way.CONNECT_HTTPS])
def test_other_hosts_are_refused(site: Site, origin: OriginServer, way: Way) -> None:
    origin.put("test.cvd", signed("test-6.cvd"))
    status = status_or_closed(site, "/test.cvd", way, f"127.0.0.1:{origin.port}")
    assert status not in (200, 403, 429)
    assert origin.requests() == []


@pytest.mark.parametrize(
    "host", ["www.clamav.net", "clamav.net", "database.clamav.net.example.com", "example.com"]
)
def test_names_like_clamavs_are_refused(site: Site, host: str) -> None:
    for way in FORWARD_WAYS:
        assert status_or_closed(site, "/test.cvd", way, host) not in (200, 403, 429)


@pytest.mark.parametrize("host", ["database.clamav.net", "db.local.clamav.net", "DATABASE.ClamAV.net"])
def test_clamav_hosts_are_served(site: Site, host: str) -> None:
    for way in (*FORWARD_WAYS, Way.CONNECT_HTTPS):
        assert site.gateway.ask("/test.cvd", way, host=host).body == signed("test-6.cvd")


@pytest.mark.parametrize(
    "greeting",
    [b"EHLO client.example\r\n", b"\x00\x01\x02\x03" * 20, b"SSH-2.0-x\r\n"],
    ids=["smtp", "binary", "ssh"],
)
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_no_tunnel(site: Site, name: str, greeting: bytes) -> None:
    """Bytes that are not HTTP reach nobody, whether the host is one that is served or not."""
    with socket.create_server(("127.0.0.1", 0)) as victim:
        victim.settimeout(0.2)
        port = victim.getsockname()[1]
        with (
            contextlib.suppress(OSError, TunnelRefused),
            site.gateway.connection(host=f"{name}:{port}", timeout=1) as connection,
        ):
            connection.sock.sendall(greeting)
            connection.sock.recv(100)
        with pytest.raises(TimeoutError):
            victim.accept()


def test_clients_of_other_networks_are_refused(make_site: MakeSite) -> None:
    site = make_site(serving={"clients": ["10.0.0.0/8"]})
    site.publish(6)
    for way in (*FORWARD_WAYS, Way.REVERSE):
        assert status_or_closed(site, "/test.cvd", way, "database.clamav.net") not in (200, 403, 429)
    assert site.origin.requests() == []


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that passes requests for another server through."""
    site = open_site(tmp_path_factory.mktemp("passing"), serving={"pass_through": ["127.0.0.1"]})
    site.publish(6)
    yield site
    site.close()


@pytest.fixture
def feed(passing: Site, origin: OriginServer) -> tuple[Site, OriginServer]:
    """That site, and the other server."""
    origin.put("feed.ndb", FEED)
    return passing, origin


@pytest.mark.parametrize("way", FORWARD_WAYS)
def test_pass_through_forwards_as_it_is(feed: tuple[Site, OriginServer], way: Way) -> None:
    site, origin = feed
    host = f"127.0.0.1:{origin.port}"
    for _ in range(2):
        answer = site.gateway.ask("/feed.ndb?key=a%20b", way, host=host, x_custom="1")
        assert (answer.status, answer.body) == (200, FEED)
    seen = origin.requests()
    assert [(one.path, one.headers.get("x-custom")) for one in seen] == [("/feed.ndb?key=a%20b", "1")] * 2
    etag = answer.headers["etag"]
    assert site.gateway.ask("/feed.ndb", way, host=host, if_none_match=etag).status == 304


@pytest.mark.parametrize("status", [403, 429])
def test_a_refusal_that_is_passed_through_freezes_nobody(
    feed: tuple[Site, OriginServer], status: int
) -> None:
    """Trap 20: freshclam would ask nobody for hours; others are told what the host has said."""
    site, origin = feed
    host = f"127.0.0.1:{origin.port}"
    origin.rule("*", faults.status(status))
    assert site.gateway.ask("/feed.ndb", host=host).status == 503
    assert site.gateway.ask("/feed.ndb", host=host, user_agent="curl/8.11.0").status == status


def test_nothing_passes_while_the_gateway_is_offline(make_site: MakeSite, origin: OriginServer) -> None:
    site = make_site(serving={"pass_through": ["127.0.0.1"]}, upstream={"offline": True})
    origin.put("feed.ndb", FEED)
    answer = site.gateway.ask("/feed.ndb", Way.ABSOLUTE, host=f"127.0.0.1:{origin.port}")
    assert (answer.status, origin.requests()) == (502, [])


@pytest.mark.parametrize("way", FORWARD_WAYS)
@pytest.mark.parametrize("express", [True, False], ids=["lane", "no lane"])
def test_other_hosts_with_the_gateways_port_number(tmp_path: Path, way: Way, express: bool) -> None:
    """A gateway on port 80, say: what is asked for at other machines isn't answered as its own."""
    passed, feed, nobody = "127.0.0.2", "127.0.0.3", "127.0.0.4"
    site = open_site(
        tmp_path,
        serving={"hosts": [CDN], "pass_through": [passed], "express": express},
        feeds={"hosts": [feed]},
    )
    port = site.gateway.port
    with contextlib.closing(site), contextlib.ExitStack() as stack:
        others = {host: stack.enter_context(Named(host, port)) for host in (passed, feed, nobody)}
        for host in (passed, feed):
            answer = site.gateway.ask("/files/secret.ndb", way, host=f"{host}:{port}")
            assert (answer.status, answer.body) == (200, host.encode())
        # Machines may know the gateway by any name, so its port is its own under all others.
        assert site.gateway.ask("/files/secret.ndb", way, host=f"{nobody}:{port}").status == 404
        assert site.gateway.ask("/livez", way, host=f"127.0.0.1:{port}").status == 200
        assert [others[host].asked for host in (passed, feed, nobody)] == [1, 1, 0]
    assert site.gateway.log.count("secret") == 1, site.gateway.log  # only as a path of the gateway


class Named:
    """A web server that answers everything with its own address. Use it as a context manager."""

    def __init__(self, host: str, port: int) -> None:
        self.asked = 0
        named = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                named.asked += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(host)))
                self.end_headers()
                self.wfile.write(host.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_pass_through_is_streamed(feed: tuple[Site, OriginServer]) -> None:
    """The first bytes arrive while the rest is still to come."""
    site, origin = feed
    origin.rule("*", faults.stall(40_000))
    host = f"127.0.0.1:{origin.port}"
    with site.gateway.connection(host=host) as connection:
        send(connection, "/feed.ndb", host=host)
        response = connection.getresponse()
        assert response.read(30_000) == FEED[:30_000]


def test_custom_url_of_freshclam(feed: tuple[Site, OriginServer]) -> None:
    """E1, E2: DatabaseCustomURL through the same proxy, the second time with If-Modified-Since."""
    site, origin = feed
    origin.put("my.ndb", b"My.Test:0:*:6d792d746573742d7369676e6174757265\n")
    client = site.client(database=None, custom_urls=[f"http://127.0.0.1:{origin.port}/my.ndb"])
    client.extra = [
        "ExcludeDatabase main",
        "ExcludeDatabase daily",
        "ExcludeDatabase bytecode",
        "ExtraDatabase test",
    ]
    for _ in range(2):
        outcome = client.run()
        assert (outcome.code, outcome.version) == (OK, 6), outcome.output + site.gateway.log
    assert (client.databases / "my.ndb").exists()
    assert [seen.status for seen in origin.requests("/my.ndb")] == [200, 304]


def test_nothing_of_a_passed_host_is_served_as_clamavs(feed: tuple[Site, OriginServer]) -> None:
    """A test.cvd of another server is another file."""
    site, origin = feed
    origin.put("test.cvd", b"not a CVD")
    assert site.gateway.ask("/test.cvd", host=f"127.0.0.1:{origin.port}").body == b"not a CVD"
    assert site.gateway.ask("/test.cvd").body == signed("test-6.cvd")


def test_two_requests_for_two_hosts_on_one_connection(site: Site, origin: OriginServer) -> None:
    """The host is judged for each request, not for each connection."""
    origin.put("test.cvd", b"secret")
    with site.gateway.connection(Way.ABSOLUTE) as connection:
        send(connection, "/test.cvd", Way.ABSOLUTE, connection="keep-alive")
        assert receive(connection).body == signed("test-6.cvd")
        send(connection, "/test.cvd", Way.ABSOLUTE, host=f"127.0.0.1:{origin.port}")
        with contextlib.suppress(http.client.HTTPException, ConnectionError):
            assert receive(connection).status not in (200, 403, 429)
    assert origin.requests() == []
