"""Detached CMS signatures (RFC 5652, formerly PKCS #7): which digest they vouch for, and whether they hold.

This is own code because `cryptography` reads only the certificates of a signature, and its parser for
declared structures refuses the order in which OpenSSL writes them. Whether the signer can be trusted is
not decided here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_der_public_key

from clamproxy.formats.signatures import FilePart, InvalidObject

_INTEGER, _OCTETS, _OID, _SEQUENCE, _SET = 0x02, 0x04, 0x06, 0x30, 0x31
_CONTEXT_0 = 0xA0
_LONGEST_LENGTH = 4
"""The most bytes in which a length may be given; the structures of RFC 5652 are far smaller than 4 GiB."""

type _Element = tuple[int, bytes]
"""Tag and content."""

_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")  # RFC 5652 5.1
_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")  # RFC 5652 11.2
_HASHES: dict[bytes, hashes.HashAlgorithm] = {  # RFC 5754 2
    bytes.fromhex("608648016503040201"): hashes.SHA256(),
    bytes.fromhex("608648016503040202"): hashes.SHA384(),
    bytes.fromhex("608648016503040203"): hashes.SHA512(),
    bytes.fromhex("608648016503040204"): hashes.SHA224(),
}
_PKCS1 = [bytes.fromhex(f"2a864886f70d0101{number:02x}") for number in (1, 11, 12, 13, 14)]  # RFC 8017 A.2
_ECDSA = [bytes.fromhex(f"2a8648ce3d0403{number:02x}") for number in (1, 2, 3, 4)]  # RFC 5758 3.2


@dataclass(frozen=True, slots=True)
class Signer:
    """One SignerInfo (RFC 5652 5.3) whose algorithms are known here."""

    hash: hashes.HashAlgorithm
    attributes: bytes | None
    """The signed attributes in the form that is hashed; None if the signature is over the content itself."""
    digest: bytes | None
    """The digest of the content, as these attributes state it."""
    algorithm: bytes
    signature: bytes
    key: PublicKeyTypes | None
    """The signer's public key, if the signature carries its certificate."""

    def check(self, content: BinaryIO | None) -> None:
        """Check that this is a signature of the content, by the certificate that came with it.

        Args:
            content: the file that must have been signed, seekable; its position is moved. None accepts
                any file.

        Raises:
            InvalidObject: it is not.
        """
        found = None if content is None else self._digest_of(content)
        if found is not None and self.digest is not None and found != self.digest:
            raise InvalidObject("it signs another file")
        if not self._verify(found) and found is not None and self.digest is None:
            raise InvalidObject("nothing says what it signs")

    def _digest_of(self, content: BinaryIO) -> bytes:
        whole = FilePart(content, 0, content.seek(0, os.SEEK_END))
        return hashlib.file_digest(whole, self.hash.name).digest()

    def _verify(self, found: bytes | None) -> bool:
        """Verify the signature itself; returns whether that was possible."""
        data = self.attributes or found
        algorithm = self.hash if self.attributes else Prehashed(self.hash)
        if data is None:
            return False
        try:
            match self.key:
                case rsa.RSAPublicKey() as key if self.algorithm in _PKCS1:
                    key.verify(self.signature, data, padding.PKCS1v15(), algorithm)
                case ec.EllipticCurvePublicKey() as key if self.algorithm in _ECDSA:
                    key.verify(self.signature, data, ec.ECDSA(algorithm))
                case _:
                    return False
        except (InvalidSignature, ValueError):  # ValueError: a key too short for the digest, for example
            raise InvalidObject("wrong signature") from None
        except UnsupportedAlgorithm:
            return False
        return True


def is_signed_data(der: bytes) -> bool:
    """Whether this is exactly one ContentInfo that holds one SignedData, whatever is in that."""
    try:
        _signed_data(der)
    except InvalidObject:
        return False
    return True


def parse_signers(der: bytes) -> list[Signer]:
    """The signers of a ContentInfo with SignedData (RFC 5652 3 and 5.1).

    Signers that use an unknown digest algorithm are left out.

    Raises:
        InvalidObject: it is malformed.
    """
    _version, _digests, _content, *rest = _at_least(_signed_data(der), 4)
    keys = _public_keys(rest[0][1]) if rest[0][0] == _CONTEXT_0 else {}
    infos = _elements(_expect(rest[-1], _SET))
    signers = [_parse_signer(_expect(info, _SEQUENCE), keys) for info in infos]
    return [signer for signer in signers if signer is not None]


