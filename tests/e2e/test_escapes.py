"""Ways out that must not exist: to other hosts, to other files, and to what a client may not see."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.support.gateway import CDN, TunnelRefused, Way, free_ports
from tests.support.raw import RawServer
from tests.support.raw_http import exchange, listed
from tests.support.site import Site, open_site, signed
from tests.support.witness import Witness, is_code

RESOLVER = """
import itertools, socket

real, turns = socket.getaddrinfo, itertools.count()
allowed = {"partner.example": "127.0.0.80", "feed.example": "127.0.0.81"}

def resolve(host, *arguments, **more):
    name, _, domain = str(host).partition(".")
    if name == "turning":
        host = allowed[domain] if next(turns) % 2 == 0 else "127.0.0.1"
    elif domain in allowed:
        host = {"home": "127.0.0.1", "six": "::1", "link": "169.254.77.77", "link-six": "fe80::77%lo",
                "group": "224.0.0.77", "zero": "0.0.0.0", "mapped": "::ffff:127.0.0.1"}[name]
    return real(host, *arguments, **more)

socket.getaddrinfo = resolve
"""
"""Names of one's own may lead anywhere, and somewhere else the next time."""
FEED = "127.0.0.77"
BAIT = b"nobody may read this"
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
DOORS = ("proxy", "tunnel", "reverse")
REFUSALS = {400, 401, 404, 405, 421, 431, 501, 502, 503, 505}
OWN = {200, 204}
"""Answers of the gateway itself: a file for a Host that doesn't count, or what a page allows."""


@dataclass(frozen=True)
class Watched:
    """A site whose gateway is watched, and a server that nobody may reach through it."""

    site: Site
    witness: Witness
    victim: RawServer
    received: list[bytes] = field(default_factory=list)

    def send(self, data: bytes, door: str) -> bytes:
        """What comes back until the connection closes; nothing if the tunnel is refused."""
        gateway = self.site.gateway
        inside = f"{CDN}:80" if door == "tunnel" else None
        port = gateway.reverse_port if door == "reverse" else gateway.port
        return exchange(port, data, inside=inside, half_closes=True)

    def filled(self, text: bytes) -> bytes:
        return text.replace(b"{p}", b"%d" % self.victim.port)

    def contacts(self) -> list[str]:
        """Addresses with the victim's port, at which the victim itself need not listen."""
        return [one for one in self.witness.told("contact") if f", {self.victim.port}" in one]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    witness = Witness.make(directory)
    site = open_site(
        directory / "site",
        script=str(witness.script),
        serving={"hosts": [CDN], "prefetch": "none"},
        feeds={"hosts": [FEED]},
        files={"directory": str(directory / "files")},
    )
    with contextlib.closing(site), RawServer(lambda _: None) as victim:
        site.publish(6)
        for way in Way:
            assert site.gateway.ask("/test.cvd", way).body == signed("test-6.cvd")
        yield Watched(site, witness, victim)
        assert "Traceback" not in site.gateway.log


