"""ClamAV's own signatures: their number encoding, the public keys and the two RSA schemes.

CVD headers carry a textbook RSA signature over an MD5 hash; cdiffs and ``.info`` members carry RSASSA-PSS
over SHA-256, in ClamAV's own reading of it. Both write the signature as a number in ClamAV's own base-64
digits (docs/protocol.md 4.2 and 4.3, libclamav/dsig.c).
"""

from __future__ import annotations

import base64
import hashlib
import io
import string
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

from clamproxy.root_certificates import read_roots

PSS_SALT_LENGTH = 32
"""Length of the salt in an RSASSA-PSS signature, in bytes (docs/protocol.md 4.3)."""

_MD5_LENGTH = 16
_SHA256_LENGTH = 32
_PSS_LENGTH = 256
_PSS_MASKED = _PSS_LENGTH - _SHA256_LENGTH - 1
_DIGITS = (string.ascii_lowercase + string.ascii_uppercase + string.digits + "+/").encode()
_DIGIT_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}


class InvalidObject(Exception):
    """A file is not the object that it should be; the message gives the reason in one line."""


def decode_number(digits: bytes) -> int:
    """Decode a number in ClamAV's base-64 digits, least significant digit first.

    Raises:
        ValueError: a character is not a digit.
    """
    number = 0
    for digit in reversed(digits):
        if digit not in _DIGIT_VALUES:
            raise ValueError(f"not a digit of a signature: {bytes([digit])!r}")
        number = number << 6 | _DIGIT_VALUES[digit]
    return number


def encode_number(number: int) -> bytes:
    """The inverse of `decode_number`, without leading zeros; 0 gives no digit at all."""
    digits = bytearray()
    while number:
        digits.append(_DIGITS[number & 63])
        number >>= 6
    return bytes(digits)


@dataclass(frozen=True, slots=True)
class RsaPublicKey:
    """A public key, with the two ways in which ClamAV uses one."""

    modulus: int
    exponent: int

    @property
    def byte_length(self) -> int:
        """Length of the modulus, and so of every signature, in bytes."""
        return (self.modulus.bit_length() + 7) // 8

    def verifies_md5(self, digest: bytes, signature: bytes) -> bool:
        """Whether this signature from a CVD header is valid for the hash.

        The recovered number is the hash, aligned to the right: libclamav before 1.5 aligned it to the
        left and refused hashes that begin with a zero byte (docs/protocol.md 4.2).

        Args:
            digest: the 16 bytes of an MD5 hash.
            signature: in ClamAV's own base-64 digits.
        """
        number = self._signature_number(signature)
        if number is None or len(digest) != _MD5_LENGTH:
            return False
        return pow(number, self.exponent, self.modulus) == int.from_bytes(digest)

    def verifies_sha256(self, digest: bytes, signature: bytes) -> bool:
        """Whether this signature from a cdiff or an ``.info`` is valid for the hash.

        Args:
            digest: the 32 bytes of a SHA-256 hash.
            signature: in ClamAV's own base-64 digits.
        """
        number = self._signature_number(signature)
        if number is None or self.byte_length != _PSS_LENGTH or len(digest) != _SHA256_LENGTH:
            return False
        return _is_pss_encoding(pow(number, self.exponent, self.modulus).to_bytes(_PSS_LENGTH), digest)

    def _signature_number(self, signature: bytes) -> int | None:
        # Each signature has exactly one spelling. With numbers above the modulus or leading zeros, the
        # bytes of a file could change while its own signature stays valid, and its .sign would then fail.
        # The length first: a line of `.info` can be megabytes long, and decoding takes quadratic time.
        if len(signature) > self.modulus.bit_length() // 6 + 1:
            return None
        try:
            number = decode_number(signature)
        except ValueError:
            return None
        canonical = 0 < number < self.modulus and encode_number(number) == signature
        return number if canonical else None


def _is_pss_encoding(encoded: bytes, digest: bytes) -> bool:
    """Whether this encodes the hash: RFC 8017 9.1.2, as libclamav implements it.

    libclamav/dsig.c:cli_versig2 treats every modulus as one of 2048 bits and clears one bit of the mask.
    ClamAV's moduli have 2047 bits, for which the RFC wants two bits cleared. A verifier that follows the
    RFC refuses many good signatures, such as the one in test-5.cvd.
    """
    masked, salted_hash, trailer = encoded[:_PSS_MASKED], encoded[_PSS_MASKED:-1], encoded[-1:]
    mask = _mgf1(salted_hash, _PSS_MASKED)
    block = (int.from_bytes(masked) ^ int.from_bytes(mask)).to_bytes(_PSS_MASKED)
    block = bytes([block[0] & 0x7F]) + block[1:]
    filler, salt = block[:-PSS_SALT_LENGTH], block[-PSS_SALT_LENGTH:]
    return (
        trailer == b"\xbc"
        and filler == bytes(len(filler) - 1) + b"\x01"
        and hashlib.sha256(bytes(8) + digest + salt).digest() == salted_hash
    )


