"""TLS with clients, with certificates of the gateway's own authority in place of mitmproxy's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from mitmproxy import connection, ctx, tls
from mitmproxy.certs import Cert, CertStore
from mitmproxy.net.tls import INSECURE_TLS_MIN_VERSIONS, Version
from mitmproxy.proxy import mode_specs
from OpenSSL import SSL

from clamproxy.authority import Authority, ForeignName, Leaf
from clamproxy.authority.certificates import general_name, make_leaf, utc
from clamproxy.proxy.client_trust import ClientTrust, CurrentTrust

logger = logging.getLogger(__name__)

_UNRECOGNIZED_NAME = bytes((21, 3, 3, 0, 2, 2, 112))
"""A record with one alert: fatal, unrecognized_name (RFC 8446 5.1 and 6)."""
_HTTP_1 = (b"http/1.1",)
_HTTP_2 = (b"h2", b"http/1.1")
_DAY = 86400
"""In seconds."""


class Certificates:
    """An addon that sets up TLS before mitmproxy's own addon does, if the gateway has an authority.

    Args:
        authority: gives the current authority, quickly; None leaves everything to mitmproxy.
        client_ca: gives `access.client_ca`.
    """

    def __init__(
        self,
        authority: Callable[[], Authority | None],
        client_ca: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self._authority = authority
        self._client_ca = client_ca
        self._current_trust = CurrentTrust()
        self._told: Authority | None = None

    def running(self) -> None:
        """Log what HTTPS clients must trust, and read what the gateway trusts."""
        self._tell(self._authority())
        with suppress(OSError, ValueError):  # the file has changed since the configuration was checked
            self._trust()

    def tls_start_client(self, data: tls.TlsData) -> None:
        """Set up a connection; it ends at once if there is no certificate for the name."""
        authority = self._authority()
        if authority is not self._told:
            self._tell(authority)
        if data.ssl_conn is not None or not isinstance(data.conn, connection.Client):
            return
        if authority is None and self._client_ca() is None:
            return
        try:
            credentials, trust = self._credentials(authority, _name_asked_for(data)), self._trust()
            # TLS with the proxy itself, when no server is known yet: mitmproxy has no CONNECT over HTTP/2.
            is_proxy = data.context.server.address is None
            options = _TlsOptions.now(is_proxy=is_proxy)
            data.ssl_conn = SSL.Connection(_tls_context(credentials, options, trust))
            data.ssl_conn.set_accept_state()
        except ForeignName as error:
            logger.warning("%s: TLS refused: %s.", data.conn.peername[0], error)
            data.ssl_conn = _Refusal()
        except Exception:
            # Otherwise, mitmproxy would go on with its own certificate.
            logger.exception("%s: TLS failed.", data.conn.peername[0])
            data.ssl_conn = _Refusal()

    def context_for(self, host: str) -> SSL.Context | None:
        """TLS in the name of a host, for clients of the express lane.

        Returns:
            None if only mitmproxy can honour its options, or can tell the client what is wrong.
        """
        options = ctx.options
        if options.http2 or options.tls_ecdh_curve_client or options.request_client_cert:
            return None
        try:
            credentials, trust = self._credentials(self._authority(), host), self._trust()
        except (ForeignName, OSError, ValueError):
            return None
        return _tls_context(credentials, _TlsOptions.now(is_proxy=False), trust)

    def _credentials(self, authority: Authority | None, host: str) -> _Credentials:
        if authority is None:
            return _Credentials.of_mitmproxy(host)
        return _Credentials.of_leaf(authority.certificate_for(host))

    def _trust(self) -> ClientTrust | None:
        """Whose certificates clients must present; None if they need none.

        Raises:
            OSError, ValueError: that can't be told.
        """
        path = self._client_ca()
        return None if path is None else self._current_trust.of(path)

    def _tell(self, authority: Authority | None) -> None:
        self._told = authority
        if authority is not None:
            logger.info(
                "HTTPS clients have to trust the authority in %s (`clamproxy ca install`). It signs for %s.",
                authority.directory,
                authority.permitted(),
            )
            return
        logger.info(
            "HTTPS clients have to trust %s, which may sign for any name; "
            "`clamproxy ca init` makes a certificate for ClamAV's names only.",
            Path(ctx.options.confdir).expanduser() / "mitmproxy-ca-cert.pem",
        )


@dataclass(frozen=True, slots=True)
class _TlsOptions:
    """The options of mitmproxy that concern TLS with clients."""

    min_version: Version
    max_version: Version
    ciphers: str | None
    protocols: tuple[bytes, ...]

    @classmethod
    def now(cls, *, is_proxy: bool) -> _TlsOptions:
        options = ctx.options
        return cls(
            Version[options.tls_version_client_min],
            Version[options.tls_version_client_max],
            options.ciphers_client,
            _HTTP_2 if options.http2 and not is_proxy else _HTTP_1,
        )


@dataclass(frozen=True, slots=True)
class _Credentials:
    """A certificate, its key, and the chain that is sent with it."""

    key: EllipticCurvePrivateKey | RSAPrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]

    @classmethod
    def of_leaf(cls, leaf: Leaf) -> _Credentials:
        """A certificate signed by the gateway's own authority."""
        return cls(leaf.key, leaf.certificate, (leaf.issuer,))

    @classmethod
    def of_mitmproxy(cls, host: str) -> _Credentials:
        """A certificate that mitmproxy's authority signs for a host, or the one that mitmproxy was given."""
        store: CertStore = ctx.master.addons.get("tlsconfig").certstore  # type: ignore[no-untyped-call]
        if not ctx.options.certs:
            with suppress(x509.ExtensionNotFound):  # the authority was made by another program
                return _signed_by_mitmproxy(store, host, int(time.time() // _DAY))
        entry = store.get_cert(host, [general_name(host)])
        chain = _chain(entry.chain_file, entry.chain_certs)
        return cls(entry.privatekey, entry.cert.to_cryptography(), chain)


def _chain(file: Path | None, certificates: Sequence[Cert]) -> tuple[x509.Certificate, ...]:
    """What is sent along with one of mitmproxy's certificates: only the content of a chain file."""
    return tuple(one.to_cryptography() for one in certificates) if file else ()


@lru_cache(64)
def _signed_by_mitmproxy(store: CertStore, host: str, day: int) -> _Credentials:
    """A certificate with a P-256 key; mitmproxy's own RSA keys make each handshake far more expensive.

    Args:
        host: whose certificate it is.
        day: since 1970, so that each day has a new certificate.
    """
    leaf = make_leaf(host, store.default_ca.to_cryptography(), store.default_privatekey, utc(day * _DAY))
    chain = _chain(store.default_chain_file, store.default_chain_certs)
    return _Credentials(leaf.key, leaf.certificate, chain)


@lru_cache(64)
def _tls_context(credentials: _Credentials, options: _TlsOptions, trust: ClientTrust | None) -> SSL.Context:
    """A context for a certificate; making one takes longer than all other preparation of a handshake."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(options.min_version.value)
    context.set_max_proto_version(options.max_version.value)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if options.ciphers is not None:
        context.set_cipher_list(options.ciphers.encode())
    elif options.min_version in INSECURE_TLS_MIN_VERSIONS:
        context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")  # OpenSSL 3 allows older TLS at that level only
    context.use_certificate(credentials.certificate)
    for certificate in credentials.chain:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(credentials.key)
    context.set_alpn_select_callback(_protocol_selector(options.protocols))
    if trust is not None:
        trust.demand_of_clients(context)
    return context


def _protocol_selector(
    protocols: tuple[bytes, ...],
) -> Callable[[SSL.Connection, list[bytes]], Any]:
    def select(_: SSL.Connection, offered: list[bytes]) -> Any:
        # The client's order counts, as it does for mitmproxy.
        return next((name for name in offered if name in protocols), SSL.NO_OVERLAPPING_PROTOCOLS)

    return select


def _name_asked_for(data: tls.TlsData) -> str:
    """The name that the client will look for in the certificate."""
    client, address = data.context.client, data.context.server.address
    if client.sni:
        return client.sni
    # Without SNI, the client connected to an address: the one in its CONNECT, or the gateway's own.
    is_reverse = isinstance(client.proxy_mode, mode_specs.ReverseMode)
    return str(client.sockname[0] if address is None or is_reverse else address[0])


class _Refusal(SSL.Connection):
    """Stands in for a connection that is refused: the client gets an alert, and closes."""

    def __init__(self) -> None:
        super().__init__(_refusing_context())
        self._alert = _UNRECOGNIZED_NAME

    def bio_write(self, buf: bytes | bytearray | memoryview) -> int:
        """Ignore whatever the client sends."""
        return len(buf)

    def do_handshake(self) -> None:
        raise SSL.WantReadError

    def bio_read(self, bufsiz: int) -> bytes:
        alert, self._alert = self._alert, b""
        if not alert:
            raise SSL.WantReadError
        return alert


@lru_cache(1)
def _refusing_context() -> SSL.Context:
    return SSL.Context(SSL.TLS_SERVER_METHOD)
