"""Detached CMS signatures (RFC 5652, formerly PKCS #7), in DER as OpenSSL's ``PKCS7_sign`` writes them.

`cryptography` can sign like that, but has no function that verifies (pyca/cryptography#12267). So its
declarative ASN.1 reads the structure, and its public keys verify the signature. What can't be read like that
is refused: BER, attached content, signers without attributes, other ways to name a signer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, BinaryIO

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import PublicKeyAlgorithmOID, SignatureAlgorithmOID

from clamproxy.formats.signatures import FilePart, InvalidObject
from clamproxy.formats.signer_certificates import Certificate, encoded, verify_chain, whole

SIGNER_LIMIT = 8
"""The most signers of a signature; ClamAV's have one."""

CERTIFICATE_LIMIT = 16
"""The most certificates in a signature; ClamAV's have two or three."""

_SIGNED_DATA = ObjectIdentifier("1.2.840.113549.1.7.2")  # RFC 5652 5.1
_DATA = ObjectIdentifier("1.2.840.113549.1.7.1")  # RFC 5652 4
_CONTENT_TYPE = ObjectIdentifier("1.2.840.113549.1.9.3")  # RFC 5652 11.1
_MESSAGE_DIGEST = ObjectIdentifier("1.2.840.113549.1.9.4")  # RFC 5652 11.2
_RSA = PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5  # OpenSSL's PKCS7_sign names no more than the kind of key
_SET, _SEQUENCE = b"\x31", b"\x30"


@dataclass(frozen=True, slots=True)
class _Digest:
    """A hash, and the signature algorithms that use it."""

    hash: hashes.HashAlgorithm
    with_rsa: ObjectIdentifier
    with_ecdsa: ObjectIdentifier


_DIGESTS = {  # RFC 5754 2
    ObjectIdentifier("2.16.840.1.101.3.4.2.1"): _Digest(
        hashes.SHA256(), SignatureAlgorithmOID.RSA_WITH_SHA256, SignatureAlgorithmOID.ECDSA_WITH_SHA256
    ),
    ObjectIdentifier("2.16.840.1.101.3.4.2.2"): _Digest(
        hashes.SHA384(), SignatureAlgorithmOID.RSA_WITH_SHA384, SignatureAlgorithmOID.ECDSA_WITH_SHA384
    ),
    ObjectIdentifier("2.16.840.1.101.3.4.2.3"): _Digest(
        hashes.SHA512(), SignatureAlgorithmOID.RSA_WITH_SHA512, SignatureAlgorithmOID.ECDSA_WITH_SHA512
    ),
}


@asn1.sequence
class _Algorithm:
    name: ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class _Content:
    """EncapsulatedContentInfo without the content, which is the file (RFC 5652 5.2)."""

    kind: ObjectIdentifier


@asn1.sequence
class _IssuerAndSerial:
    issuer: asn1.TLV
    serial: int


@asn1.sequence
class _Attribute:
    kind: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _Attributes:
    """The same bytes as the signed attributes, which are a SET."""

    all: asn1.SetOf[_Attribute]


@asn1.sequence
class _SignerInfo:
    version: int
    signer: _IssuerAndSerial
    digest: _Algorithm
    attributes: asn1.TLV
    algorithm: _Algorithm
    signature: bytes


@asn1.sequence
class _SignedData:
    version: int
    digests: asn1.SetOf[_Algorithm]
    content: _Content
    # A SET in RFC 5652, but OpenSSL doesn't sort it as DER demands; a SEQUENCE may have any order.
    certificates: Annotated[list[asn1.TLV], asn1.Implicit(0)]
    signers: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _ContentInfo:
    kind: ObjectIdentifier
    content: Annotated[_SignedData, asn1.Explicit(0)]


