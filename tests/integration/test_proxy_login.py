"""Parent proxies that want NTLM or Negotiate: pyspnego's own side, and squid."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from clamproxy.config.settings import Settings
from clamproxy.config.units import HttpProxy
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import OriginError
from clamproxy.origin.proxy_auth import Login, LoginError, admission_to
from clamproxy.origin.upstream import Upstream
from tests.support.gateway import connectable, free_ports
from tests.support.login_proxy import PASSWORD, USER, LoginProxy
from tests.support.origin import OriginServer
from tests.support.programs import give_up, require_program
from tests.support.raw import RawServer
from tests.support.site import eventually
from tests.support.stored import NEW

HELPER = Path("/usr/lib/squid/ntlm_fake_auth")
SQUID = """
http_port 127.0.0.1:{port}
pid_filename none
access_log none
cache_log /dev/null
cache deny all
visible_hostname test
shutdown_lifetime 0 seconds
auth_param ntlm program {helper}
auth_param ntlm children 1
acl known proxy_auth REQUIRED
http_access allow known
http_access deny all
"""
PATH, BODY = "/daily-5.cdiff", b"0123456789" * 1000
type Connect = Callable[..., Upstream]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    opened: list[Upstream] = []

    def make(origin: OriginServer, proxy: HttpProxy) -> Upstream:
        opened.append(
            Upstream(
                origin.url,
                proxy=proxy,
                ca_bundle=tmp_path / "ca.pem" if origin.tls else None,
                connect_timeout=5.0,
                read_timeout=5.0,
                via="1.1 clamproxy-test",
                count=lambda requests, length: None,
            )
        )
        return opened[-1]

    yield make
    for upstream in opened:
        upstream.close()


@pytest.fixture(params=["http", "https"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OriginServer]:
    """An origin by http (absolute form), or by https (through a tunnel)."""
    context = None
    if request.param == "https":
        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with OriginServer(context) as origin:
        origin.put(PATH.removeprefix("/"), BODY)
        yield origin


@pytest.fixture(params=["ntlm", "negotiate"])
def proxy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoginProxy]:
    with LoginProxy(tmp_path, request.param, monkeypatch) as proxy:
        yield proxy


def login(proxy: LoginProxy, password: str = PASSWORD) -> HttpProxy:
    return HttpProxy(proxy.url, f"{USER}:{password}", proxy.scheme)


def fetch(upstream: Upstream) -> bytes:
    with upstream.get(PATH, NEW) as answer:
        return b"".join(answer.chunks())


def test_one_handshake_for_a_connection(connect: Connect, either: OriginServer, proxy: LoginProxy) -> None:
    upstream = connect(either, login(proxy))
    assert [fetch(upstream) for _ in range(3)] == [BODY] * 3
    method = "CONNECT" if either.tls else "GET"
    last = [f"{method} 200"] if either.tls else [f"{method} 200"] * 3
    assert proxy.seen == [f"{method} 407", *last]
    assert proxy.connections == 1
    assert all("proxy-authorization" not in seen.headers for seen in either.requests())


def test_a_wrong_password_is_one_failure(connect: Connect, either: OriginServer, proxy: LoginProxy) -> None:
    with pytest.raises(OriginError) as caught:
        fetch(connect(either, login(proxy, "wrong")))
    assert caught.value.failure is FailureKind.PROXY_AUTHENTICATION
    assert "(407)" in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert len(proxy.seen) == 2  # no other attempt, which might lock the account
    assert either.requests() == []


AT_ONCE = 12


def refusals(upstreams: list[Upstream]) -> list[str]:
    """How fetching fails, several times at once."""

    def refusal(number: int) -> str:
        with pytest.raises(OriginError) as caught:
            fetch(upstreams[number % len(upstreams)])
        assert caught.value.failure is FailureKind.PROXY_AUTHENTICATION
        return str(caught.value)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(refusal, range(AT_ONCE)))


def test_a_wrong_password_is_one_failure_for_all(
    connect: Connect, either: OriginServer, proxy: LoginProxy
) -> None:
    """The origin, feeds and others have connections of their own to the same proxy."""
    wrong = login(proxy, "wrong")
    upstreams = [connect(either, wrong) for _ in range(2)]
    for _ in range(2):
        assert all("(407)" in reason for reason in refusals(upstreams))
    assert len(proxy.seen) == 2
    admission_to(wrong).forgive()
    assert refusals(upstreams)
    assert len(proxy.seen) == 4


def test_the_right_password_lets_all_in_at_once(
    connect: Connect, either: OriginServer, proxy: LoginProxy
) -> None:
    upstream = connect(either, login(proxy))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        assert list(threads.map(lambda _: fetch(upstream), range(AT_ONCE))) == [BODY] * AT_ONCE


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_wrong_password_for_basic_is_one_failure_for_all(connect: Connect, scheme: str) -> None:
    seen: list[bytes] = []

    def refuse(connection: socket.socket) -> None:
        seen.extend(filter(None, [connection.recv(65536)]))  # some connect in vain
        connection.sendall(b"HTTP/1.1 407 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    with OriginServer() as origin, RawServer(refuse) as server:
        url = origin.url.replace("http:", f"{scheme}:")
        upstream = Upstream(
            url,
            proxy=HttpProxy(server.url, f"{USER}:wrong"),
            ca_bundle=None,
            connect_timeout=5.0,
            read_timeout=5.0,
            via="1.1 clamproxy-test",
            count=lambda requests, length: None,
        )
        assert all("(407)" in reason for reason in refusals([upstream]))
        upstream.close()
    assert len(seen) == 1


def test_a_proxy_that_offers_something_else(
    connect: Connect, either: OriginServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoginProxy(tmp_path, "negotiate", monkeypatch) as other, pytest.raises(OriginError) as caught:
        fetch(connect(either, HttpProxy(other.url, f"{USER}:{PASSWORD}", "ntlm")))
    assert caught.value.failure is FailureKind.PROXY_AUTHENTICATION


@pytest.mark.parametrize("token", ["x", "TlRM=x", "\x80lRMTVNTUAAC", "TlRMTVNTUAACAAAA", "TlRMTVNTUADCq4nf"])
def test_a_challenge_that_makes_no_sense(token: str) -> None:
    login = Login(HttpProxy("http://proxy.example.net:3128", f"{USER}:{PASSWORD}", "ntlm"))
    login.first()
    with pytest.raises(LoginError):
        login.next([f"NTLM {token}"])


def test_without_a_ticket_and_without_a_password(connect: Connect, either: OriginServer) -> None:
    with pytest.raises(OriginError) as caught:
        fetch(connect(either, HttpProxy("http://127.0.0.1:9", None, "negotiate")))
    assert caught.value.failure in (FailureKind.PROXY_AUTHENTICATION, FailureKind.UNREACHABLE)


@pytest.fixture
def squid(tmp_path: Path) -> Iterator[str]:
    """The URL of squid with its NTLM helper for tests."""
    program = require_program("squid")
    if not HELPER.exists():
        give_up(f"{HELPER} is missing")
    (port,) = free_ports(1)
    config = tmp_path / "squid.conf"
    config.write_text(SQUID.format(port=port, helper=HELPER))
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([program, "-N", "-f", str(config)], stdout=out, stderr=out)
    try:
        assert eventually(lambda: connectable(port), every=0.05), (tmp_path / "out").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_squid(connect: Connect, either: OriginServer, squid: str) -> None:
    """Its helper believes any password, but insists on the handshake."""
    with pytest.raises(OriginError, match="407"):
        fetch(connect(either, HttpProxy(squid, "SITE\\gateway:secret")))
    upstream = connect(either, HttpProxy(squid, "SITE\\gateway:secret", "ntlm"))
    assert [fetch(upstream) for _ in range(2)] == [BODY] * 2


def test_without_the_package_the_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamproxy.config.fields.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"ntlm needs the package pyspnego: pip install"):
        Settings.model_validate({"upstream": {"proxy": "http://u:p@proxy:3128", "proxy_auth": "ntlm"}})
