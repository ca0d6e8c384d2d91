"""External signatures."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs7 import (
    PKCS7HashTypes,
    PKCS7Options,
    PKCS7SignatureBuilder,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats.codesign import SIGN_LIMIT, parse_sign, verify_sign
from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import Kind, ObjectId
from tests.support.data import SIGN_NAMES, read_testdata
from tests.support.forge import forge_sign
from tests.support.programs import require_program

FIRST, SIGNATURE = forge_sign().splitlines(keepends=True)
OID = bytes.fromhex("06092a864886f70d010702")


def sign(der: bytes) -> bytes:
    return FIRST + b"230::pkcs7-pem:" + base64.b64encode(der) + b"\n"


@pytest.mark.parametrize("name", SIGN_NAMES)
def test_clamavs_own_files_verify(name: str) -> None:
    verify_sign(io.BytesIO(read_testdata(name)), ObjectId.parse(name))


@pytest.mark.parametrize("name", SIGN_NAMES)
def test_clamavs_own_files_belong_to_one_file_each(name: str) -> None:
    signature = ObjectId.parse(name)
    for other in [name.removesuffix(".sign") for name in SIGN_NAMES]:
        files = io.BytesIO(read_testdata(name)), signature, io.BytesIO(read_testdata(other))
        if other == signature.signed.file_name:
            verify_sign(*files)
        else:
            with pytest.raises(InvalidObject, match="it signs another file"):
                verify_sign(*files)


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


# What a signature vouches for

CONTENT = b"a file" * 100
OTHER = b"another file"
RSA, EC = "rsa", "ec"


@cache
def signer(kind: str) -> tuple[x509.Certificate, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]:
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    key = rsa.generate_private_key(65537, 2048) if kind == RSA else ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Signer {kind}")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    now = datetime.now(UTC)
    return builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, SHA256()), key


def signed_data(
    content: bytes = CONTENT,
    *options: PKCS7Options,
    kind: str = RSA,
    hash_: PKCS7HashTypes | None = None,
    pss: bool = False,
) -> bytes:
    certificate, key = signer(kind)
    filling = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH) if pss else None
    builder = PKCS7SignatureBuilder().set_data(content)
    builder = builder.add_signer(certificate, key, hash_ or SHA256(), rsa_padding=filling)
    return builder.sign(Encoding.DER, [PKCS7Options.DetachedSignature, PKCS7Options.Binary, *options])


def check(der: bytes, content: bytes | None = CONTENT, *more: bytes) -> None:
    lines = b"".join(b"230::pkcs7-pem:" + base64.b64encode(one) + b"\n" for one in (der, *more))
    signed = None if content is None else io.BytesIO(content)
    verify_sign(io.BytesIO(FIRST + lines), ObjectId("daily", 7, Kind.CDIFF_SIGN), signed)


WAYS = {
    "SHA-256": signed_data,
    "SHA-384": partial(signed_data, hash_=SHA384()),
    "SHA-512": partial(signed_data, hash_=SHA512()),
    "ECDSA": partial(signed_data, kind=EC),
    "RSASSA-PSS, which isn't verified": partial(signed_data, pss=True),
    "no certificate": lambda content: signed_data(content, PKCS7Options.NoCerts),
    "no attributes": lambda content: signed_data(content, PKCS7Options.NoAttributes),
    "no attributes, ECDSA": lambda content: signed_data(content, PKCS7Options.NoAttributes, kind=EC),
}
any_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@any_way
def test_a_signature_of_the_file_itself(way: Callable[[bytes], bytes]) -> None:
    check(way(CONTENT))
    check(way(CONTENT), None)
    check(way(b""), b"")


@any_way
def test_a_signature_of_another_file(way: Callable[[bytes], bytes]) -> None:
    check(way(OTHER), None)
    for content in (CONTENT, CONTENT[:-1], CONTENT + b"\n", b""):
        with pytest.raises(InvalidObject):
            check(way(OTHER), content)


def test_a_signature_that_says_nothing_and_cannot_be_verified() -> None:
    der = signed_data(CONTENT, PKCS7Options.NoAttributes, PKCS7Options.NoCerts)
    with pytest.raises(InvalidObject, match="nothing says what it signs"):
        check(der)


def test_each_signature_counts() -> None:
    check(signed_data(), CONTENT, signed_data(hash_=SHA512()))
    with pytest.raises(InvalidObject, match="another file"):
        check(signed_data(), CONTENT, signed_data(OTHER))


def test_a_line_that_is_not_understood_is_left_out() -> None:
    sha1 = signed_data().replace(bytes.fromhex("608648016503040201"), bytes.fromhex("608648016503040299"))
    for der in (sha1, b"\x30\x0f" + OID + b"\xa0\x02\x30\x00"):
        check(signed_data(), CONTENT, der)
        for content in (CONTENT, None):
            with pytest.raises(InvalidObject, match="no signature that can be compared with a file"):
                check(der, content)


@pytest.mark.parametrize("kind", [RSA, EC])
def test_a_flipped_bit_outside_of_the_certificates(kind: str) -> None:
    der = signed_data(kind=kind)
    certificate = signer(kind)[0].public_bytes(Encoding.DER)
    end = der.index(certificate) + len(certificate)
    digest = hashlib.sha256(CONTENT).digest()
    signature = range(len(der) - 60, len(der))
    for spot in {*range(der.index(digest), der.index(digest) + len(digest)), *signature} - set(range(end)):
        spoilt = bytearray(der)
        spoilt[spot] ^= 1
        with pytest.raises(InvalidObject):
            check(bytes(spoilt), None)


def test_openssl_agrees(tmp_path: Path) -> None:
    """Its detached signatures are what ClamAV's tool makes, by the same library."""
    require_program("openssl")
    certificate, key = signer(RSA)
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "cert").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "content").write_bytes(CONTENT)
    for digest in ("sha256", "sha384", "sha512"):
        command = ["openssl", "smime", "-sign", "-binary", "-outform", "DER", "-md", digest]
        command += ["-in", "content", "-signer", "cert", "-inkey", "key"]
        der = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
        check(der)
        with pytest.raises(InvalidObject, match="another file"):
            check(der, OTHER)


@given(
    spots=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4), cut=st.integers(0, 2000)
)
def test_any_damage_is_refused_or_does_no_harm(spots: list[tuple[int, int]], cut: int) -> None:
    """Nothing but InvalidObject comes out, and never does another file pass."""
    spoilt = bytearray(signed_data())
    for spot, byte in spots:
        spoilt[spot % len(spoilt)] = byte
    for der in (bytes(spoilt), bytes(spoilt[:cut])):
        with contextlib.suppress(InvalidObject):
            check(der)
        with pytest.raises(InvalidObject):
            check(der, OTHER)