def _signed_data(der: bytes) -> bytes:
    (outer,) = _exactly(der, 1)
    kind, wrapped = _exactly(_expect(outer, _SEQUENCE), 2)
    if kind != (_OID, _SIGNED_DATA):
        raise InvalidObject("no SignedData")
    (inner,) = _exactly(_expect(wrapped, _CONTEXT_0), 1)
    return _expect(inner, _SEQUENCE)


def _parse_signer(info: bytes, keys: Mapping[bytes, PublicKeyTypes]) -> Signer | None:
    version, sid, hash_name, *rest = _at_least(info, 5)
    attributes = rest.pop(0)[1] if rest[0][0] == _CONTEXT_0 else None
    if len(rest) < 2:
        raise InvalidObject("a signer without signature")
    _expect(version, _INTEGER)
    hash_ = _HASHES.get(_algorithm(hash_name))
    if hash_ is None:
        return None
    return Signer(
        hash=hash_,
        # RFC 5652 5.4: hashed as a SET, though they are encoded with another tag.
        attributes=None if attributes is None else _encode(_SET, attributes),
        digest=None if attributes is None else _message_digest(attributes),
        algorithm=_algorithm(rest[0]),
        signature=_expect(rest[1], _OCTETS),
        # By IssuerAndSerialNumber (RFC 5652 10.2.4); a SubjectKeyIdentifier finds no key.
        key=keys.get(sid[1]),
    )


def _message_digest(attributes: bytes) -> bytes:
    """The digest in the signed attributes: if there are any, they hold exactly one (RFC 5652 5.3, 11.2)."""
    found = []
    for attribute in _elements(attributes):
        kind, values = _exactly(_expect(attribute, _SEQUENCE), 2)
        if kind == (_OID, _MESSAGE_DIGEST):
            found += [_expect(value, _OCTETS) for value in _elements(_expect(values, _SET))]
    if len(found) != 1:
        raise InvalidObject("not exactly one message digest among the signed attributes")
    return found[0]


def _algorithm(element: _Element) -> bytes:
    return _expect(_at_least(_expect(element, _SEQUENCE), 1)[0], _OID)


def _public_keys(certificates: bytes) -> dict[bytes, PublicKeyTypes]:
    """The public keys in some certificates (RFC 5280 4.1), by issuer and serial number.

    Certificates that can't be read are left out. They aren't parsed with x509: some of ClamAV's
    certificates have had the serial number 0, which it refuses.
    """
    keys = {}
    for certificate in _elements(certificates):
        with suppress(InvalidObject, UnsupportedAlgorithm, ValueError):
            to_be_signed = _expect(_at_least(_expect(certificate, _SEQUENCE), 1)[0], _SEQUENCE)
            _version, serial, _algorithm, issuer, _validity, _subject, key, *_ = _at_least(to_be_signed, 7)
            keys[_encode(*issuer) + _encode(*serial)] = load_der_public_key(_encode(*key))
    return keys


# X.690: tag, length, content


def _elements(data: bytes) -> Iterator[_Element]:
    """The ASN.1 elements, one after the other.

    Raises:
        InvalidObject: the data are malformed.
    """
    offset = 0
    while offset < len(data):
        header = data[offset : offset + 2]
        if len(header) < 2 or header[0] & 0x1F == 0x1F:
            raise InvalidObject("malformed ASN.1")
        tag, length = header
        offset += 2
        if length >= 0x80:  # the length is in the bytes that follow (X.690 8.1.3.5)
            count = length & 0x7F
            if not 1 <= count <= _LONGEST_LENGTH:
                raise InvalidObject("malformed ASN.1")
            length = int.from_bytes(data[offset : offset + count])
            offset += count
        if offset + length > len(data):
            raise InvalidObject("truncated ASN.1")
        yield tag, data[offset : offset + length]
        offset += length


def _exactly(data: bytes, count: int) -> list[_Element]:
    elements = _at_least(data, count)
    if len(elements) > count:
        raise InvalidObject("more ASN.1 than expected")
    return elements


def _at_least(data: bytes, count: int) -> list[_Element]:
    elements = list(_elements(data))
    if len(elements) < count:
        raise InvalidObject("incomplete ASN.1")
    return elements


def _expect(element: _Element, tag: int) -> bytes:
    if element[0] != tag:
        raise InvalidObject("malformed ASN.1")
    return element[1]


def _encode(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    digits = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(digits)]) + digits + content
