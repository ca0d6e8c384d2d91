"""Who may use the gateway and how much of it: users, connections, heads of requests, idle clients."""

from __future__ import annotations

import re
import socket
import time
from base64 import b64encode
from http.client import HTTPException
from threading import Thread

import pytest
import yaml

from clamproxy.access.users import user_line
from tests.support.big import Forgery, begun_download
from tests.support.gateway import CDN, TunnelRefused, Way, tool
from tests.support.origin import OriginServer
from tests.support.raw_http import exchange
from tests.support.site import LOCALHOST, Site, eventually, signed

from .conftest import MakeForged, MakeSite

NAME, PASSWORD = "clamav", "pass:w0rd"
PROXY_LOGIN = [f"HTTPProxyUsername {NAME}", f"HTTPProxyPassword {PASSWORD}"]


@pytest.fixture
def guarded(make_site: MakeSite) -> Site:
    """A site whose clients have to say who they are."""
    site = make_site(access={"users": [user_line(NAME, PASSWORD)]})
    site.publish(6)
    return site


# Users


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS])
def test_freshclam_with_a_password(guarded: Site, way: Way) -> None:
    outcome = guarded.client(way=way, extra=PROXY_LOGIN).run()
    assert (outcome.code, outcome.version) == (0, 6), outcome.output


def test_freshclam_whose_mirror_is_the_gateway_has_the_password_in_the_url(guarded: Site) -> None:
    mirror = f"http://{NAME}:pass%3Aw0rd@{LOCALHOST}:{guarded.gateway.reverse_port}"
    outcome = guarded.client(way=Way.REVERSE, mirrors=[mirror]).run()
    assert (outcome.code, outcome.version) == (0, 6), outcome.output


@pytest.mark.parametrize("login", [[], [PROXY_LOGIN[0], "HTTPProxyPassword wrong"]])
def test_freshclam_without_the_password(guarded: Site, login: list[str]) -> None:
    outcome = guarded.client(extra=login).run()
    assert outcome.version is None
    assert not outcome.cooling
    assert "407" in outcome.output
    assert guarded.origin.requests() == []


def test_what_others_are_told(guarded: Site) -> None:
    request = f"CONNECT {CDN}:80 HTTP/1.1\r\nHost: {CDN}\r\nConnection: close\r\n\r\n"
    connect = exchange(guarded.gateway.port, request.encode())
    assert connect.startswith(b"HTTP/1.1 407 ")
    assert b'proxy-authenticate: basic realm="clamproxy"' in connect.lower()
    absolute = guarded.gateway.ask("/test.cvd", Way.ABSOLUTE)
    assert (absolute.status, absolute.headers["proxy-authenticate"]) == (407, 'Basic realm="clamproxy"')
    direct = guarded.gateway.ask("/test.cvd", Way.REVERSE)
    assert (direct.status, direct.headers["www-authenticate"]) == (401, 'Basic realm="clamproxy"')
    assert guarded.origin.requests() == []


@pytest.mark.parametrize(
    ("path", "status"),
    [("/livez", 200), ("/readyz", 200), ("/client-config", 200), ("/status.json", 401), ("/metrics", 401)],
)
def test_pages(guarded: Site, path: str, status: int) -> None:
    """How to become a client is no secret, who the others are is one."""
    assert (
        guarded.gateway.ask(path, Way.ABSOLUTE, host=f"{LOCALHOST}:{guarded.gateway.port}").status == status
    )


def test_passwords_are_logged_nowhere(guarded: Site) -> None:
    assert guarded.client(extra=PROXY_LOGIN).run().version == 6
    assert guarded.client("wrong", extra=[PROXY_LOGIN[0], "HTTPProxyPassword wr0ng"]).run().version is None
    guarded.gateway.stop()
    assert not {"w0rd", "wr0ng", "cGFzczp3MHJk", "scrypt"} & set(guarded.gateway.log.split())
    assert "w0rd" not in guarded.gateway.log


