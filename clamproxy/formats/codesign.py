"""External signatures: the ``.sign`` files that freshclam asks for since ClamAV 1.5.

The first line is ``#clamsign-1.0``; each further line is one signature,
``<least level>:<greatest level>:pkcs7-pem:<base64 of a DER PKCS#7>`` (protocol.md 6,
libclamav_rust/src/codesign.rs).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import BinaryIO

from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import ObjectId

SIGN_MAGIC = b"#clamsign"
"""How every ``.sign`` begins, whatever its format's version."""

SIGN_LIMIT = 2**20
"""Bytes that a ``.sign`` may take; ClamAV's take less than 10 KiB."""

_FIRST_LINE = "#clamsign-1.0"
_SIGNATURE = re.compile(r"[0-9]{1,10}:[0-9]{0,10}:pkcs7-pem:([A-Za-z0-9+/]+={0,2})")
_SEQUENCE = 0x30
_CONTENT = 0xA0  # [0] EXPLICIT
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")  # RFC 5652 5.1: id-signedData, with tag and length


def parse_sign(data: bytes) -> list[bytes]:
    """The PKCS#7 signatures of a ``.sign`` file, DER encoded.

    Lines in a format that is not known are left out: one that clients understand is enough.

    Raises:
        InvalidObject: this is not a ``.sign`` file, or nothing in it is a signature.
    """
    if len(data) > SIGN_LIMIT:
        raise InvalidObject(f"longer than {SIGN_LIMIT} bytes")
    try:
        first, *lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise InvalidObject("not a text") from None
    if first.rstrip() != _FIRST_LINE:
        raise InvalidObject(f"does not begin with {_FIRST_LINE}")
    signatures = [der for line in lines if (der := _parse_line(line.strip())) is not None]
    if not signatures:
        raise InvalidObject("no well-formed signature")
    return signatures


def verify_sign(file: BinaryIO, expected: ObjectId) -> None:
    """Check that a file is an external signature.

    It is not verified against the file that it signs. Nothing in it names that file either, so
    the name is taken on trust.

    Args:
        file: the whole file, seekable; its position is moved.
        expected: the signature that it should be.

    Raises:
        InvalidObject: it is something else, or damaged.
        ValueError: `expected` is no signature.
    """
    if not expected.kind.is_signature:
        raise ValueError(f"{expected.file_name} is not a signature")
    file.seek(0)
    parse_sign(file.read(SIGN_LIMIT + 1))


def _parse_line(line: str) -> bytes | None:
    # A comment or an empty line does not match either.
    match = _SIGNATURE.fullmatch(line)
    if match is None:
        return None
    try:
        der = base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return None
    return der if _is_signed_data(der) else None


def _is_signed_data(der: bytes) -> bool:
    """Whether this is exactly one PKCS#7 ContentInfo that holds SignedData."""
    content = _der_content(der, _SEQUENCE)
    if content is None or not content.startswith(_SIGNED_DATA):
        return False
    signed_data = _der_content(content.removeprefix(_SIGNED_DATA), _CONTENT)
    return signed_data is not None and _der_content(signed_data, _SEQUENCE) is not None


def _der_content(der: bytes, tag: int) -> bytes | None:
    """What is inside a DER element, if the bytes are one such element and nothing else."""
    if len(der) < 2 or der[0] != tag:
        return None
    start = 2
    length = der[1]
    if length >= 0x80:  # the length is in the bytes that follow (X.690 8.1.3.5)
        start += length & 0x7F
        length = int.from_bytes(der[2:start])
    return der[start:] if start + length == len(der) else None
