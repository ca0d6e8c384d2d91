"""External signatures."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Collection
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA224, SHA384, SHA512
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options
from cryptography.x509 import ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats.cms import SIGNER_LIMIT
from clamproxy.formats.codesign import SIGN_LIMIT, SIGNATURE_LIMIT, parse_sign, verify_sign
from clamproxy.formats.signatures import CLAMAV_KEYS, InvalidObject
from clamproxy.objects import Kind, ObjectId
from clamproxy.root_certificates import read_roots
from tests.support.data import SIGN_NAMES, keys_of_testdata, read_testdata
from tests.support.forge import forge_keys, forge_sign
from tests.support.signers import CODE, TLS, Wish, authority, sign_file, signed_data

FIRST, SIGNATURE = forge_sign().splitlines(keepends=True)
OID = bytes.fromhex("06092a864886f70d010702")


ROOTS = forge_keys().trusted.roots


@pytest.mark.parametrize("name", SIGN_NAMES)
def test_clamavs_own_files_verify(name: str) -> None:
    verify_sign(io.BytesIO(read_testdata(name)), ObjectId.parse(name), keys_of_testdata().roots)


@pytest.mark.parametrize("name", SIGN_NAMES)
def test_clamavs_own_files_belong_to_one_file_each(name: str) -> None:
    signature = ObjectId.parse(name)
    for other in [name.removesuffix(".sign") for name in SIGN_NAMES]:
        content = io.BytesIO(read_testdata(other))
        check = partial(
            verify_sign, io.BytesIO(read_testdata(name)), signature, keys_of_testdata().roots, content
        )
        if other == signature.signed.file_name:
            check()
        else:
            with pytest.raises(InvalidObject, match="it signs another file"):
                check()


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (FIRST + SIGNATURE, 1),
        (FIRST + SIGNATURE.rstrip(), 1),
        (FIRST + SIGNATURE + b"\n" + SIGNATURE, 2),
        (FIRST + b"# a comment\n\n" + SIGNATURE, 1),
        (FIRST + b"300:400:ed25519:AAAA\n" + SIGNATURE, 1),
        (FIRST + b"230::pkcs7-pem:A\n" + SIGNATURE, 1),
        (FIRST + SIGNATURE * SIGNATURE_LIMIT, SIGNATURE_LIMIT),
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
        FIRST + SIGNATURE + b"230::pkcs7-pem:AAAA\n",
        FIRST + SIGNATURE * (SIGNATURE_LIMIT + 1),
        b"<html>404 Not Found</html>",
        gzip.compress(FIRST + SIGNATURE, mtime=0),
        FIRST + SIGNATURE + b"#" * SIGN_LIMIT,
        sign_file(b"\x30"),
        sign_file(b"\x30\x00"),
        sign_file(b"\x30\x80"),
        sign_file(b"\x30\x84\xff\xff\xff\xff"),
        sign_file(b"\x31\x0f" + OID + b"\xa0\x02\x30\x00"),
        sign_file(b"\x30\x0f" + OID.replace(b"\x07\x02", b"\x07\x01") + b"\xa0\x02\x30\x00"),
        sign_file(b"\x30\x0f" + OID + b"\xa0\x02\x31\x00"),
        sign_file(b"\x30\x0f" + OID + b"\xa0\x02\x30\x00surplus"),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(InvalidObject):
        verify_sign(io.BytesIO(data), ObjectId("daily", 7, Kind.CVD_SIGN), ROOTS)


def test_only_signatures_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"daily-7\.cvd is not a signature"):
        verify_sign(io.BytesIO(FIRST + SIGNATURE), ObjectId("daily", 7, Kind.CVD), ROOTS)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    for candidate in (
        data,
        FIRST + data,
        FIRST + b"230::pkcs7-pem:" + data,
        sign_file(data),
        sign_file(b"\x30" + data),
    ):
        with pytest.raises(InvalidObject):
            verify_sign(io.BytesIO(candidate), ObjectId("daily", 7, Kind.CVD_SIGN), ROOTS)


# What a signature vouches for

CONTENT = b"a file" * 100
OTHER = b"another file"
ROOT = authority()
INTERMEDIATE = Wish("Intermediate", is_authority=True).issue(ROOT)
LOWER = Wish("Lower intermediate", is_authority=True, usages=()).issue(INTERMEDIATE)
SIGNER = Wish("Signer").issue(ROOT)
SECOND = Wish("Second signer", "ec").issue(INTERMEDIATE)
NETSCAPE_TYPE = ObjectIdentifier("2.16.840.1.113730.1.1")
NOT_TRUSTED, PURPOSE = "certificate is not trusted", "for another purpose"


def check(
    der: bytes, content: bytes | None = CONTENT, *more: bytes, roots: Collection[bytes] = (ROOT.der,)
) -> None:
    signed = None if content is None else io.BytesIO(content)
    verify_sign(io.BytesIO(sign_file(der, *more)), ObjectId("daily", 7, Kind.CDIFF_SIGN), roots, signed)


def netscape(bits: int) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(NETSCAPE_TYPE, bytes([3, 2, 0, bits])), False


GOOD = {
    "SHA-256": signed_data(CONTENT, [SIGNER]),
    "SHA-384": signed_data(CONTENT, [SIGNER], digest=SHA384()),
    "SHA-512": signed_data(CONTENT, [SIGNER], digest=SHA512()),
    "ECDSA": signed_data(CONTENT, [SECOND], [INTERMEDIATE]),
    "with the root": signed_data(CONTENT, [SIGNER], [ROOT]),
    "two intermediates": signed_data(CONTENT, [Wish("Deep").issue(LOWER)], [LOWER, INTERMEDIATE]),
    "in another order": signed_data(CONTENT, [Wish("Deep").issue(LOWER)], [INTERMEDIATE, LOWER]),
    "two signers": signed_data(CONTENT, [SIGNER, SECOND], [INTERMEDIATE]),
    "no capabilities": signed_data(CONTENT, [SIGNER], options=[PKCS7Options.NoCapabilities]),
    "any purpose": signed_data(CONTENT, [Wish("Any", usages=(), signs=None).issue(ROOT)]),
    "Netscape: mail": signed_data(CONTENT, [Wish("Netscape", others=[netscape(0x20)]).issue(ROOT)]),
}
good = pytest.mark.parametrize("der", GOOD.values(), ids=GOOD.keys())


@good
def test_a_signature_of_the_file_itself(der: bytes) -> None:
    check(der)
    check(der, None)


@good
def test_a_signature_of_another_file(der: bytes) -> None:
    for content in (OTHER, CONTENT[:-1], CONTENT + b"\n", b""):
        with pytest.raises(InvalidObject, match="it signs another file"):
            check(der, content)


@good
def test_a_signature_under_another_root(der: bytes) -> None:
    for roots in ((), CLAMAV_KEYS.roots, (Wish("Root", is_authority=True, usages=()).issue(SIGNER).der,)):
        with pytest.raises(InvalidObject, match=NOT_TRUSTED):
            check(der, roots=roots)


def test_a_root_that_another_one_with_the_same_name_and_key_replaces() -> None:
    anew = Wish("Root", is_authority=True, usages=()).issue()
    check(GOOD["ECDSA"], roots=(anew.der,))


YEAR = timedelta(days=365)


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (Wish("Expired", validity=(-2 * YEAR, -YEAR)), NOT_TRUSTED),
        (Wish("Not yet valid", validity=(YEAR, 2 * YEAR)), NOT_TRUSTED),
        (Wish("For TLS", usages=(TLS,)), PURPOSE),
        (Wish("For code alone", usages=(CODE,)), PURPOSE),
        (Wish("Does not sign", signs=False), PURPOSE),
        (Wish("Netscape: object signing", others=[netscape(0x10)]), PURPOSE),
        (
            Wish("Critical", others=[(x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"?"), True)]),
            NOT_TRUSTED,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Wish) else "",
)
def test_a_signer_who_must_not_sign(wish: Wish, reason: str) -> None:
    with pytest.raises(InvalidObject, match=reason):
        check(signed_data(CONTENT, [wish.issue(ROOT)]))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Wish("No authority"), NOT_TRUSTED),
        (Wish("Expired authority", is_authority=True, validity=(-2 * YEAR, -YEAR)), NOT_TRUSTED),
        (Wish("Authority for TLS", is_authority=True, usages=(TLS,)), PURPOSE),
    ],
    ids=lambda value: value.name if isinstance(value, Wish) else "",
)
def test_an_intermediate_that_must_not_vouch(between: Wish, reason: str) -> None:
    issuer = between.issue(ROOT)
    with pytest.raises(InvalidObject, match=reason):
        check(signed_data(CONTENT, [Wish("Its signer").issue(issuer)], [issuer]))


def test_a_missing_intermediate() -> None:
    with pytest.raises(InvalidObject, match=NOT_TRUSTED):
        check(signed_data(CONTENT, [SECOND]))
    check(signed_data(CONTENT, [SECOND]), roots=(ROOT.der, INTERMEDIATE.der))


REFUSED = {
    "no certificate": signed_data(CONTENT, [SIGNER], options=[PKCS7Options.NoCerts]),
    "no attributes": signed_data(CONTENT, [SIGNER], options=[PKCS7Options.NoAttributes]),
    "SHA-224": signed_data(CONTENT, [SIGNER], digest=SHA224()),
    "two signers, one of them unknown": signed_data(CONTENT, [SIGNER, Wish("Nobody").issue()]),
    "too many signers": signed_data(CONTENT, [SIGNER] * (SIGNER_LIMIT + 1)),
    "a certificate with another tag": GOOD["SHA-256"].replace(SIGNER.der, b"\x31" + SIGNER.der[1:]),
    "surplus": GOOD["SHA-256"] + b"\0",
    "BER": b"\x30\x80" + GOOD["SHA-256"][4:] + b"\0\0",
    "SHA-1": GOOD["SHA-256"].replace(
        bytes.fromhex("608648016503040201"), bytes.fromhex("608648016503040299")
    ),
}


@pytest.mark.parametrize("der", REFUSED.values(), ids=REFUSED.keys())
def test_refused_though_a_client_might_take_it(der: bytes) -> None:
    for content in (CONTENT, None):
        with pytest.raises(InvalidObject):
            check(der, content)


def test_each_signature_counts() -> None:
    check(GOOD["SHA-256"], CONTENT, GOOD["ECDSA"])
    for other in (signed_data(OTHER, [SIGNER]), REFUSED["BER"], REFUSED["no attributes"]):
        for der in ((GOOD["SHA-256"], other), (other, GOOD["SHA-256"])):
            with pytest.raises(InvalidObject):
                check(der[0], CONTENT, der[1])


@given(
    spots=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4), cut=st.integers(0, 2000)
)
def test_any_damage_is_refused_or_does_no_harm(spots: list[tuple[int, int]], cut: int) -> None:
    """Nothing but InvalidObject comes out, and never does another file pass."""
    spoilt = bytearray(GOOD["SHA-256"])
    for spot, byte in spots:
        spoilt[spot % len(spoilt)] = byte
    for der in (bytes(spoilt), bytes(spoilt[:cut])):
        with contextlib.suppress(InvalidObject):
            check(der)
        with pytest.raises(InvalidObject):
            check(der, OTHER)


# Roots


def test_clamavs_root_comes_with_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "clamav.crt").write_bytes(read_testdata("clamav-prod-root.crt"))
    assert read_roots(tmp_path) == CLAMAV_KEYS.roots


def test_a_directory_as_freshclam_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.crt").write_bytes(ROOT.pem + INTERMEDIATE.pem)
    (tmp_path / "b.pem").write_bytes(SIGNER.pem)
    (tmp_path / "README").write_text("no certificate")
    (tmp_path / "c.crt").mkdir()
    assert read_roots(tmp_path) == (ROOT.der, INTERMEDIATE.der, SIGNER.der)


@pytest.mark.parametrize("files", [{}, {"README": ROOT.pem}, {"a.crt": ROOT.pem, "b.pem": b"none"}])
def test_a_directory_without_certificates(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"certificate|PEM"):
        read_roots(tmp_path)
