"""Clients behind load balancers: the PROXY protocol, and X-Forwarded-For."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator

import pytest
import yaml

from clamproxy.access.users import user_line
from tests.support.gateway import CDN, Settings, Way, connectable, free_ports, tunnel
from tests.support.origin import OriginServer
from tests.support.proxy_headers import LOCAL, binary_header, raw_header, text_header
from tests.support.raw_http import exchange, parse_answers
from tests.support.site import LOCALHOST, Site, eventually, open_site, signed

from .conftest import MakeSite

ANNOUNCING, FORWARDING = "127.0.0.2", "127.0.0.3"
"""A balancer in access.proxy_protocol, and one in access.forwarded_for."""
BALANCERS = {"proxy_protocol": [ANNOUNCING], "forwarded_for": [FORWARDING]}
CLIENTS = ["127.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]
AGENT = "ClamAV/1.4.3 (OS: linux-gnu, ARCH: x86_64, CPU: x86_64, UUID: {})"
HEADERS = [text_header, binary_header]

_numbers = itertools.count(1)

type MakeHeader = Callable[[str], bytes]


def new_client(family: int = 4) -> str:
    """An address that no other test has used, so that the log tells them apart."""
    number = next(_numbers)
    return f"192.0.2.{number}" if family == 4 else f"2001:db8::{number}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway behind both balancers, with version 6 in its cache."""
    (pages,) = free_ports(1)
    site = open_site(
        tmp_path_factory.mktemp("balanced"),
        access=BALANCERS,
        serving={"clients": CLIENTS, "pass_through": ["*.example.com"]},
        status={"listen": f"{LOCALHOST}:{pages}"},
    )
    site.warm(6)
    assert eventually(lambda: connectable(pages))
    yield site
    site.close()


def get(path: str, *fields: str, host: str = "x", method: str = "GET") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "Connection: close", "", "")
    return "\r\n".join(lines).encode()


def told(site: Site, text: str) -> int:
    """How many lines of the log have a text, once it has one."""
    eventually(lambda: text in site.gateway.log)
    return site.gateway.log.count(text)


# The PROXY protocol


REQUESTS = {
    "origin form": ("port", get("/test.cvd"), "test-6.cvd"),
    "absolute form": ("port", get(f"http://{CDN}/test-6.cdiff", host=CDN), "test-6.cdiff"),
    "reverse": ("reverse_port", get("/test-6.cdiff"), "test-6.cdiff"),
    # By way of mitmproxy.
    "origin form, unusual": ("port", get("/test.cvd", "Content-Length: 0"), "test-6.cvd"),
    "absolute form, unusual": (
        "port",
        get(f"http://{CDN}/test-6.cdiff", "Expect: 100-continue", host=CDN),
        "test-6.cdiff",
    ),
    "reverse, unusual": ("reverse_port", get("/test.cvd", "Content-Length: 0"), "test-6.cvd"),
}


