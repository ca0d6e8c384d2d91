"""The checks that a file must pass before it enters the cache (docs/protocol.md, traps 18 and 19)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from clamproxy.formats.cdiff import CDIFF_MAGIC, verify_cdiff
from clamproxy.formats.cld import verify_cld
from clamproxy.formats.codesign import SIGN_MAGIC, verify_sign
from clamproxy.formats.cvd import PayloadDigest, verify_cvd
from clamproxy.formats.header import CVD_MAGIC, HEADER_SIZE, CvdHeader, parse_cvd_header
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.objects import Kind, ObjectId

__all__ = ["InvalidObject", "check_beginning", "verify"]

_MAGIC = {
    Kind.CVD: CVD_MAGIC,
    Kind.CLD: CVD_MAGIC,
    Kind.CDIFF: CDIFF_MAGIC,
    Kind.CVD_SIGN: SIGN_MAGIC,
    Kind.CDIFF_SIGN: SIGN_MAGIC,
}


def _verify_sign(file: BinaryIO, expected: ObjectId, keys: TrustedKeys) -> None:
    verify_sign(file, expected, keys.roots)


_VERIFIERS: dict[Kind, Callable[[BinaryIO, ObjectId, TrustedKeys], None]] = {
    Kind.CLD: verify_cld,
    Kind.CDIFF: verify_cdiff,
    Kind.CVD_SIGN: _verify_sign,
    Kind.CDIFF_SIGN: _verify_sign,
}


def verify(path: Path, object_id: ObjectId, keys: TrustedKeys, payload: PayloadDigest | None = None) -> None:
    """Prove that a finished file is the object that it was fetched or built as.

    Args:
        object_id: the object that it must be.
        keys: the keys that signatures must verify with: `clamproxy.formats.signatures.CLAMAV_KEYS`,
            except in tests.
        payload: the digest of a CVD's payload, if it was computed while the file grew.

    Raises:
        InvalidObject: it is something else, or damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if object_id.kind is Kind.CVD:
            verify_cvd(file, object_id, keys, payload)
        else:
            _VERIFIERS[object_id.kind](file, object_id, keys)


def check_beginning(kind: Kind, beginning: bytes) -> None:
    """Check the first bytes of a body while the rest is still to come.

    This is cheap, and enough to keep out the error pages that arrive with status 200 (trap 19). It can be
    called again as more bytes arrive. Too few bytes to tell are accepted.

    Args:
        kind: the kind of object that is being fetched.
        beginning: the body from its first byte, as far as it has arrived.

    Raises:
        InvalidObject: no object of this kind begins like this.
    """
    magic = _MAGIC[kind]
    if beginning[: len(magic)] != magic[: len(beginning)]:
        raise InvalidObject(f"does not begin with {magic.decode()}")
    if len(beginning) < HEADER_SIZE:
        return
    if kind is Kind.CVD:
        parse_cvd_header(beginning)
    elif kind is Kind.CLD:
        CvdHeader.parse(beginning)
