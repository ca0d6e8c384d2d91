"""TLS with clients, by the hook of mitmproxy; both ends are in memory."""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from mitmproxy import connection, tls
from mitmproxy.addons import tlsconfig
from mitmproxy.proxy import context, mode_specs
from mitmproxy.test import taddons
from OpenSSL import SSL

from clamproxy.authority import Authority, PermittedNames, found, rotate
from clamproxy.proxy.client_tls import Certificates

HOST = "database.clamav.net"
NAMES = PermittedNames(("clamav.net", "gw"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return found(tmp_path / "ca", NAMES, time.time())


class Proxy:
    """mitmproxy's own addon behind ours, as in the proxy."""

    def __init__(self, tctx: taddons.context, authority: Authority | None) -> None:
        self.authority = authority
        self.tctx = tctx
        self.ours = Certificates(lambda: self.authority)
        self.theirs = tlsconfig.TlsConfig()
        tctx.configure(self.theirs, http2=False)  # type: ignore[no-untyped-call]

    def without(self, directory: Path) -> Path:
        """There is no authority but mitmproxy's; returns its certificate."""
        self.authority = None
        self.tctx.options.confdir = str(directory)
        self.theirs.configure({"confdir"})  # type: ignore[no-untyped-call]
        return directory / "mitmproxy-ca-cert.pem"

    def connection(
        self, sni: str | None, *, server: str | None = HOST, mode: str = "regular"
    ) -> SSL.Connection:
        client = connection.Client(
            peername=("10.0.0.9", 4711),
            sockname=("192.0.2.1", 8080),
            timestamp_start=1.0,
            proxy_mode=mode_specs.ProxyMode.parse(mode),
            sni=sni,
        )
        ctx = context.Context(client, self.tctx.options)
        ctx.server.address = None if server is None else (server, 443)
        data = tls.TlsData(client, ctx)
        self.ours.tls_start_client(data)
        self.theirs.tls_start_client(data)
        assert data.ssl_conn is not None
        return data.ssl_conn


@pytest.fixture
def proxy(authority: Authority) -> Iterator[Proxy]:
    with taddons.context() as tctx:  # type: ignore[no-untyped-call]
        yield Proxy(tctx, authority)


def handshake(
    server: SSL.Connection,
    name: str | None,
    bundle: bytes,
    *,
    protocols: tuple[str, ...] = ("h2", "http/1.1"),
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> ssl.SSLObject:
    """Complete a handshake with a client that trusts a bundle and looks for a name."""
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.load_verify_locations(cadata=bundle.decode())
    settings.set_alpn_protocols(list(protocols))
    settings.maximum_version = newest
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = settings.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(10):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            return client
        data = to_server.read()
        if data:
            server.bio_write(data)
        with contextlib.suppress(SSL.WantReadError):
            server.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            to_client.write(server.bio_read(65535))
    raise AssertionError("no end")


def issuer_of(client: ssl.SSLObject) -> x509.Name:
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).issuer


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_own_names(proxy: Proxy, authority: Authority, newest: ssl.TLSVersion) -> None:
    client = handshake(proxy.connection(HOST), HOST, authority.bundle(), newest=newest)
    assert issuer_of(client) == authority.signer().certificate.subject
    assert client.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    ("sni", "server", "mode", "expected"),
    [
        ("gw", HOST, "reverse:https://database.clamav.net", "gw"),
        ("gw", None, "regular", "gw"),  # TLS with the proxy itself
        (None, HOST, "regular", HOST),  # a client without SNI: its CONNECT counts
        ("db.local.clamav.net", HOST, "regular", "db.local.clamav.net"),
    ],
)
def test_which_name(
    proxy: Proxy, authority: Authority, sni: str | None, server: str | None, mode: str, expected: str
) -> None:
    handshake(proxy.connection(sni, server=server, mode=mode), expected, authority.bundle())


@pytest.mark.parametrize(
    ("sni", "server", "mode", "name"),
    [
        ("www.example.com", HOST, "regular", "www.example.com"),
        (None, "www.example.com", "regular", "www.example.com"),
        (None, HOST, "reverse:https://database.clamav.net", "192.0.2.1"),
        (None, None, "regular", "192.0.2.1"),
    ],
)
def test_foreign_name_is_refused(
    proxy: Proxy,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    sni: str | None,
    server: str | None,
    mode: str,
    name: str,
) -> None:
    proxy.ours.running()
    connection = proxy.connection(sni, server=server, mode=mode)
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        handshake(connection, name, authority.bundle())
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert name in warnings[0]
    assert "10.0.0.9" in warnings[0]


def test_without_an_authority(proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bundle = proxy.without(tmp_path / "conf")
    proxy.ours.running()
    assert [str(bundle) in line and "ca init" in line for line in caplog.messages] == [True]
    handshake(proxy.connection("www.example.com"), "www.example.com", bundle.read_bytes())


def test_authority_is_told_once(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    proxy.ours.running()
    for _ in range(3):
        proxy.connection(HOST)
    assert len(caplog.messages) == 1
    assert "clamav.net, gw" in caplog.messages[0]


def test_authority_that_comes_and_rotates(proxy: Proxy, authority: Authority, tmp_path: Path) -> None:
    proxy.without(tmp_path / "conf")
    proxy.connection(HOST)
    proxy.authority = authority
    handshake(proxy.connection(HOST), HOST, authority.bundle())
    proxy.authority = rotate(authority.directory, NAMES, time.time(), 0)
    client = handshake(proxy.connection(HOST), HOST, proxy.authority.bundle())
    assert issuer_of(client) == proxy.authority.generations[-1].certificate.subject


def test_contexts_are_kept(proxy: Proxy) -> None:
    contexts = [proxy.connection(HOST).get_context() for _ in range(2)]
    assert contexts[0] is contexts[1]


@pytest.mark.parametrize(("server", "expected"), [(HOST, "h2"), (None, "http/1.1")])
def test_http_2(proxy: Proxy, authority: Authority, server: str | None, expected: str) -> None:
    proxy.tctx.options.http2 = True
    client = handshake(proxy.connection(HOST, server=server), HOST, authority.bundle())
    assert client.selected_alpn_protocol() == expected


def test_without_alpn(proxy: Proxy, authority: Authority) -> None:
    client = handshake(proxy.connection(HOST), HOST, authority.bundle(), protocols=())
    assert client.selected_alpn_protocol() is None


def test_options_of_mitmproxy(proxy: Proxy, authority: Authority) -> None:
    proxy.tctx.options.tls_version_client_min = "TLS1_3"
    with pytest.raises((ssl.SSLError, SSL.Error)):
        handshake(proxy.connection(HOST), HOST, authority.bundle(), newest=ssl.TLSVersion.TLSv1_2)
    proxy.tctx.options.tls_version_client_min = "TLS1"
    proxy.tctx.options.tls_version_client_max = "TLS1_2"
    client = handshake(proxy.connection(HOST), HOST, authority.bundle())
    assert client.version() == "TLSv1.2"
    proxy.tctx.options.ciphers_client = "ECDHE-ECDSA-CHACHA20-POLY1305"
    client = handshake(proxy.connection(HOST), HOST, authority.bundle())
    assert (client.cipher() or [""])[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"


def test_impossible_option_is_no_way_round(
    proxy: Proxy, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.tctx.options.ciphers_client = "NONSENSE"
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        handshake(proxy.connection(HOST), HOST, authority.bundle())
    assert "TLS failed" in caplog.text