@pytest.fixture
def passing(make_site: MakeSite, origin: OriginServer) -> Site:
    """A site that has users, and passes the other server through."""
    origin.put("x", b"secret")
    return make_site(
        access={"users": [user_line(NAME, PASSWORD)]}, serving={"hosts": [CDN], "pass_through": [LOCALHOST]}
    )


@pytest.mark.parametrize(
    "login", [b"Basic \xc3\xa9", b"Basic \xff", b"Basic " + b"A" * 5, b'Digest a="', b"\x80"]
)
def test_credentials_that_cannot_be_read_let_nobody_in(
    passing: Site, origin: OriginServer, login: bytes
) -> None:
    place = b"%b:%d" % (LOCALHOST.encode(), origin.port)
    fields = b"Host: %b\r\nProxy-Authorization: %b\r\nConnection: close\r\n\r\n" % (place, login)
    for head in (b"GET http://%b/x HTTP/1.1\r\n", b"CONNECT %b HTTP/1.1\r\n"):
        with socket.create_connection((LOCALHOST, passing.gateway.port), timeout=20) as stream:
            stream.sendall(head % place + fields)
            assert stream.recv(65536).startswith(b"HTTP/1.1 407 ")
    assert origin.requests() == []
    assert "Traceback" not in passing.gateway.log


@pytest.mark.parametrize("length", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_content_of_nobody_known_is_not_read(passing: Site, origin: OriginServer, length: str) -> None:
    place = f"{LOCALHOST}:{origin.port}"
    head = f"POST http://{place}/secret-path HTTP/1.1\r\nHost: {place}\r\n{length}\r\n\r\n"
    answer = exchange(passing.gateway.port, head.encode() + b"x" * 1_000_000)
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")  # a reset can overtake it
    assert origin.requests() == []
    assert eventually(lambda: f"POST {LOCALHOST}/... - refused" in passing.gateway.log)
    assert "secret-path" not in passing.gateway.log


def test_a_tunnel_that_is_refused_leaves_nobody_known(guarded: Site) -> None:
    """The connection may be an intermediary's, who uses it for others."""
    login = b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
    connect = f"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {login}\r\n\r\n"
    get = f"GET http://{CDN}/test.cvd HTTP/1.1\r\nHost: {CDN}\r\nConnection: close\r\n\r\n"
    answers = exchange(guarded.gateway.port, (connect + get).encode())
    assert re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers) in ([b"502", b"407"], [b"502"])


def test_mitmproxys_own_page_is_not_there(guarded: Site) -> None:
    """It would answer before anybody has looked at who asks."""
    assert guarded.gateway.ask("/cert/pem", Way.ABSOLUTE, host="mitm.it").status == 407


def test_the_command_prints_a_line_that_works(make_site: MakeSite, site: Site) -> None:
    password = site.directory / "password"
    password.write_text(f"{PASSWORD}\n")
    with password.open("rb") as stdin:
        result = tool("hash-password", NAME, stdin=stdin)
    assert result.returncode == 0, result.stderr
    other = make_site(access={"users": yaml.safe_load(result.stdout)})
    other.publish(6)
    assert other.client(extra=PROXY_LOGIN).run().version == 6


# Connections


def test_connections_of_one_client(make_site: MakeSite) -> None:
    limit = "access.max_connections_per_client"
    site = make_site(access={"max_connections_per_client": 4})
    site.warm(6)
    held = [socket.create_connection((LOCALHOST, site.gateway.port), timeout=20) for _ in range(4)]
    try:
        assert eventually(lambda: exchange(site.gateway.port, b"") == b"" and limit in site.gateway.log)
    finally:
        for stream in held:
            stream.close()
    assert eventually(lambda: _body(site) == signed("test-6.cvd"))
    assert site.gateway.log.count(f"{limit} has been reached") < 4