HOSTS = listed(r"""
    127.0.0.1:{p} ~ localhost:{p} ~ LOCALHOST:{p} ~ localhost.:{p} ~ 127.0.0.1.:{p} ~ 0.0.0.0:{p} ~ 0:{p}
    [::1]:{p} ~ [::]:{p} ~ [::ffff:127.0.0.1]:{p} ~ [::ffff:7f00:1]:{p} ~ [::1%25lo]:{p} ~ [fe80::1%lo]:{p}
    2130706433:{p} ~ 0x7f000001:{p} ~ 0x7f.1:{p} ~ 0177.0.0.1:{p} ~ 017700000001:{p} ~ 127.1:{p}
    evil.example:{p} ~ database.clamav.net.evil.example:{p} ~ database.clamav.net-evil.example:{p}
    database.clamav.net@127.0.0.1:{p} ~ database.clamav.net:80@127.0.0.1:{p} ~ u:p@127.0.0.1:{p}
    database.clamav.net%40127.0.0.1:{p} ~ database.clamav.net\\@127.0.0.1:{p}
    127.0.0.1:{p}\\@database.clamav.net ~ 127.0.0.1:{p}#@database.clamav.net
    127.0.0.1:{p}?@database.clamav.net ~ 127.0.0.1:{p}/@database.clamav.net
    127.0.0.1%3a{p} ~ 127%2e0%2e0%2e1:{p} ~ %31%32%37.0.0.1:{p} ~ 127.0.0.1%00:{p} ~ 127.0.0.1\0:{p}
    database.clamav.net,127.0.0.1:{p} ~ database.clamav.net;127.0.0.1:{p} ~ 127.0.0.1:{p}:80
    127.0.0.1:0{p} ~ 127\xc0\xae0.0.1:{p} ~ 127\xef\xbc\x8e0\xef\xbc\x8e0\xef\xbc\x8e1:{p}
    \xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1:{p} ~ :{p} ~ 127.0.0.1:{p}\t
    169.254.169.254:80 ~ [::ffff:169.254.169.254]:80 ~ metadata.google.internal:80
""")
"""Names and addresses that aren't served, or look like one that is. {p} is the port of a server."""
FORMS = listed(r"""
    GET http://{h}/x HTTP/1.1\r\nHost: database.clamav.net\r\n\r\n
    GET http://{h}/test.cvd HTTP/1.1\r\nHost: {h}\r\n\r\n
    HEAD HTTP://{h}/x HTTP/1.0\r\n\r\n
    GET https://{h}/x HTTP/1.1\r\nHost: {h}\r\n\r\n
    GET //{h}/x HTTP/1.1\r\nHost: {h}\r\n\r\n
    GET /http://{h}/x HTTP/1.1\r\nHost: database.clamav.net\r\nX-Forwarded-Host: {h}\r\n\r\n
    GET {h} HTTP/1.1\r\nHost: {h}\r\n\r\n
    CONNECT {h} HTTP/1.1\r\nHost: {h}\r\n\r\nGET /x HTTP/1.1\r\nHost: {h}\r\n\r\n
    CONNECT {h} HTTP/1.1\r\nHost: database.clamav.net\r\n\r\n\x16\x03\x01\x02\x00\x01
    GET http://{h}/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n
    GET http://database.clamav.net/x HTTP/1.1\r\nHost: {h}\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n
    OPTIONS http://{h} HTTP/1.1\r\nHost: {h}\r\n\r\n
    PRI http://{h}/x HTTP/1.1\r\nHost: {h}\r\n\r\n
""")
TWO = listed(r"""
    Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n
    Content-Length: 5\r\nContent-Length: 0\r\n\r\n0\r\n\r\n
    Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n
    Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n
    Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n
    Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n
    Content-Length: 0\r\n\r\n
    X: y\r\r\n
    X: y\n\n
""")
"""The end of a request, after which another request could be seen, perhaps by only one of two servers."""


def test_no_other_host_is_reached(watched: Watched) -> None:
    """Nor looked up: a name server would learn of it, and its answer could be anything."""
    begun = b"POST http://database.clamav.net/x HTTP/1.1\r\nHost: x\r\n"
    forms = [*FORMS, *(begun + end + FORMS[0] for end in TWO)]
    known = watched.witness.seen("look up"), watched.witness.seen("contact")
    tried = [
        (watched.filled(form.replace(b"{h}", host)), door)
        for host, form, door in itertools.product(HOSTS, forms, DOORS)
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: watched.send(*one), tried))
    for (sent, door), received in zip(tried, answers, strict=True):
        statuses = [int(status) for status in _STATUS.findall(received)]
        assert set(statuses) <= REFUSALS | OWN, (door, sent, received)
        assert not (sent.startswith(b"CONNECT ") and statuses[:1] == [200]), (door, sent)
    assert watched.victim.accepted == 0
    assert watched.witness.seen("look up") <= known[0]
    assert watched.witness.seen("contact") <= known[1]


# Files