def verify_signed_data(der: bytes, roots: Collection[bytes], content: BinaryIO | None) -> None:
    """Prove that a signature was made by somebody whom the roots vouch for, and that it signs this file.

    Args:
        der: a ContentInfo with SignedData (RFC 5652 3 and 5.1). Each of its signers must be right.
        roots: certificates to trust, in DER.
        content: the file that must have been signed, seekable; its position is moved. None accepts any
            file: everything is then checked except the digest of the content.

    Raises:
        InvalidObject: it isn't.
    """
    signed = _signed_data(der)
    signers = signed.signers.as_list()
    if not 1 <= len(signers) <= SIGNER_LIMIT or len(signed.certificates) > CERTIFICATE_LIMIT:
        raise InvalidObject("no signer, or an unusual number of signers or certificates")
    certificates = [Certificate.parse(whole(one)) for one in signed.certificates]
    known = [algorithm.name for algorithm in signed.digests.as_list()]
    for signer in signers:
        digest = _DIGESTS.get(signer.digest.name)
        if digest is None or signer.digest.name not in known:
            raise InvalidObject("unknown digest algorithm")
        stated = _message_digest(signer)
        # What it signs comes first, so that the message names the likeliest reason.
        if content is not None and _digest_of(content, digest.hash) != stated:
            raise InvalidObject("it signs another file")
        certificate = _certificate_of(signer.signer, certificates)
        _verify_signature(signer, digest, certificate)
        verify_chain(certificate, certificates, roots)


def _signed_data(der: bytes) -> _SignedData:
    try:
        info = asn1.decode_der(_ContentInfo, der)
    except ValueError:
        raise InvalidObject("no detached signature in DER") from None
    if info.kind != _SIGNED_DATA or info.content.version != 1 or info.content.content.kind != _DATA:
        raise InvalidObject("no SignedData of the usual version and content")
    return info.content


def _message_digest(signer: _SignerInfo) -> bytes:
    """The digest of the content, as the signed attributes state it (RFC 5652 5.3 and 11)."""
    if signer.version != 1 or signer.attributes.tag_bytes != b"\xa0":
        raise InvalidObject("a signer of an unusual version, or without signed attributes")
    try:
        attributes = asn1.decode_der(_Attributes, encoded(_SEQUENCE, _signed_bytes(signer))).all.as_list()
        found = {attribute.kind: attribute.values.as_list() for attribute in attributes}
        (kind,), (digest,) = found[_CONTENT_TYPE], found[_MESSAGE_DIGEST]
        if len(found) == len(attributes) and kind.parse(ObjectIdentifier) == _DATA:
            return bytes(digest.parse(bytes))
    except (KeyError, ValueError):
        pass
    raise InvalidObject("not exactly one content type and message digest among the signed attributes")


def _signed_bytes(signer: _SignerInfo) -> bytes:
    """What the signature covers: the attributes as a SET, though they have another tag (RFC 5652 5.4)."""
    return encoded(_SET, signer.attributes.data)


def _digest_of(content: BinaryIO, algorithm: hashes.HashAlgorithm) -> bytes:
    whole = FilePart(content, 0, content.seek(0, os.SEEK_END))
    return hashlib.file_digest(whole, algorithm.name).digest()


def _certificate_of(wanted: _IssuerAndSerial, certificates: Sequence[Certificate]) -> Certificate:
    issuer = whole(wanted.issuer)
    for certificate in certificates:
        if (certificate.issuer, certificate.serial) == (issuer, wanted.serial):
            return certificate
    raise InvalidObject("the signer's certificate is missing")


def _verify_signature(signer: _SignerInfo, digest: _Digest, certificate: Certificate) -> None:
    data, algorithm = _signed_bytes(signer), signer.algorithm.name
    try:
        match certificate.public_key():
            case rsa.RSAPublicKey() as key if algorithm in (digest.with_rsa, _RSA):
                key.verify(signer.signature, data, padding.PKCS1v15(), digest.hash)
            case ec.EllipticCurvePublicKey() as key if algorithm == digest.with_ecdsa:
                key.verify(signer.signature, data, ec.ECDSA(digest.hash))
            case _:
                raise InvalidObject("unknown signature algorithm")
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):  # ValueError: a key too short for the digest
        raise InvalidObject("wrong signature") from None
