"""Origins that are reached at given addresses: everything but the connection goes by the name in the URL."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from urllib3.exceptions import ConnectTimeoutError

from clamproxy.config.settings import UpstreamSection
from clamproxy.config.units import Address
from clamproxy.doctor.reach import reach
from clamproxy.origin.addresses import Addresses
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import OriginError
from clamproxy.origin.upstream import Upstream
from tests.support.gateway import free_ports
from tests.support.origin import OriginServer
from tests.support.stored import NEW

HOST, PATH = "cdn.example.net", "/daily-5.cdiff"
SILENT = Address("127.0.0.1", free_ports(1)[0])
"""Where nobody listens."""


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


def serve(authority: trustme.CA, name: str) -> tuple[OriginServer, list[str | None]]:
    """An origin with a certificate, and the names that clients ask for by SNI."""
    context, names = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), list[str | None]()
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda _, asked, __: names.append(asked)
    return OriginServer(context), names


def make(url: str, addresses: Sequence[Address], ca_bundle: Path | None = None) -> Upstream:
    return Upstream(
        url,
        proxy=None,
        ca_bundle=ca_bundle,
        connect_timeout=5.0,
        read_timeout=5.0,
        via="1.1 clamproxy-test",
        count=lambda requests, length: None,
        addresses=addresses,
    )


def read(upstream: Upstream) -> bytes:
    with upstream.get(PATH, NEW) as answer:
        return b"".join(answer.chunks())


def fetch(url: str, tmp_path: Path, addresses: Sequence[Address]) -> bytes:
    upstream = make(url, addresses, tmp_path / "ca.pem")
    try:
        return read(upstream)
    finally:
        upstream.close()


@pytest.mark.parametrize("before", [(), (SILENT,), (SILENT, SILENT)])
def test_the_first_address_that_answers_is_used(
    authority: trustme.CA, tmp_path: Path, before: tuple[Address, ...]
) -> None:
    origin, names = serve(authority, HOST)
    with origin:
        origin.put(PATH.removeprefix("/"), b"0123456789")
        url, addresses = f"https://{HOST}:{origin.port}", (*before, Address("127.0.0.1", origin.port))
        assert fetch(url, tmp_path, addresses) == b"0123456789"
        (seen,) = origin.requests()
        assert (seen.headers["host"], names) == (f"{HOST}:{origin.port}", [HOST])
        section = UpstreamSection.model_construct(
            url=url, address=addresses, proxy=None, ca_bundle=tmp_path / "ca.pem"
        )
        assert f"a connection to {HOST}" in reach(section, 5)


def test_without_a_port_the_urls_counts(authority: trustme.CA, tmp_path: Path) -> None:
    origin, _ = serve(authority, HOST)
    with origin:
        origin.put(PATH.removeprefix("/"), b"0123456789")
        assert fetch(f"https://{HOST}:{origin.port}", tmp_path, [Address("127.0.0.1")]) == b"0123456789"


def test_the_address_that_answered_last_is_tried_first() -> None:
    """A dead one costs each new connection the whole connect_timeout."""
    names = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
    addresses, dead, asked = Addresses([Address(name) for name in names], 443), set(names[:1]), list[str]()

    def connect(host: str, port: int) -> socket.socket:
        asked.append(host[-1])
        if host in dead:
            raise ConnectTimeoutError(host)
        return socket.socket()

    def tried() -> str:
        asked.clear()
        with suppress(ConnectTimeoutError):
            addresses.connect(443, connect).close()
        return "".join(asked)

    assert [tried(), tried()] == ["12", "2"]
    dead.add(names[1])
    assert [tried(), tried()] == ["213", "3"]
    dead.update(names)
    assert [tried(), tried()] == ["312", "312"]
    dead.clear()
    assert tried() == "3"


def test_an_address_that_no_longer_answers_is_replaced() -> None:
    with OriginServer() as first, OriginServer() as second:
        for origin in (first, second):
            origin.put(PATH.removeprefix("/"), b"0123456789")
        upstream = make(first.url, [Address("127.0.0.1", one.port) for one in (first, second)])
        assert read(upstream) == b"0123456789"
        upstream.close()
        first.close()
        assert [read(upstream) for _ in range(2)] == [b"0123456789"] * 2
        assert len(second.requests()) == 2
        upstream.close()


def test_the_port_of_an_address_stands_for_the_urls_only() -> None:
    """A redirect may lead from http to https."""
    with OriginServer() as origin, OriginServer() as other:
        addresses = Addresses([Address("127.0.0.1", origin.port)], 80)
        for asked, reached in ((80, origin.port), (other.port, other.port)):
            with addresses.connect(asked, lambda host, port: socket.create_connection((host, port))) as one:
                assert one.getpeername() == ("127.0.0.1", reached)


def test_the_certificate_must_have_the_name_in_the_url(authority: trustme.CA, tmp_path: Path) -> None:
    origin, _ = serve(authority, "127.0.0.1")
    with origin, pytest.raises(OriginError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(f"https://{HOST}:{origin.port}", tmp_path, [Address("127.0.0.1")])


def test_if_nobody_answers_the_origin_is_unreachable(authority: trustme.CA, tmp_path: Path) -> None:
    with pytest.raises(OriginError) as caught:
        fetch(f"http://{HOST}", tmp_path, [SILENT, SILENT])
    assert caught.value.failure is FailureKind.UNREACHABLE