PATHS = listed(r"""
    /../bait ~ /../../bait ~ /../../../bait ~ /%2e%2e/bait ~ /%2e%2e/%2e%2e/bait ~ /..%2fbait
    /..%2f..%2fbait ~ /%2e%2e%2fbait ~ /..%252fbait ~ /%252e%252e%252fbait ~ /..%5cbait ~ /..\\bait
    /..\\..\\bait ~ /%5c..%5cbait ~ /\xc0\xae\xc0\xae/bait ~ /%c0%ae%c0%ae/bait ~ /%e0%80%ae%e0%80%ae/bait
    /..%c0%afbait ~ /..%ef%bc%8fbait ~ /./../bait ~ /x/../../bait ~ /x/%2e%2e/%2e%2e/bait ~ //bait
    /{d}/bait ~ //{d}/bait ~ /%2f{d}/bait ~ /file:{d}/bait ~ /..;/bait ~ /.../bait ~ /../bait%00.cvd
    /../bait%23 ~ /../bait?x ~ /../bait;x ~ /~root/bait ~ /%7e/bait ~ /../bait.cvd ~ /../test.cvd
    /test.cvd/../../bait ~ /test.cvd/../../../bait ~ /test.cvd%00/../bait ~ /test-5.cdiff/../../bait
    /test-..%2fbait.cdiff ~ /../bait-5.cdiff ~ /test-5.cdiff.sign/../bait ~ /test.cvd?version=../../bait
    /test.cvd?version=5/../../bait ~ /daily-99999999999999999999999.cdiff ~ /files/../bait
    /files/../../bait ~ /files/%2e%2e/bait ~ /files/%2e%2e%2fbait ~ /files/..%5cbait ~ /files//{d}/bait
    /files/%2f{d}/bait ~ /files/..%252fbait ~ /files/./../bait ~ /files/..%00/bait
    /files/\xc0\xae\xc0\xae/bait ~ /files/bait%00.ndb ~ /files/..%2f..%2fbait.ndb ~ /files/.%2e/bait.ndb
    /app.js/../../bait ~ /static/../bait ~ /status.json/../../bait ~ /ca.pem/../bait ~ /dns.txt%2f..%2fbait
    /client-config?os=../../bait
""")


def test_no_other_file_is_opened(watched: Watched) -> None:
    """Whatever is asked for, of ClamAV's files, pages, files of the site and feeds."""
    site = watched.site
    directory = site.directory
    allowed = [site.gateway.cache, directory / "gateway" / "ca", directory.parent / "files"]
    for place in (site.gateway.cache, directory / "gateway", directory, directory.parent):
        for name in ("bait", "bait.cvd", "bait.ndb", "bait-5.cdiff"):
            (place / name).write_bytes(BAIT)
    targets = [
        (target + path.replace(b"{d}", str(directory).encode().lstrip(b"/")), door)
        for path in PATHS
        for target, door in (
            *((b"http://database.clamav.net", "proxy"), (b"http://clamproxy", "proxy")),
            *((b"http://%b" % FEED.encode(), "proxy"), (b"", "proxy"), (b"", "tunnel"), (b"", "reverse")),
        )
    ]
    before = watched.witness.seen("open")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: watched.send(_get(one[0]), one[1]), targets))
    assert [target for target, answer in zip(targets, answers, strict=True) if BAIT in answer] == []
    opened = {path for path in watched.witness.seen("open") - before if not is_code(path)}
    assert {path for path in opened if "bait" in path} == set()
    roots = tuple(f"{place}/" for place in allowed)
    assert {path for path in opened if not os.path.realpath(path).startswith(roots)} == set()


def _with_port(host: str) -> str:
    return host if ":" in host else f"{host}:80"


def _hello() -> bytes:
    """How a client's TLS begins."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def _status_of(answer: bytes) -> int:
    """0 if the connection was closed without an answer."""
    return int(answer.split()[1]) if answer else 0


def _get(target: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target


# Pages

SPOOFED = (
    *("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 x"),
    *(
        "X-Forwarded-Host: clamproxy",
        "X-Original-URL: /livez",
        "X-Rewrite-URL: /livez",
        "Authorization: Bearer x",
    ),
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watched, int]]:
    """A site whose pages need a token on its proxy's ports; anybody on the machine reads them on another."""
    directory = tmp_path_factory.mktemp("guarded")
    witness = Witness.make(directory, RESOLVER)
    (port,) = free_ports(1)
    site = open_site(
        directory / "site",
        script=str(witness.script),
        serving={
            "hosts": [CDN],
            "pass_through": ["*.partner.example", "127.0.0.80"],
            "clients": ["127.0.0.0/30"],
        },
        feeds={"hosts": ["*.feed.example", "127.0.0.81"]},
        status={"listen": f"127.0.0.1:{port}", "token": "a-token-that-nobody-knows"},
    )
    received: list[bytes] = []
    with contextlib.closing(site), RawServer(lambda client: received.append(client.recv(1000))) as victim:
        yield Watched(site, witness, victim, received), port
        assert "Traceback" not in site.gateway.log


