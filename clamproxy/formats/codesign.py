"""External signatures: the ``.sign`` files that freshclam asks for since ClamAV 1.5.

The first line is ``#clamsign-1.0``; each further line is one signature, ``<lowest level>:<highest
level>:pkcs7-pem:<base64 of a DER PKCS#7>`` (docs/protocol.md 6, libclamav_rust/src/codesign.rs).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import BinaryIO

from clamproxy.formats.cms import Signer, is_signed_data, parse_signers
from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import ObjectId

SIGN_MAGIC = b"#clamsign"
"""The first bytes of every ``.sign``, whatever the version of its format."""

SIGN_LIMIT = 2**20
"""The most bytes that a ``.sign`` may have; ClamAV's have less than 10 KiB."""

_FIRST_LINE = "#clamsign-1.0"
_SIGNATURE = re.compile(r"[0-9]{1,10}:[0-9]{0,10}:pkcs7-pem:([A-Za-z0-9+/]+={0,2})")


def parse_sign(data: bytes) -> list[bytes]:
    """The PKCS#7 signatures of a ``.sign`` file, DER encoded.

    Lines in an unknown format are left out: one signature that clients understand is enough.

    Raises:
        InvalidObject: this is not a ``.sign`` file, or no line of it is a signature.
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


def verify_sign(file: BinaryIO, expected: ObjectId, signed: BinaryIO | None = None) -> None:
    """Check that a file is an external signature, and that it signs the right file.

    Each signature is checked against that file, with the certificate that the signature carries. Who
    issued the certificate is not checked here: clients have ClamAV's root certificate, and do that.

    Args:
        file: the whole file, seekable; its position is moved.
        expected: the signature that it should be.
        signed: the file that it should sign, seekable; its position is moved. Without it, only damage to
            the signature itself can be found: nothing in it names the file.

    Raises:
        InvalidObject: it is something else, damaged, or signs another file.
        ValueError: `expected` is not a signature.
    """
    if not expected.kind.is_signature:
        raise ValueError(f"{expected.file_name} is not a signature")
    file.seek(0)
    signers = [signer for der in parse_sign(file.read(SIGN_LIMIT + 1)) for signer in _signers(der)]
    if not signers:
        raise InvalidObject("no signature that can be compared with a file")
    for signer in signers:
        signer.check(signed)


def _signers(der: bytes) -> list[Signer]:
    """The signers of one line; none if clients can't read it either, as they go on to the next line."""
    try:
        return parse_signers(der)
    except InvalidObject:
        return []


def _parse_line(line: str) -> bytes | None:
    # Comments and empty lines don't match either.
    match = _SIGNATURE.fullmatch(line)
    if match is None:
        return None
    try:
        der = base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return None
    return der if is_signed_data(der) else None