def _body(site: Site) -> bytes | None:
    try:
        return site.gateway.ask("/test.cvd").body
    except (OSError, HTTPException, TunnelRefused):
        return None


# Heads of requests


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /" + b"a" * 200_000, b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 40_000, b"431"),
        (b"CONNECT " + b"a" * 9000 + b":80 HTTP/1.1\r\n\r\n", b"414"),
    ],
)
def test_large_heads(site: Site, head: bytes, status: bytes) -> None:
    answer = exchange(site.gateway.port, head)
    assert not answer or answer.startswith(b"HTTP/1.1 " + status)  # a reset can overtake it
    assert site.gateway.ask("/test-9.cdiff").status == 404


def test_ordinary_heads_pass(site: Site) -> None:
    site.warm(6)
    assert site.gateway.ask("/test.cvd", extra={"X-Padding": "x" * 30_000}).body == signed("test-6.cvd")


def test_more_requests_than_answers(site: Site) -> None:
    """What a client sends ahead is bounded, too."""
    site.warm(6)
    request = f"GET http://{CDN}/test.cvd HTTP/1.1\r\nHost: {CDN}\r\n\r\n".encode()
    exchange(site.gateway.port, request + b"x" * 4_000_000)
    assert site.gateway.ask("/test.cvd").body == signed("test-6.cvd")


@pytest.mark.parametrize("field", ["", "Content-Length: 0\r\n"])
def test_all_requests_in_advance_are_answered(site: Site, field: str) -> None:
    """The client isn't listened to while it is ahead, in the lane or, with the field, in mitmproxy."""
    site.warm(6)
    count = 1000
    request = f"GET http://{CDN}/test-6.cdiff HTTP/1.1\r\nHost: {CDN}\r\n{field}X: {'x' * 200}\r\n\r\n"
    last = request.replace("X: x", "Connection: close\r\nX: x")
    with socket.create_connection((LOCALHOST, site.gateway.port), timeout=40) as stream:
        sending = Thread(target=stream.sendall, args=((request * (count - 1) + last).encode(),))
        sending.start()
        answers = b""
        while piece := stream.recv(65536):
            answers += piece
        sending.join()
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(signed("test-6.cdiff")) == count


# Idle clients


@pytest.fixture
def hasty(make_site: MakeSite) -> Site:
    """A site that does not wait long for its clients."""
    return make_site(access={"idle_timeout": "1s"})


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"\x16\x03\x01"])
def test_silent_clients_are_let_go(hasty: Site, said: bytes) -> None:
    assert exchange(hasty.gateway.port, said) == b""


GET = f"GET http://{CDN}/test.cvd HTTP/1.1\r\nHost: {CDN}\r\n".encode()
CONNECT = f"CONNECT {CDN}:443 HTTP/1.1\r\nHost: {CDN}\r\n\r\n".encode()
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"GET /daily.cvd HTTP/1.1\r\n", b"X: y\r\n"),
        (GET + b"Content-Length: 9999\r\n\r\n", b"x"),
        (GET + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HELLO, b"x"),
        (CONNECT + HELLO, b"x"),
    ],
    ids=["head", "content", "chunks", "handshake", "handshake in a tunnel"],
)
def test_what_drips(hasty: Site, begin: bytes, drip: bytes) -> None:
    with socket.create_connection((LOCALHOST, hasty.gateway.port), timeout=20) as stream:
        stream.sendall(begin)
        answer = b""
        for _ in range(100):
            try:
                stream.sendall(drip)
                stream.settimeout(0.2)
                if not (piece := stream.recv(65536)):
                    break
                answer += piece
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it is still listened to")
    answer = answer.removeprefix(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_reader_is_not_idle(make_forged: MakeForged, forgery: Forgery) -> None:
    site = make_forged(access={"idle_timeout": "1s"})
    with begun_download(site.gateway, buffer=64 * 1024) as rest:
        time.sleep(3)
        assert rest.read() == (forgery.body, True)
