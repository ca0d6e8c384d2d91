"""The certificates themselves: those of an authority, and of the hosts that it signs for."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clamproxy.authority.constraints import PermittedNames

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=30)
RENEWED_AFTER = 2 / 3
"""A host's certificate is replaced after this share of its life."""
BACKDATED = timedelta(days=1)
"""Clients whose clocks are slow by less than this accept a new certificate at once."""
_LONGEST_HOST = 24
"""Characters of the host name that are used; a common name has at most 64 (RFC 5280 appendix A.1)."""


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A certificate for one host, with its own key. Compared by identity."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    issuer: x509.Certificate
    """Sent to the client together with the certificate."""

    def is_fresh(self, now: float) -> bool:
        """Whether clients will accept it for some time yet (`now` in Unix seconds)."""
        start = self.certificate.not_valid_before_utc.timestamp()
        end = self.certificate.not_valid_after_utc.timestamp()
        return start <= now < start + (end - start) * RENEWED_AFTER


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def make_authority(
    key: ec.EllipticCurvePrivateKey, names: PermittedNames, now: datetime
) -> tuple[x509.Certificate, x509.Certificate]:
    """Make the certificates of an authority for TLS servers with certain names only.

    Verifiers need not check the constraints of a certificate that they trust (RFC 5280 6.1.1, RFC 5937),
    and Java's doesn't. So clients trust a root whose key is thrown away at the end of this function. It
    has signed only one certificate, and the constraints of that one are checked by all verifiers.

    Args:
        key: the key of the certificate below the root.
        names: the names that it may sign for.

    Returns:
        The root, and the certificate that signs for hosts.
    """
    root_key, serial = new_key(), x509.random_serial_number()
    host = socket.gethostname()[:_LONGEST_HOST]
    # Two authorities made on the same day must differ, for people and for programs that look for an issuer.
    title = f"clamproxy CA {host} {now:%Y-%m-%d} {f'{serial:x}'[:6]}"
    start, end = now - BACKDATED, now + AUTHORITY_LIFE
    root_id = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    root = (
        _authority_builder(_builder(root_key, serial, start, end), names, levels_below=1)
        .subject_name(_name(title))
        .issuer_name(_name(title))
        .add_extension(root_id, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    signer = (
        _authority_builder(_builder(key, x509.random_serial_number(), start, end), names, levels_below=0)
        .subject_name(_name(f"{title} signer"))
        .issuer_name(_name(title))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False
        )
        .sign(root_key, hashes.SHA256())
    )
    return root, signer


def make_leaf(
    host: str,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    now: datetime,
) -> Leaf:
    """Make the certificate of a host, without checking whether the issuer may sign for it.

    Args:
        host: a host name in ASCII, or an IP address.
        issuer: the authority's certificate.
        issuer_key: the key that belongs to it.
    """
    key = new_key()
    start = max(now - BACKDATED, issuer.not_valid_before_utc)
    end = max(min(now + LEAF_LIFE, issuer.not_valid_after_utc), start)
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(key, x509.random_serial_number(), start, end)
        .subject_name(x509.Name([]))  # then the alternative name must be critical (RFC 5280 4.2.1.6)
        .issuer_name(issuer.subject)
        .add_extension(x509.SubjectAlternativeName([general_name(host)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return Leaf(key, certificate, issuer)


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 fingerprint of a certificate, in the form that openssl prints."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def title_of(certificate: x509.Certificate) -> str:
    """The common name of an authority's certificate."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return "".join(str(name.value) for name in names)


def utc(seconds: float) -> datetime:
    """Unix seconds as a time for certificates, which have no fractions of a second."""
    return datetime.fromtimestamp(int(seconds), UTC)


def utc_text(seconds: float) -> str:
    """Unix seconds as text for people, to the minute."""
    return f"{utc(seconds):%Y-%m-%d %H:%M} UTC"


def _builder(
    key: ec.EllipticCurvePrivateKey, serial: int, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _authority_builder(
    builder: x509.CertificateBuilder, names: PermittedNames, *, levels_below: int
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=levels_below), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names.constraints(), critical=True)
    )


def _name(title: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def general_name(host: str) -> x509.GeneralName:
    """A host name in ASCII or an IP address, in the form for certificates."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
