"""Whatever a client sends, the proxy connects to the hosts that are passed through and to no others."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.gateway import CDN, TunnelRefused, Way
from tests.support.origin import OriginServer
from tests.support.raw import Relay
from tests.support.raw_http import exchange
from tests.support.site import Site, SitePool, eventually, open_site, signed

from .conftest import MakeSite

LOOPBACK = "127.0.0.1"
STRANGE_HOSTS = [b"\xff\xfe", b"a\xff.example", b"database.clamav.net, b", b"", b"[::1"]
FOLDED = b"X-Folded: one\r\n two\r\n"
NOT_HTTP = b"\x00\x1d\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x10\x00\x01"
"""A question to a name server, as it is sent over TCP."""

SCRIPT_WITHOUT_SERVICE = """
from clamproxy.proxy.addon import ClamProxy

class Unconfigured(ClamProxy):
    def configure(self, updated):
        pass

addons = [Unconfigured()]
"""

SCRIPT_THAT_FAILS = """
from clamproxy.proxy.addon import ClamProxy
from clamproxy.front import Routing

def fail(self, asked):
    raise RuntimeError("a defect")

Routing.destination = fail
addons = [ClamProxy()]
"""


def get(url: str, host: bytes, fields: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: %b\r\n%bConnection: close\r\n\r\n" % (url.encode(), host, fields)


def status_of(answer: bytes) -> int:
    """0 if the connection was closed without an answer."""
    return int(answer.split()[1]) if answer else 0


@pytest.fixture(scope="module")
def site(sites: SitePool) -> Iterator[Site]:
    """A site with the usual settings; nothing is passed through."""
    site = sites.take()
    site.publish(6)
    yield site
    site.close()


@pytest.fixture
def passing(tmp_path: Path) -> Iterator[Site]:
    """A site that passes localhost through."""
    site = open_site(tmp_path, serving={"hosts": [CDN], "pass_through": ["localhost"]})
    yield site
    site.close()


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_strange_host_field_does_not_open_the_proxy(site: Site, origin: OriginServer, host: bytes) -> None:
    origin.put("x", b"secret")
    answer = exchange(site.gateway.port, get(f"http://{LOOPBACK}:{origin.port}/x", host))
    assert status_of(answer) not in (200, 403, 429)
    assert origin.requests() == []
    assert "Traceback" not in site.gateway.log


@pytest.mark.parametrize(
    ("host", "status"), [(b"\xff\xfe", 400), (b"a\xff.example", 400), (b"a.example", 404), (b"a,b", 404)]
)
def test_strange_host_field_inside_a_tunnel(
    site: Site, origin: OriginServer, host: bytes, status: int
) -> None:
    """The tunnel says where to, not the field; it has to be one nevertheless (RFC 9112 3.2)."""
    origin.put("x", b"secret")
    answer = exchange(site.gateway.port, get("/x", host), inside=f"{CDN}:80")
    assert status_of(answer) == status
    with pytest.raises(TunnelRefused):
        exchange(site.gateway.port, get("/x", host), inside=f"{LOOPBACK}:{origin.port}")
    assert origin.requests() == []


@pytest.mark.parametrize("way", [Way.ABSOLUTE, Way.CONNECT_HTTP, Way.REVERSE])
def test_folded_field_is_read_and_not_forwarded(site: Site, way: Way) -> None:
    url = f"http://{CDN}/test.cvd" if way is Way.ABSOLUTE else "/test.cvd"
    port = site.gateway.reverse_port if way is Way.REVERSE else site.gateway.port
    inside = f"{CDN}:80" if way is Way.CONNECT_HTTP else None
    answer = exchange(port, get(url, CDN.encode(), FOLDED), inside=inside)
    assert status_of(answer) == 200
    assert answer.endswith(signed("test-6.cvd"))
    assert all("x-folded" not in seen.headers for seen in site.origin.requests())


def test_clamav_name_with_a_foreign_port_leads_nowhere(site: Site, origin: OriginServer) -> None:
    """localhost is one of this site's ClamAV names; its other ports are not asked."""
    url = f"http://localhost:{origin.port}/test.cvd"
    assert exchange(site.gateway.port, get(url, b"localhost", FOLDED)).endswith(signed("test-6.cvd"))
    assert origin.requests() == []


@pytest.mark.parametrize("code", [429, 503])
def test_endless_retry_after_is_answered_by_the_gateway(make_site: MakeSite, code: int) -> None:
    site = make_site()
    site.publish(6)
    site.origin.rule("*", faults.status(code, retry_after="1" * 400))
    for way in (Way.CONNECT_HTTP, Way.ABSOLUTE, Way.REVERSE):
        answer = site.gateway.ask("/test.cvd", way)
        assert (answer.status, answer.cache_status.split(";")[0]) == (503, "clamproxy")
    assert "Traceback" not in site.gateway.log


