"""The certificates of ``.sign`` files: whether a root that ClamAV's clients trust vouches for the signer.

OpenSSL verifies the chain, as in libclamav (libclamav_rust/src/codesign.rs), by way of pyOpenSSL.
`cryptography.x509.verification` can't: it demands version 3 of a root, positive serial numbers and key
identifiers, and ClamAV's own test certificates have none of these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Self, cast

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from OpenSSL import crypto

from clamproxy.formats.signatures import InvalidObject

_SEQUENCE = b"\x30"
_NETSCAPE_TYPE = ObjectIdentifier("2.16.840.1.113730.1.1")
_SIGNING, _NON_REPUDIATION = 0x80, 0x40  # RFC 5280 4.2.1.3: bits of the first byte
_TLS_CLIENT, _MAIL = 0x80, 0x20  # the same of a Netscape certificate type


@asn1.sequence
class _Extension:
    name: ObjectIdentifier
    critical: bool | None
    value: bytes


@asn1.sequence
class _ToBeSigned:
    version: Annotated[int | None, asn1.Explicit(0)]
    serial: int
    algorithm: asn1.TLV
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    key: asn1.TLV
    issuer_id: Annotated[asn1.BitString | None, asn1.Implicit(1)]
    subject_id: Annotated[asn1.BitString | None, asn1.Implicit(2)]
    extensions: Annotated[list[_Extension] | None, asn1.Explicit(3)]


@asn1.sequence
class _Signed:
    """A certificate (RFC 5280 4.1)."""

    certificate: _ToBeSigned
    algorithm: asn1.TLV
    signature: asn1.BitString


@asn1.sequence
class _Usages:
    """The value of an extended key usage, in a SEQUENCE of its own."""

    all: list[ObjectIdentifier]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate; `cryptography` is to refuse serial numbers of 0 some day, which ClamAV's have had."""

    x509: crypto.X509
    issuer: bytes
    """In DER."""
    serial: int
    extensions: dict[ObjectIdentifier, bytes]
    """Values by name."""

    @classmethod
    def parse(cls, der: bytes) -> Self:
        """Read a certificate.

        Raises:
            InvalidObject: this is none.
        """
        try:
            found = asn1.decode_der(_Signed, der).certificate
            x509 = crypto.load_certificate(crypto.FILETYPE_ASN1, der)
        except (ValueError, crypto.Error):
            raise InvalidObject("malformed certificate") from None
        extensions = {extension.name: extension.value for extension in found.extensions or ()}
        return cls(x509, whole(found.issuer), found.serial, extensions)

    def public_key(self) -> PublicKeyTypes:
        """Raises ValueError or `UnsupportedAlgorithm` if it is of a kind that nothing here knows."""
        try:
            # The types allow for private keys, which no certificate has.
            return cast(PublicKeyTypes, self.x509.get_pubkey().to_cryptography_key())
        except crypto.Error as error:
            raise ValueError("an unknown kind of key") from error


def verify_chain(signer: Certificate, others: Iterable[Certificate], roots: Collection[bytes]) -> None:
    """Prove that one of the roots vouches for the signer, at this time and for signatures of mail.

    That is the purpose that OpenSSL's ``PKCS7_verify`` demands, and so each client.

    Args:
        others: certificates that may lead from the signer to a root; the signer's may be among them.
        roots: certificates to trust, in DER.

    Raises:
        InvalidObject: no root does.
    """
    store = crypto.X509Store()
    for root in roots:
        store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, root))
    try:
        context = crypto.X509StoreContext(store, signer.x509, [other.x509 for other in others])
        chain = context.get_verified_chain()
    except crypto.X509StoreContextError as error:
        raise InvalidObject(f"the signer's certificate is not trusted: {error}") from None
    if not _may_sign(signer) or not all(_is_for_mail(_reread(x509)) for x509 in chain):
        raise InvalidObject("the signer's certificate is for another purpose")


def whole(element: asn1.TLV) -> bytes:
    """The element in DER; `asn1` can't encode a TLV before cryptography 50."""
    return encoded(element.tag_bytes, element.data)


def encoded(tag: bytes, content: bytes | memoryview) -> bytes:
    """An element of DER (X.690 10.1)."""
    length = len(content)
    if length < 0x80:
        return tag + bytes([length]) + content
    digits = length.to_bytes((length.bit_length() + 7) // 8)
    return tag + bytes([0x80 | len(digits)]) + digits + content


def _reread(x509: crypto.X509) -> Certificate:
    return Certificate.parse(crypto.dump_certificate(crypto.FILETYPE_ASN1, x509))


# OpenSSL, crypto/x509/v3_purp.c: check_purpose_smime_sign; pyOpenSSL can't ask for a purpose.


def _is_for_mail(certificate: Certificate) -> bool:
    value = certificate.extensions.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if value is None:
        return True
    try:
        return ExtendedKeyUsageOID.EMAIL_PROTECTION in asn1.decode_der(_Usages, encoded(_SEQUENCE, value)).all
    except ValueError:
        return False


def _may_sign(signer: Certificate) -> bool:
    allowed = (
        (ExtensionOID.KEY_USAGE, _SIGNING | _NON_REPUDIATION),
        (_NETSCAPE_TYPE, _MAIL | _TLS_CLIENT),
    )
    return all(
        name not in signer.extensions or _has_bits(signer.extensions[name], bits) for name, bits in allowed
    )


def _has_bits(value: bytes, wanted: int) -> bool:
    """Whether a BIT STRING has any of these bits in its first byte."""
    try:
        return any(byte & wanted for byte in asn1.decode_der(asn1.BitString, value).as_bytes()[:1])
    except ValueError:
        return False
