"""Certificates and detached signatures by keys of our own, good ones and others."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs7 import (
    PKCS7HashTypes,
    PKCS7Options,
    PKCS7SignatureBuilder,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

type Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

MAIL, CODE, TLS = (
    ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ExtendedKeyUsageOID.CODE_SIGNING,
    ExtendedKeyUsageOID.SERVER_AUTH,
)
DETACHED = (PKCS7Options.DetachedSignature, PKCS7Options.Binary)
_DAY = timedelta(days=1)


@cache
def make_key(kind: str, name: str) -> Key:
    """A key of a kind ("rsa", "ec", "ed25519"), the same one for the same name in this process."""
    match kind:
        case "rsa":
            return rsa.generate_private_key(65537, 2048)
        case "ec":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True)
class Wish:
    """What a certificate shall be like."""

    name: str
    kind: str = "rsa"
    is_authority: bool = False
    usages: Collection[x509.ObjectIdentifier] = (MAIL, CODE)
    """Extended key usages; empty for no such extension."""
    signs: bool | None = True
    """Whether its key may sign; None for no key usage."""
    validity: tuple[timedelta, timedelta] = (-_DAY, _DAY)
    """From now."""
    others: Sequence[tuple[x509.ExtensionType, bool]] = field(default=())
    """More extensions, and whether they are critical."""

    def issue(self, issuer: Issued | None = None) -> Issued:
        """The certificate, signed by another one, or else by itself."""
        key = make_key(self.kind, self.name)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        by = issuer.certificate.subject if issuer else name
        builder = x509.CertificateBuilder(by, name, key.public_key(), x509.random_serial_number())
        start, end = (datetime.now(UTC) + offset for offset in self.validity)
        builder = builder.not_valid_before(start).not_valid_after(end)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        for extension, critical in [*self._extensions(), *self.others]:
            builder = builder.add_extension(extension, critical)
        signing = issuer.key if issuer else key
        digest = None if isinstance(signing, ed25519.Ed25519PrivateKey) else SHA256()
        return Issued(builder.sign(signing, digest), key)

    def _extensions(self) -> list[tuple[x509.ExtensionType, bool]]:
        found: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=self.is_authority, path_length=None), True)
        ]
        if self.signs is not None:
            usage = dict.fromkeys(
                [
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "crl_sign",
                    "encipher_only",
                    "decipher_only",
                ],
                False,
            )
            usage |= {"digital_signature": self.signs, "key_cert_sign": self.is_authority}
            usage |= {"key_encipherment": not self.signs}
            found.append((x509.KeyUsage(**usage), True))
        if self.usages:
            found.append((x509.ExtendedKeyUsage(self.usages), False))
        return found


@cache
def authority(kind: str = "rsa") -> Issued:
    """A root."""
    return Wish("Root", kind, is_authority=True, usages=()).issue()


def signed_data(
    content: bytes,
    signers: Sequence[Issued],
    chain: Sequence[Issued] = (),
    *,
    options: Sequence[PKCS7Options] = (),
    digest: PKCS7HashTypes | None = None,
) -> bytes:
    """A detached signature in DER, as ClamAV makes it (docs/protocol.md 6).

    Args:
        chain: further certificates to put into it.
        digest: SHA-256 by default.
    """
    builder = PKCS7SignatureBuilder().set_data(content)
    for signer in signers:
        assert not isinstance(signer.key, ed25519.Ed25519PrivateKey)
        builder = builder.add_signer(signer.certificate, signer.key, digest or SHA256())
    for one in chain:
        builder = builder.add_certificate(one.certificate)
    return builder.sign(Encoding.DER, [*DETACHED, *options])


def sign_file(*signatures: bytes, level: bytes = b"230:") -> bytes:
    """A ``.sign`` file with these signatures in DER."""
    lines = [level + b":pkcs7-pem:" + base64.b64encode(der) for der in signatures]
    return b"\n".join([b"#clamsign-1.0", *lines, b""])
