"""Certificates and revocation lists in PEM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509


def read_certificates(text: bytes) -> list[x509.Certificate]:
    """All certificates in a text, of which there is at least one.

    Raises:
        ValueError: there is none, or one of them can't be read.
    """
    with _readable():
        return x509.load_pem_x509_certificates(text)


def read_revocations(text: bytes) -> x509.CertificateRevocationList:
    """The revocation list in a text.

    Raises:
        ValueError: there is none, or it can't be read.
    """
    with _readable():
        return x509.load_pem_x509_crl(text)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except x509.InvalidVersion as error:  # which is no ValueError
        raise ValueError(str(error)) from error
