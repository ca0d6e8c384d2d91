"""External signatures."""

from __future__ import annotations

import base64
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats.codesign import SIGN_LIMIT, parse_sign, verify_sign
from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import Kind, ObjectId
from tests.support.data import SIGN_NAMES, read_testdata
from tests.support.forge import forge_sign

FIRST, SIGNATURE = forge_sign().splitlines(keepends=True)
OID = bytes.fromhex("06092a864886f70d010702")


def sign(der: bytes) -> bytes:
    return FIRST + b"230::pkcs7-pem:" + base64.b64encode(der) + b"\n"


@pytest.mark.parametrize("name", SIGN_NAMES)
def test_clamavs_own_files_verify(name: str) -> None:
    verify_sign(io.BytesIO(read_testdata(name)), ObjectId.parse(name))


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (FIRST + SIGNATURE, 1),
        (FIRST + SIGNATURE.rstrip(), 1),
        (FIRST + SIGNATURE + b"\n" + SIGNATURE, 2),
        (FIRST + b"# a comment\n\n" + SIGNATURE, 1),
        (FIRST + b"300:400:ed25519:AAAA\n" + SIGNATURE, 1),
        (FIRST + b"230::pkcs7-pem:AAAA\n" + SIGNATURE, 1),
        ((FIRST + SIGNATURE).replace(b"\n", b"\r\n"), 1),
        ((FIRST + SIGNATURE).replace(b"230::", b"230:299:"), 1),
    ],
)
def test_well_formed(data: bytes, count: int) -> None:
    assert len(parse_sign(data)) == count


@pytest.mark.parametrize(
    "data",
    [
        b"",
        FIRST,
        FIRST + b"\n# 230::pkcs7-pem:AAAA\n",
        SIGNATURE,
        b"\n" + FIRST + SIGNATURE,
        FIRST.replace(b"1.0", b"2.0") + SIGNATURE,
        FIRST.upper() + SIGNATURE,
        FIRST + SIGNATURE[:-40],
        FIRST + SIGNATURE.replace(b"pkcs7-pem", b"pkcs7-der"),
        FIRST + SIGNATURE.replace(b"230::", b"::"),
        FIRST + SIGNATURE.replace(b"230::", b"-1::"),
        FIRST + SIGNATURE.replace(b"pem:", b"pem: "),
        FIRST + b"230::pkcs7-pem:A\n",
        FIRST + b"230::pkcs7-pem:\n",
        FIRST + b"\xff\xfe\n" + SIGNATURE,
        b"<html>404 Not Found</html>",
        gzip.compress(FIRST + SIGNATURE, mtime=0),
        FIRST + SIGNATURE + b"#" * SIGN_LIMIT,
        sign(b"\x30"),
        sign(b"\x30\x00"),
        sign(b"\x30\x80"),
        sign(b"\x30\x84\xff\xff\xff\xff"),
        sign(b"\x31\x0f" + OID + b"\xa0\x02\x30\x00"),
        sign(b"\x30\x0f" + OID.replace(b"\x07\x02", b"\x07\x01") + b"\xa0\x02\x30\x00"),
        sign(b"\x30\x0f" + OID + b"\xa0\x02\x31\x00"),
        sign(b"\x30\x0f" + OID + b"\xa0\x02\x30\x00surplus"),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(InvalidObject):
        verify_sign(io.BytesIO(data), ObjectId("daily", 7, Kind.CVD_SIGN))


def test_least_envelope() -> None:
    assert len(parse_sign(sign(b"\x30\x0f" + OID + b"\xa0\x02\x30\x00"))) == 1


def test_only_signatures_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"daily-7\.cvd is not a signature"):
        verify_sign(io.BytesIO(FIRST + SIGNATURE), ObjectId("daily", 7, Kind.CVD))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    for candidate in (
        data,
        FIRST + data,
        FIRST + b"230::pkcs7-pem:" + data,
        sign(data),
        sign(b"\x30" + data),
    ):
        with pytest.raises(InvalidObject):
            parse_sign(candidate)
