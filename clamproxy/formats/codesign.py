"""External signatures: the ``.sign`` files that freshclam asks for since ClamAV 1.5.

The first line is ``#clamsign-1.0``; each further line is one signature, ``<lowest level>:<highest
level>:pkcs7-pem:<base64 of a DER PKCS#7>`` (docs/protocol.md 6, libclamav_rust/src/codesign.rs).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from typing import BinaryIO

from clamproxy.formats.cms import verify_signed_data
from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import ObjectId

SIGN_MAGIC = b"#clamsign"
"""The first bytes of every ``.sign``, whatever the version of its format."""

SIGN_LIMIT = 2**20
"""The most bytes that a ``.sign`` may have; ClamAV's have less than 10 KiB."""

SIGNATURE_LIMIT = 16
"""The most signatures that a ``.sign`` may have; ClamAV's have one."""

_FIRST_LINE = "#clamsign-1.0"
_SIGNATURE = re.compile(r"[0-9]{1,10}:[0-9]{0,10}:pkcs7-pem:([A-Za-z0-9+/]+={0,2})")


def parse_sign(data: bytes) -> list[bytes]:
    """The PKCS#7 signatures of a ``.sign`` file, in DER as far as anybody knows yet.

    Lines in an unknown format are left out: one signature that clients understand is enough.

    Raises:
        InvalidObject: this is not a ``.sign`` file, or it has no signatures, or too many.
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
    if not 1 <= len(signatures) <= SIGNATURE_LIMIT:
        raise InvalidObject(f"{len(signatures)} signatures")
    return signatures


def verify_sign(
    file: BinaryIO, expected: ObjectId, roots: Collection[bytes], signed: BinaryIO | None = None
) -> None:
    """Prove that a file is an external signature, and that it signs the right file.

    Each of its signatures must be right, whatever the functionality level that it is meant for: a client
    takes the first one for its own level, and refuses the signed file if that is wrong.

    Args:
        file: the whole file, seekable; its position is moved.
        expected: the signature that it should be.
        roots: certificates in DER, one of which must vouch for each signer.
        signed: the file that it should sign, seekable; its position is moved. Without it, the signature may
            be that of another file: nothing in it names its file.

    Raises:
        InvalidObject: it is something else, damaged, not trusted, or signs another file.
        ValueError: `expected` is not a signature.
    """
    if not expected.kind.is_signature:
        raise ValueError(f"{expected.file_name} is not a signature")
    file.seek(0)
    for der in parse_sign(file.read(SIGN_LIMIT + 1)):
        verify_signed_data(der, roots, signed)


def _parse_line(line: str) -> bytes | None:
    # Comments and empty lines don't match either.
    match = _SIGNATURE.fullmatch(line)
    try:
        return None if match is None else base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return None
