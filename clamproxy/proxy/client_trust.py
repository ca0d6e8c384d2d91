"""Certificates of clients: whom TLS with the gateway is open to (`access.client_ca`)."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from OpenSSL import SSL, crypto

from clamproxy.config.fields import check_pem
from clamproxy.pem import read_certificates, read_revocations

logger = logging.getLogger(__name__)

_FAILURES = {
    9: "certificate not valid yet",
    10: "certificate has expired",
    11: "revocation list not valid yet",
    12: "revocation list has expired",
    23: "certificate revoked",
    **dict.fromkeys((2, 18, 19, 20, 21), "signed by nobody in access.client_ca"),
    3: "no revocation list of its authority",
    26: "certificate not for clients",
}
"""Results of OpenSSL's verification (x509_vfy.h)."""
_CRL = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class ClientTrust:
    """Who signs the certificates of clients, and which ones have been revoked."""

    path: Path
    authorities: tuple[x509.Certificate, ...]
    revoked: tuple[x509.CertificateRevocationList, ...]

    @classmethod
    def read(cls, path: Path) -> ClientTrust:
        """Read a PEM file of certificates, and of revocation lists, if it has any.

        Raises:
            OSError: it can't be read.
            ValueError: it is something else, or not complete.
        """
        text = path.read_bytes()
        check_pem(text)
        lists = tuple(read_revocations(found) for found in _CRL.findall(text))
        return cls(path, tuple(read_certificates(text)), lists)

    def demand_of_clients(self, context: SSL.Context) -> None:
        """Let a handshake fail without a valid certificate."""
        store = context.get_cert_store()
        assert store is not None  # noqa: S101  (only a context without any store has none)
        flags = crypto.X509StoreFlags.PARTIAL_CHAIN  # an intermediate authority is enough
        for authority in self.authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))
            context.add_client_ca(authority)
        for one in self.revoked:
            store.add_crl(one)
            flags |= crypto.X509StoreFlags.CRL_CHECK
        store.set_flags(flags)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _note_failure)
        # Whoever resumed a session would not be checked again, and its certificate may have expired since.
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_id(b"clamproxy")  # without, OpenSSL ends handshakes that resume a session
        context.set_app_data(self.path)


def _note_failure(connection: SSL.Connection, _: crypto.X509, code: int, __: int, is_valid: int) -> bool:
    if not is_valid:
        connection.set_app_data(_FAILURES.get(code, f"error {code}"))
    return bool(is_valid)


def failure_of(connection: SSL.Connection) -> str | None:
    """Why a client's certificate was refused; None if it wasn't, or if there is none."""
    failure = connection.get_app_data()
    return failure if isinstance(failure, str) else None


def certified_by(connection: SSL.Connection) -> Path | None:
    """The `access.client_ca` by which the client of an established connection was verified."""
    path = connection.get_context().get_app_data()
    return path if isinstance(path, Path) else None


class CurrentTrust:
    """Follows the file, which may be replaced at any time: revocation lists expire."""

    def __init__(self) -> None:
        self._seen: tuple[Path, int, int, int] | None = None
        self._trust: ClientTrust | None = None

    def of(self, path: Path) -> ClientTrust:
        """What is in the file now; what was in it last, as long as it can't be used.

        Raises:
            OSError, ValueError: it never could.
        """
        try:
            status = path.stat()
            seen = (path, status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen and self._trust is not None:
                return self._trust
            trust = ClientTrust.read(path)
        except (OSError, ValueError) as error:
            if self._trust is None or self._trust.path != path:
                raise
            if self._seen is not None:
                logger.warning("access.client_ca stays as it was: %s: %s", path, error)
            self._seen = None
            return self._trust
        self._seen, self._trust = seen, trust
        return trust