def test_addon_without_configuration_serves_nobody(
    make_site: MakeSite, origin: OriginServer, tmp_path: Path
) -> None:
    script = tmp_path / "unconfigured.py"
    script.write_text(SCRIPT_WITHOUT_SERVICE)
    site = make_site(script=str(script))
    origin.put("x", b"secret")
    address = f"{LOOPBACK}:{origin.port}"
    assert status_of(exchange(site.gateway.port, get(f"http://{address}/x", b"x"))) in (0, 502, 503)
    with pytest.raises((TunnelRefused, ConnectionError)):
        exchange(site.gateway.port, get("/x", b"x"), inside=address)
    assert origin.requests() == []


def test_a_defect_lets_nothing_through(make_site: MakeSite, origin: OriginServer, tmp_path: Path) -> None:
    """mitmproxy goes on after an exception in a hook: the addon must not leave it to that."""
    script = tmp_path / "failing.py"
    script.write_text(SCRIPT_THAT_FAILS)
    site = make_site(script=str(script), serving={"hosts": [CDN], "pass_through": [LOOPBACK]})
    origin.put("x", b"secret")
    address = f"{LOOPBACK}:{origin.port}"
    assert status_of(exchange(site.gateway.port, get(f"http://{address}/x", address.encode()))) == 503
    for inside in (address, f"{CDN}:80"):
        with pytest.raises(TunnelRefused) as refused:
            exchange(site.gateway.port, b"", inside=inside)
        assert refused.value.status == 503
    assert origin.requests() == []


@pytest.mark.parametrize("inside", [False, True])
def test_host_names_where_a_passed_request_goes(passing: Site, origin: OriginServer, inside: bool) -> None:
    """Else it would reach any site of a server that has several."""
    origin.put("x", b"public")
    address = f"localhost:{origin.port}"
    url = "/x" if inside else f"http://{address}/x"
    answer = exchange(passing.gateway.port, get(url, b"internal.example"), inside=address if inside else None)
    assert status_of(answer) == 200
    (seen,) = origin.requests()
    assert seen.headers["host"] == address


@pytest.mark.parametrize("port", [22, 25, 53, 8081])
def test_tunnels_to_odd_ports_of_clamav_hosts_are_refused(site: Site, port: int) -> None:
    with pytest.raises(TunnelRefused) as refused:
        exchange(site.gateway.port, b"", inside=f"{CDN}:{port}")
    assert refused.value.status == 502


def test_no_tunnel_to_a_name_server_that_is_passed_through(make_site: MakeSite) -> None:
    """mitmproxy takes port 53 for DNS, which is no more HTTP than other binary bytes are."""
    address = f"127.{random.randint(2, 250)}.{random.randint(2, 250)}.53"
    try:
        victim = socket.create_server((address, 53))
    except PermissionError:
        pytest.skip("port 53 cannot be bound")
    with victim:
        victim.settimeout(0.2)
        site = make_site(serving={"pass_through": [address]})
        answer = exchange(site.gateway.port, NOT_HTTP + b"\r\n\r\n", inside=f"{address}:53")
        assert status_of(answer) in (0, 400)
        with pytest.raises(TimeoutError):
            victim.accept()


@pytest.mark.parametrize("way", [Way.ABSOLUTE, Way.CONNECT_HTTP])
def test_passed_name_that_leads_back_to_the_gateway(passing: Site, way: Way) -> None:
    """The request is known again by its Via, and does not go round until all descriptors are used up."""
    with Relay(passing.gateway.port) as relay:
        answer = passing.gateway.ask("/x", way, host=f"localhost:{relay.port}")
        assert answer.status == 502
        assert relay.accepted == 1
    assert passing.gateway.ask("/x", way, host=f"localhost:{passing.gateway.port}").status == 404


@pytest.mark.parametrize("way", [Way.ABSOLUTE, Way.REVERSE])
def test_small_body_is_refused_in_words(site: Site, way: Way) -> None:
    url = f"http://{CDN}/test.cvd" if way is Way.ABSOLUTE else "/test.cvd"
    port = site.gateway.reverse_port if way is Way.REVERSE else site.gateway.port
    head = f"POST {url} HTTP/1.1\r\nHost: {CDN}\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    assert status_of(exchange(port, head.encode() + b"abc")) == 405
    assert eventually(lambda: "POST /test.cvd - refused 405" in site.gateway.log)


@pytest.mark.parametrize("length", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_large_body_is_refused_before_it_is_read(make_site: MakeSite, length: str) -> None:
    site = make_site()
    head = f"PUT http://{CDN}/test.cvd HTTP/1.1\r\nHost: {CDN}\r\n{length}\r\n\r\n"
    answer = exchange(site.gateway.port, head.encode() + b"x" * 1_000_000)
    assert status_of(answer) in (0, 413)  # a reset can overtake it
    assert eventually(lambda: "PUT /test.cvd - refused" in site.gateway.log)
    assert eventually(lambda: site.gateway.stats()["refused"] == 1)
    assert site.origin.requests() == []