@pytest.mark.parametrize(
    "path", ["/", "/status.json", "/fleet.json", "/fleet.csv", "/metrics", "//metrics", "/metrics?x"]
)
def test_pages_need_their_token(guarded: tuple[Watched, int], path: str) -> None:
    """By whatever name and way they are asked for."""
    watched, port = guarded
    own = watched.site.gateway.port
    names = (
        "clamproxy",
        f"127.0.0.1:{own}",
        f"localhost:{own}",
        f"[::1]:{own}",
        f"x.example:{own}",
        f"127.0.0.1:{port}",
    )
    for name in names:
        for target, inside in ((f"http://{name}{path}", None), (path, None), (path, _with_port(name))):
            answer = _ask(own, target, name, inside)
            assert _status_of(answer) in (0, 401, 404, 502), (target, inside, answer)


def _ask(port: int, target: str, name: str, inside: str | None) -> bytes:
    """The answer to a request with all that is spoofed; nothing if its tunnel is refused."""
    fields = "".join(f"{field}\r\n" for field in SPOOFED)
    request = f"GET {target} HTTP/1.1\r\nHost: {name}\r\n{fields}Connection: close\r\n\r\n"
    with contextlib.suppress(TunnelRefused):
        return exchange(port, request.encode(), inside=inside)
    return b""


@pytest.mark.parametrize("door", ["proxy", "reverse"])
@pytest.mark.parametrize(
    "lie", [b"", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", b"X"], ids=["none", "PROXY", "X-Forwarded-For"]
)
def test_clients_of_other_networks(guarded: tuple[Watched, int], door: str, lie: bytes) -> None:
    """They are nobody, whoever they say they are."""
    gateway = guarded[0].site.gateway
    fields = b"".join(b"%b\r\n" % field.encode() for field in SPOOFED if lie == b"X")
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n%b\r\n" % fields
    sent = (b"" if lie == b"X" else lie) + request
    port = gateway.reverse_port if door == "reverse" else gateway.port
    assert exchange(port, sent, source="127.0.0.9") == b""


# Hosts that are passed through


LEADING_HOME = ("home", "six", "link", "link-six", "group", "zero", "mapped", "turning")


@contextlib.contextmanager
def not_led_home(watched: Watched, name: str) -> Iterator[None]:
    """The victim receives nothing, and no address is tried but by a name that turns."""
    watched.received.clear()
    before = len(watched.contacts())
    yield
    assert set(watched.received) <= {b""}
    # A name that turns is found out only when it is connected.
    assert name == "turning" or watched.contacts()[before:] == []


@pytest.mark.parametrize("name", LEADING_HOME)
def test_feeds_that_lead_to_the_gateways_machine(guarded: tuple[Watched, int], name: str) -> None:
    watched, _ = guarded
    host = f"{name}.feed.example:{watched.victim.port}"
    with not_led_home(watched, name):
        answer = exchange(watched.site.gateway.port, _get(f"http://{host}/x".encode()))
    assert _status_of(answer) in (502, 503, 504), answer


@pytest.mark.parametrize("name", LEADING_HOME)
@pytest.mark.parametrize("way", ["absolute", "tunnel", "TLS"])
def test_names_that_lead_to_the_gateways_machine(guarded: tuple[Watched, int], name: str, way: str) -> None:
    """What only the machine itself, or its link, should reach is not reached by a name in a pattern."""
    watched, _ = guarded
    host = f"{name}.partner.example:{watched.victim.port}"
    target = f"http://{host}/x" if way == "absolute" else "/x"
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    sent = _hello() if way == "TLS" else request
    with not_led_home(watched, name):
        answer = exchange(watched.site.gateway.port, sent, inside=None if way == "absolute" else host)
    assert _status_of(answer) == (0 if way == "TLS" else 502), answer