def _mgf1(seed: bytes, length: int) -> bytes:
    """The mask generated from a seed (RFC 8017 B.2.1, with SHA-256)."""
    blocks = -(-length // _SHA256_LENGTH)
    return b"".join(hashlib.sha256(seed + i.to_bytes(4)).digest() for i in range(blocks))[:length]


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The public keys of a vendor, one for each use."""

    cvd: RsaPublicKey
    """Signs the MD5 of a CVD's payload."""
    info: RsaPublicKey
    """Signs the ``.info`` member inside a CVD or CLD."""
    cdiff: RsaPublicKey
    """Signs a cdiff."""
    roots: tuple[bytes, ...]
    """Certificates in DER; one of them must vouch for the signer of a ``.sign``."""

    def with_roots(self, directory: Path | None) -> Self:
        """The same keys, with the certificates in a directory, if there is one, in place of their roots.

        Raises:
            OSError: it can't be read.
            ValueError: it holds no certificate, or something else under the name of one.
        """
        return self if directory is None else replace(self, roots=read_roots(directory))


CLAMAV_KEYS = TrustedKeys(
    # libclamav/dsig.c: CLI_NSTR, CLI_ESTR
    cvd=RsaPublicKey(
        int(
            "118640995551645342603070001658453189751527774412027743746599405743243142607464144767361060"
            "640655844749760788890022283424922762488917565551002467771109669598189410434699034532232228"
            "621591089508178591428456220796841621637175567590476666928698770143328137383952820383197532"
            "047771780196576957695822641224262693037"
        ),
        100001027,
    ),
    # libclamav/readdb.c: INFO_NSTR, INFO_ESTR
    info=RsaPublicKey(
        int(
            "110888949830485454736595561066271949239289417917950476205916586974135810433227159121724968"
            "065253810558809645206184002243333205346602992339837553417406795028668299096799557343913926"
            "683783612215242053966310901051516412708572770803107343209516537005089417174191687239425078"
            "907029047027075874516216910507543078503833998653464872037984641785373922114027864813598244"
            "611972311028954150937703942166663244845939357624084685168266331921408266679234948220458053"
            "478099328484548458869717064243605586678627758760720594377033653802091016977385775154769350"
            "85469455279994113145977994084618328482151013142393373316337519977244732747977"
        ),
        100002049,
    ),
    # libclamav_rust/src/cdiff.rs: PUBLIC_KEY_MODULUS, PUBLIC_KEY_EXPONENT
    cdiff=RsaPublicKey(
        int(
            "147839058740774670902622285165579175702545996383762035320319892141055528472696874897719757"
            "921234421858172876949519498009087915275420171156005013033947786185358648452357000415900563"
            "182301024496122174585490160893133065913885907907965158196541023207257123008223563487240112"
            "326548375032417361779077841987008344406811247270605400357546996581058950500965762267530085"
            "968816988281856524249019216687583265784620032479064709820922981067896572119054889862810783"
            "463614695244848295595608862271980919954984406766396398304635932113860550653602884223940539"
            "98134458623712540683294034953818412458362198117811990006021989844180721010947"
        ),
        100002053,
    ),
    # clamav/certs/clamav.crt: "Cisco Software Identity Root CA RSA 4096 SHA512 2099"
    roots=(
        base64.b64decode(
            "MIIFhTCCA22gAwIBAgIJBJPyuFHF1b7RMA0GCSqGSIb3DQEBDQUAMF8xDjAMBgNVBAsTBUFyYm9yMQ4wDAYDVQQKEwVD"
            "aXNjbzE9MDsGA1UEAxM0Q2lzY28gU29mdHdhcmUgSWRlbnRpdHkgUm9vdCBDQSBSU0EgNDA5NiBTSEE1MTIgMjA5OTAg"
            "Fw0yNDAxMjQxODQ1MjVaGA8yMDk5MDEyNDE4NDUyNVowXzEOMAwGA1UECxMFQXJib3IxDjAMBgNVBAoTBUNpc2NvMT0w"
            "OwYDVQQDEzRDaXNjbyBTb2Z0d2FyZSBJZGVudGl0eSBSb290IENBIFJTQSA0MDk2IFNIQTUxMiAyMDk5MIICIjANBgkq"
            "hkiG9w0BAQEFAAOCAg8AMIICCgKCAgEA14hoPbzqZxPr8Wqpq2H+tOib+DkQP80mUP6zAw3uu+eNygd+jOBCenO6B7sp"
            "1sqCRT8QBQWQxNHVeVfMQN1vjMrqEMNh/eflVtOGy32UbkuQrVzj2H+G1PtjeMQKa26LD8XPDUIOpj9rzPdjKFFfz13t"
            "m21gNIiVSTI34T5BS5BNEQj1b+VQg+0kbANCOOTiTh+H/gxhpXRv8F3VNUrrPxA7a3WF5jhZZoPBns1LuBDW0fQ0av6q"
            "/uEWtfxMdSNsAxYWVhO90Nx4khOISA1Fs1h1klGsee5XZkLKdUWedZQzbUz1f7VPRxX+ddcK0Js2VPvxemMf2WaTbkrE"
            "i62y/cOaxqDs2xDTWEXrgOYYEfQ+RoeYpbzBCaErqZvCeOgrnXFSHSyyd9+dTOxJuypBH+AWKtmkQMQQ7RQJSkGvrP9N"
            "gRxDMXb1U4kpVn7kEEhv6telV9E8R635Zm4h/H9FQyc2LrLOuL5UPewMMWt8HqPbs2Xcn1kTLvpEDciDJDRvu4XuBsjg"
            "QMA0rlt5BHAmZdGO5Dq4+ARWAYrzN9+M0dK+0phTT9OOHItIL6wXcIiYLZBJlHfiemCByIcBBEYaRwdt3VP9tTl0F370"
            "StI2t1RMDPgtxHcsYqN09QG/tWzwr/yNckFhVs/+UGQWslv2/W6eiKge5REUFuxT6i7V6oUCAwEAAaNCMEAwDgYDVR0P"
            "AQH/BAQDAgEGMA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0OBBYEFLd8Wz4X/JJ6Oi/+znsT0DTPuju8MA0GCSqGSIb3DQEB"
            "DQUAA4ICAQCZEut7iqp839u7CHD8zMrvOMmUKtJ7G1MrhkJfdyek8g7ArG74bgcxM3ptwDusdFgKh/mmCj/mFU6TNjsu"
            "fZ9hAyOE16ZtGflkOrRlihPQThDdGCxQjRsLVQa9S0IDkM1v1ZqvIMEcPJOj3rhvkIJVjpHc0AZQP/TnaT/7dKD1wFOS"
            "NYwzdvE2HKVNA8XbeS9TNpHqYPvE2gX6vQ7Pdn9DIF6YOmOuBobmaD1G7WbDz5Kvz5e3FdkzR+K3sGW4Qsr3OLt25dQS"
            "H+x7X06fihUxhEgRJJp2cPKABSKVR2hoyzKNEbzgtV25gH7lr+EHA6CQYltkVpyM4v1+PdX1EGY0+rAO+NsRwa6ndFte"
            "ofJLh9PbvxHp0jGWnT1KF4lhmEyyka9JKbqTyiyGzDsw/YA9NxiAsp/Ex8aYXX1/SeM/kb6dp7tytsHewwflns1jfGqR"
            "VyrXQ41xCmmSioBvtZiry8BJTa8xIUWEsBL1pTl2RZrPDAw/qD10K2XJfh5HYFSkIppoIO+90wN8TYcXbyY+JnU/g32A"
            "vkmA3o8lotK6nbwuf7MAFdtPHMA4F8mPM3jADc1uGu9OYweaA1c+P5KEOyr325cgsT04x4oeyvP3c3XMLpDpSgbzhfc9"
            "WyLYCf3R3jHlst1AKaDwBk2xoE3knxihYjbcRfjaaYdUkWY4mg=="
        ),
    ),
)


class FilePart(io.RawIOBase):
    """A part of a seekable file as a stream, such as the bytes that a signature covers."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        """Make the stream; reading it moves the position of the file.

        Args:
            start: offset of the first byte.
            end: offset after the last byte.
        """
        self._file = file
        self._left = max(0, end - start)
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)