@pytest.mark.parametrize("make_header", HEADERS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("port", "request_", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_client_of_the_header(
    site: Site, make_header: MakeHeader, family: int, port: str, request_: bytes, expected: str
) -> None:
    client = new_client(family)
    raw = make_header(client) if family == 4 else make_header(client, gateway=("2001:db8::ff", 1))  # type: ignore[call-arg]
    (answer,) = parse_answers(exchange(getattr(site.gateway, port), raw + request_, source=ANNOUNCING))
    assert (answer.status, answer.body) == (200, signed(expected))
    assert told(site, f" {client} GET /{expected.replace('-6.cvd', '.cvd')}") == 1


@contextlib.contextmanager
def balanced(site: Site, header: bytes, *, port: str = "port") -> Iterator[socket.socket]:
    """A connection of which the balancer has sent the header."""
    place = (LOCALHOST, getattr(site.gateway, port))
    with socket.create_connection(place, 20, source_address=(ANNOUNCING, 0)) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.sendall(header)
        yield stream


def read_answer(stream: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := stream.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize("make_header", HEADERS)
@pytest.mark.parametrize("inner", [get("/test.cvd"), get("/test.cvd", "Content-Length: 0")])
def test_tunnel(site: Site, make_header: MakeHeader, inner: bytes) -> None:
    client = new_client()
    with balanced(site, make_header(client)) as stream:
        tunnel(stream, f"{CDN}:80")
        stream.sendall(inner)
        assert read_answer(stream).endswith(signed("test-6.cvd"))
    assert told(site, f" {client} GET /test.cvd") == 1


@pytest.mark.parametrize("make_header", HEADERS)
@pytest.mark.parametrize("inner", [get("/test.cvd"), get("/test.cvd", "Content-Length: 0")])
def test_tls_in_a_tunnel(site: Site, make_header: MakeHeader, inner: bytes) -> None:
    client = new_client()
    with balanced(site, make_header(client)) as stream:
        tunnel(stream, f"{CDN}:443")
        context = site.gateway._tls_context()
        with context.wrap_socket(stream, server_hostname=CDN) as secure:
            secure.sendall(inner)
            assert read_answer(secure).endswith(signed("test-6.cvd"))
    assert told(site, f" {client} GET /test.cvd") == 1


@pytest.mark.parametrize("make_header", HEADERS)
def test_tls_right_after_the_header(site: Site, make_header: MakeHeader) -> None:
    """A mirror with https: mitmproxy gets the connection with its first byte."""
    client = new_client()
    with balanced(site, make_header(client), port="reverse_port") as stream:
        context = site.gateway._tls_context()
        with context.wrap_socket(stream, server_hostname=CDN) as secure:
            secure.sendall(get("/test-6.cdiff", host=CDN))
            assert read_answer(secure).endswith(signed("test-6.cdiff"))
    assert told(site, f" {client} GET /test-6.cdiff") == 1


@pytest.mark.parametrize("make_header", HEADERS)
@pytest.mark.parametrize("size", [1, 11])
def test_header_byte_by_byte(site: Site, make_header: MakeHeader, size: int) -> None:
    client = new_client()
    header = make_header(client)
    with balanced(site, b"") as stream:
        for start in range(0, len(header), size):
            stream.sendall(header[start : start + size])
            time.sleep(0.005)
        stream.sendall(get("/test-6.cdiff"))
        assert read_answer(stream).endswith(signed("test-6.cdiff"))
    assert told(site, f" {client} GET /test-6.cdiff") == 1


def test_requests_that_follow_each_other(site: Site) -> None:
    client = new_client()
    again = get("/test-6.cdiff").replace(b"Connection: close\r\n", b"")
    with balanced(site, text_header(client) + again + again + get("/livez")) as stream:
        received = read_answer(stream)
    assert [answer.status for answer in parse_answers(received)] == [200] * 3
    assert told(site, f" {client} GET /livez") == 1
    assert told(site, f" {client} GET /test-6.cdiff") == 2


@pytest.mark.parametrize(
    "header",
    [LOCAL, raw_header(0x20, 0x11, bytes(12)), raw_header(0x21, 0x00), b"PROXY UNKNOWN\r\n"],
    ids=["LOCAL", "LOCAL with addresses", "UNSPEC", "UNKNOWN"],
)
def test_connections_of_the_balancer_itself(site: Site, header: bytes) -> None:
    before = site.gateway.log.count(f" {ANNOUNCING} GET /readyz")
    (answer,) = parse_answers(exchange(site.gateway.port, header + get("/readyz"), source=ANNOUNCING))
    assert answer.status == 200
    assert eventually(lambda: site.gateway.log.count(f" {ANNOUNCING} GET /readyz") == before + 1)


def test_checks_that_only_connect(site: Site) -> None:
    before = site.gateway.log
    for _ in range(3):
        with balanced(site, b""):
            pass
    reset = (socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with balanced(site, b"") as stream:  # as haproxy's checks end
        stream.setsockopt(*reset)
    exchange(site.gateway.port, LOCAL + get("/last-of-all"), source=ANNOUNCING)
    assert eventually(lambda: "GET /last-of-all " in site.gateway.log)
    new = site.gateway.log.removeprefix(before).splitlines()
    assert len(new) == 1, new


def test_place_that_clients_are_told(site: Site) -> None:
    """They reach the gateway where the balancer is."""
    raw = text_header(new_client(), gateway=("192.0.2.200", 3128)) + get("/client-config", host="localhost")
    (answer,) = parse_answers(exchange(site.gateway.port, raw, source=ANNOUNCING))
    assert b"HTTPProxyServer 192.0.2.200\nHTTPProxyPort 3128\n" in answer.body


def test_pages_have_no_balancer(site: Site) -> None:
    """status.listen is for the machine itself and for monitoring."""
    pages = int(site.gateway.settings["status"]["listen"].rpartition(":")[2])
    (answer,) = parse_answers(exchange(pages, get("/livez"), source=ANNOUNCING))
    assert answer.status == 200
    client = new_client()
    assert b"200 OK" not in exchange(pages, text_header(client) + get("/livez"), source=ANNOUNCING)
    assert client not in site.gateway.log


# Refusals


def fresh_site(make_site: MakeSite, **access: object) -> Site:
    site = make_site(access={**BALANCERS, **access}, serving={"clients": CLIENTS})
    site.warm(6)
    return site


def test_headers_from_others(make_site: MakeSite) -> None:
    """Nobody else can choose an address; the log says so once."""
    site = fresh_site(make_site)
    for port in (site.gateway.port, site.gateway.reverse_port):
        for make_header in HEADERS:
            for source in (LOCALHOST, FORWARDING):
                raw = make_header("192.0.2.66") + get("/test.cvd")
                for pause_at in (0, 3, 14, len(make_header("192.0.2.66"))):
                    received = exchange(port, raw, source=source, pause_at=pause_at)
                    assert b" 200 " not in received.partition(b"\r\n")[0], received
    line = (
        "Closed a connection from {}, which is not in access.proxy_protocol: it begins with a PROXY header."
    )
    for source in (LOCALHOST, FORWARDING):
        assert told(site, line.format(source)) == 1
    assert "192.0.2.66" not in site.gateway.log


def test_a_second_header(make_site: MakeSite) -> None:
    """A client behind a balancer can't choose its address either."""
    site = fresh_site(make_site)
    for make_header in HEADERS:
        raw = text_header("192.0.2.7") + make_header("192.0.2.66") + get("/test.cvd")
        assert exchange(site.gateway.port, raw, source=ANNOUNCING) == b""
    assert told(site, "Closed a connection from 192.0.2.7, which is not in access.proxy_protocol") == 1
    assert "192.0.2.66" not in site.gateway.log


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (get("/test.cvd"), "it does not begin with a PROXY header"),
        (b"\x16\x03\x01\x02\x00", "it does not begin with a PROXY header"),
        (b"PROXY TCP4 10.0.0.7\r\n", "its PROXY header is malformed"),
        (raw_header(0x21, 0x11, length=65535), "its PROXY header is longer than 536 bytes"),
    ],
)
def test_connections_without_a_header(make_site: MakeSite, said: bytes, reason: str) -> None:
    site = fresh_site(make_site)
    for port in (site.gateway.port, site.gateway.reverse_port, site.gateway.port):
        assert exchange(port, said, source=ANNOUNCING) == b""
    line = f"Closed a connection from {ANNOUNCING}, which is in access.proxy_protocol: {reason}."
    assert told(site, line) == 1


def test_clients_that_are_not_admitted(make_site: MakeSite) -> None:
    site = fresh_site(make_site)
    for make_header in HEADERS:
        assert exchange(site.gateway.port, make_header("10.0.0.7") + get("/livez"), source=ANNOUNCING) == b""
    assert told(site, "10.0.0.7 is not in serving.clients: connection closed.") == 2
    answers = exchange(site.gateway.port, text_header("192.0.2.7") + get("/livez"), source=ANNOUNCING)
    assert parse_answers(answers)[0].status == 200


def test_balancers_that_are_not_admitted_themselves(make_site: MakeSite) -> None:
    """They forward clients all the same; only their own connections, such as checks, count as theirs."""
    site = make_site(access=BALANCERS, serving={"clients": ["192.0.2.0/24"]})
    raw = text_header("192.0.2.7") + get("/livez")
    assert parse_answers(exchange(site.gateway.port, raw, source=ANNOUNCING))[0].status == 200
    assert exchange(site.gateway.port, LOCAL + get("/livez"), source=ANNOUNCING) == b""
    assert told(site, f"{ANNOUNCING} is not in serving.clients: connection closed.") == 1


# Limits


def test_limit_of_one_client(make_site: MakeSite) -> None:
    """Each client behind the balancer has its own; the balancer has none."""
    site = fresh_site(make_site, max_connections_per_client=2)
    with contextlib.ExitStack() as stack:
        for client in ("192.0.2.7", "192.0.2.8"):
            for _ in range(2):
                stream = stack.enter_context(balanced(site, text_header(client)))
                tunnel(stream, f"{CDN}:80")
        for _ in range(4):
            stream = stack.enter_context(balanced(site, LOCAL))
            tunnel(stream, f"{CDN}:80")
        for _ in range(4):
            stack.enter_context(balanced(site, b"PROXY "))
        assert exchange(site.gateway.port, text_header("192.0.2.7"), source=ANNOUNCING) == b""
        assert told(site, "per_client has been reached: closed a connection from 192.0.2.7.") == 1
        raw = text_header("192.0.2.9") + get("/livez")
        assert parse_answers(exchange(site.gateway.port, raw, source=ANNOUNCING))[0].status == 200
    raw = text_header("192.0.2.7") + get("/livez")
    assert eventually(lambda: b" 200 " in exchange(site.gateway.port, raw, source=ANNOUNCING))


def test_limit_of_all_connections(make_site: MakeSite) -> None:
    """It counts connections whose header has not come; clients wait for a place, and get it."""
    site = fresh_site(make_site, max_connections=4)
    held = contextlib.ExitStack()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            held.enter_context(balanced(site, b"PROXY "))
        stream = stack.enter_context(balanced(site, text_header("192.0.2.7") + get("/livez")))
        assert told(site, "access.max_connections has been reached: further connections wait.") == 1
        held.close()
        assert b" 200 " in read_answer(stream)


@pytest.mark.parametrize(
    "header", [b"PROXY TCP4 10.0.0.7 192.0.2.1 1 2\r\n", b"PRX", text_header("192.0.2.7")]
)
def test_places_are_free_again(make_site: MakeSite, header: bytes) -> None:
    """Also after refusals, at the limit of all: while a header is awaited, the door is shut."""
    site = fresh_site(make_site, max_connections=1)
    for pause_at in (2, 0, 2):
        exchange(site.gateway.port, header + get("/livez"), source=ANNOUNCING, pause_at=pause_at)
    assert b" 200 " in exchange(site.gateway.port, get("/livez"))


def test_stop_while_a_header_is_awaited(make_site: MakeSite) -> None:
    site = fresh_site(make_site)
    with balanced(site, b"PROXY "), balanced(site, b""):
        assert site.gateway.stop() == 0
    assert "Traceback" not in site.gateway.log


def test_reload(make_site: MakeSite) -> None:
    """A balancer may come and go."""
    site = fresh_site(make_site)
    settings: Settings = site.gateway.settings
    for networks, works in (([], False), ([ANNOUNCING], True)):
        settings["access"]["proxy_protocol"] = networks
        site.gateway.config.write_text(yaml.safe_dump(settings))
        assert site.gateway.tool("reload").returncode == 0
        with_header = exchange(site.gateway.port, text_header("192.0.2.7") + get("/livez"), source=ANNOUNCING)
        without = exchange(site.gateway.port, get("/livez"), source=ANNOUNCING)
        assert (b" 200 " in with_header, b" 200 " in without) == (works, not works)


# X-Forwarded-For


def forwarded(value: str) -> str:
    return f"X-Forwarded-For: {value}"


FORGED = "192.0.2.66"
SPOOFS = [
    # Source, PROXY header's client, fields, whose request it is ("new": the balancer's client).
    (FORWARDING, None, ["new"], "new"),
    (FORWARDING, None, [f"{FORGED}, new"], "new"),
    (FORWARDING, None, [FORGED, "new"], "new"),
    (FORWARDING, None, [f"new, {FORWARDING}"], "new"),
    (FORWARDING, None, [f"{FORGED}, unknown"], FORWARDING),
    (FORWARDING, None, [], FORWARDING),
    (LOCALHOST, None, [FORGED], LOCALHOST),
    (LOCALHOST, None, [f"{FORGED}, {FORWARDING}"], LOCALHOST),
    # Behind a balancer for TCP, the field is the client's own.
    (ANNOUNCING, "new", [FORGED], "new"),
    (ANNOUNCING, "new", [f"{FORGED}, {FORWARDING}"], "new"),
    (ANNOUNCING, "", [FORGED], ANNOUNCING),
    # One balancer behind the other.
    (ANNOUNCING, FORWARDING, ["new"], "new"),
]


@pytest.mark.parametrize("extra", [[], ["Content-Length: 0"]], ids=["lane", "mitmproxy"])
@pytest.mark.parametrize(("source", "header", "fields", "expected"), SPOOFS)
def test_whose_request_it_is(
    site: Site, source: str, header: str | None, fields: list[str], expected: str, extra: list[str]
) -> None:
    client, mark = new_client(), f"/mark-{next(_numbers)}"
    raw = b"" if header is None else LOCAL if not header else text_header(header.replace("new", client))
    raw += get(mark, *(forwarded(field.replace("new", client)) for field in fields), *extra)
    (answer,) = parse_answers(exchange(site.gateway.port, raw, source=source))
    assert answer.status == 404
    assert told(site, f" {expected.replace('new', client)} GET {mark} ") == 1


@pytest.mark.parametrize(
    "field", ["Forwarded: for=192.0.2.66", "X-Real-IP: 192.0.2.66", "Client-IP: 192.0.2.66"]
)
def test_other_fields_name_nobody(site: Site, field: str) -> None:
    mark = f"/mark-{next(_numbers)}"
    exchange(site.gateway.port, get(mark, field), source=FORWARDING)
    assert told(site, f" {FORWARDING} GET {mark} ") == 1


def test_many_clients_on_one_connection(site: Site) -> None:
    clients = [new_client() for _ in range(4)]
    again = [
        get("/test-6.cdiff", forwarded(client)).replace(b"Connection: close\r\n", b"") for client in clients
    ]
    raw = b"".join(again) + get("/test-6.cdiff")
    answers = parse_answers(exchange(site.gateway.reverse_port, raw, source=FORWARDING))
    assert [answer.body for answer in answers] == [signed("test-6.cdiff")] * 5
    assert [told(site, f" {client} GET /test-6.cdiff") for client in clients] == [1] * 4


@pytest.mark.parametrize("extra", [[], ["Content-Length: 0"]], ids=["lane", "mitmproxy"])
def test_tunnel_belongs_to_who_asked_for_it(site: Site, extra: list[str]) -> None:
    """The balancer doesn't see what is inside, so a client would name itself there."""
    client = new_client()
    place = (LOCALHOST, site.gateway.port)
    for field in (f"{forwarded(client)}\r\n", ""):
        with socket.create_connection(place, 20, source_address=(FORWARDING, 0)) as stream:
            stream.sendall(f"CONNECT {CDN}:80 HTTP/1.1\r\nHost: {CDN}\r\n{field}\r\n".encode())
            assert stream.recv(1000).startswith(b"HTTP/1.1 200 ")
            stream.sendall(get("/test-6.cdiff", forwarded(FORGED), *extra))
            assert read_answer(stream).endswith(signed("test-6.cdiff"))
    assert told(site, f" {client} GET /test-6.cdiff") == 1
    assert f" {FORGED} " not in site.gateway.log


def test_forwarded_clients_that_are_not_admitted(site: Site) -> None:
    stranger = forwarded("10.0.0.7")
    requests = [
        get("/livez", stranger),
        get("/test.cvd", stranger),
        get("/test.cvd", stranger, "Content-Length: 0"),
        get(f"http://{CDN}/test.cvd", stranger, host=CDN),
        get(f"{CDN}:80", stranger, host=CDN, method="CONNECT"),
        get("http://www.example.com/", stranger, host="www.example.com"),
    ]
    for request in requests:
        (answer,) = parse_answers(exchange(site.gateway.port, request, source=FORWARDING))
        assert answer.status == 502
        assert b"10.0.0.7 is not in serving.clients" in answer.body


def test_password_is_not_shared(make_site: MakeSite) -> None:
    """What one client has shown doesn't count for others on the balancer's connection."""
    site = make_site(access={**BALANCERS, "users": [user_line("me", "secret")]}, serving={"clients": CLIENTS})
    login = f"Proxy-Authorization: Basic {b64encode(b'me:secret').decode()}"
    first = (
        f"CONNECT {CDN}:25 HTTP/1.1\r\nHost: {CDN}\r\n{login}\r\n{forwarded('192.0.2.7')}\r\n\r\n".encode()
    )
    for fields in ([forwarded("192.0.2.8")], []):
        for before in (first, first.replace(forwarded("192.0.2.7").encode() + b"\r\n", b"")):
            raw = before + get("/test.cvd", *fields)
            answers = parse_answers(exchange(site.gateway.port, raw, source=FORWARDING), ["CONNECT"])
            assert [answer.status for answer in answers] == [502, 401]


def test_machines_of_the_fleet(make_site: MakeSite) -> None:
    """The table shows where each machine is."""
    site = fresh_site(make_site)
    machines = {f"00000000-0000-4000-8000-00000000000{number}": f"192.0.2.{number}" for number in (7, 8)}
    for uuid, client in machines.items():
        agent = f"User-Agent: {AGENT.format(uuid)}"
        if client.endswith("7"):
            exchange(site.gateway.port, binary_header(client) + get("/test.cvd", agent), source=ANNOUNCING)
        else:
            exchange(site.gateway.port, get("/test.cvd", agent, forwarded(client)), source=FORWARDING)

    def seen() -> dict[str, str]:
        answer = site.gateway.ask("/status.json", Way.ABSOLUTE, host=f"{LOCALHOST}:{site.gateway.port}")
        rows = yaml.safe_load(answer.body)["fleet"]["machines"]
        return {row["uuid"]: row["address"] for row in rows if row["uuid"] in machines}

    assert eventually(lambda: (found := seen()) == machines and found), seen()


def test_no_field_goes_on(make_site: MakeSite, origin: OriginServer) -> None:
    """Neither to the origin, nor to a host that is passed through: those fields are the site's affair."""
    origin.put("x", b"passed")
    site = make_site(
        access=BALANCERS, serving={"hosts": [CDN], "clients": CLIENTS, "pass_through": [LOCALHOST]}
    )
    site.publish(6)
    fields = [forwarded("192.0.2.7"), "X-Real-IP: 192.0.2.7", "Forwarded: for=192.0.2.7"]
    for source in (FORWARDING, LOCALHOST):
        place = f"{LOCALHOST}:{origin.port}"
        (answer,) = parse_answers(
            exchange(site.gateway.port, get(f"http://{place}/x", *fields, host=place), source=source)
        )
        assert answer.body == b"passed"
    exchange(site.gateway.port, get("/test.cvd", *fields), source=FORWARDING)
    names = {"x-forwarded-for", "x-real-ip", "forwarded"}
    through_balancer, direct = (names & set(request.headers) for request in origin.requests())
    # A client that isn't behind a balancer has sent them itself, to that host.
    assert (through_balancer, direct) == (set(), names)
    assert site.origin.requests()
    assert not any(names & set(request.headers) for request in site.origin.requests())


def test_several_workers(make_site: MakeSite) -> None:
    """The limit of one client behind a balancer holds for all workers together."""
    site = make_site(
        workers=2, access={**BALANCERS, "max_connections_per_client": 4}, serving={"clients": CLIENTS}
    )
    site.warm(6)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            tunnel(stack.enter_context(balanced(site, text_header("192.0.2.7"))), f"{CDN}:80")
        for _ in range(4):
            assert exchange(site.gateway.port, text_header("192.0.2.7"), source=ANNOUNCING) == b""
        for client in ("192.0.2.8", "192.0.2.9"):
            raw = binary_header(client) + get("/test-6.cdiff")
            assert exchange(site.gateway.port, raw, source=ANNOUNCING).endswith(signed("test-6.cdiff"))
    assert told(site, " 192.0.2.8 GET /test-6.cdiff") == 1
