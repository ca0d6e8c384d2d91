"""The certificates themselves: of an authority, and of the hosts that it signs for."""

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
"""This share of its life, a leaf is made anew."""
BACKDATED = timedelta(days=1)
"""Clients whose clocks are behind by less accept a new certificate at once."""
_LONGEST_HOST = 24
"""Characters; a common name has at most 64 (RFC 5280 appendix A.1)."""


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A certificate for one host, with a key of its own. Each is equal to itself only."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    issuer: x509.Certificate
    """Goes to the client with it."""

    def is_fresh(self, now: float) -> bool:
        """Whether clients will accept it for some time (`now` in Unix seconds)."""
        start = self.certificate.not_valid_before_utc.timestamp()
        end = self.certificate.not_valid_after_utc.timestamp()
        return start <= now < start + (end - start) * RENEWED_AFTER


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on the curve P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def make_authority(
    key: ec.EllipticCurvePrivateKey, names: PermittedNames, now: datetime
) -> tuple[x509.Certificate, x509.Certificate]:
    """Make the certificates of an authority: for TLS servers with certain names only.

    Verifiers need not look at the constraints of what they trust (RFC 5280 6.1.1, RFC 5937), and
    Java's doesn't. So clients trust a root whose key is thrown away here and now; what it has signed is
    one certificate below it, whose constraints count for all.

    Args:
        key: of the certificate below the root.
        names: what it may sign for.
        now: the present time.

    Returns:
        The root, and the certificate that signs for hosts.
    """
    root_key, serial = new_key(), x509.random_serial_number()
    host = socket.gethostname()[:_LONGEST_HOST]
    # Two of the same day have to be told apart, by people and by what looks for an issuer.
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
    """Make the certificate of a host; whether the issuer may do that is not looked at.

    Args:
        host: a host name in ASCII, or an IP address.
        issuer: the authority's certificate.
        issuer_key: the key that belongs to it.
        now: the present time.
    """
    key = new_key()
    start = max(now - BACKDATED, issuer.not_valid_before_utc)
    end = max(min(now + LEAF_LIFE, issuer.not_valid_after_utc), start)
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(key, x509.random_serial_number(), start, end)
        .subject_name(x509.Name([]))  # the alternative name says all, and is critical then (RFC 5280 4.2.1.6)
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
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate, as openssl prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def title_of(certificate: x509.Certificate) -> str:
    """The common name of an authority."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return "".join(str(name.value) for name in names)


def utc(seconds: float) -> datetime:
    """Unix seconds as certificates have them: without fractions."""
    return datetime.fromtimestamp(int(seconds), UTC)


def utc_text(seconds: float) -> str:
    """Unix seconds for people, to the minute."""
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
    """A host name in ASCII, or an IP address, as certificates have it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
