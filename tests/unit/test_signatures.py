"""ClamAV's digits and its two RSA schemes."""

from __future__ import annotations

import hashlib
import io

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats.signatures import CLAMAV_KEYS, FilePart, RsaPublicKey, decode_number, encode_number
from tests.support.forge import forge_keys, sign_sha256

DIGITS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"
TOY_KEY = RsaPublicKey(modulus=(1 << 127) - 1, exponent=1)
"""With exponent 1 a signature is its own plain text."""


@pytest.mark.parametrize(
    ("digits", "number"),
    [(b"", 0), (b"a", 0), (b"b", 1), (b"/", 63), (b"ab", 64), (b"ba", 1), (b"+9A", 62 + 61 * 64 + 26 * 4096)],
)
def test_digits_count_from_the_least_significant(digits: bytes, number: int) -> None:
    assert decode_number(digits) == number


@given(st.integers(min_value=0, max_value=1 << 2048))
def test_numbers_survive_encoding(number: int) -> None:
    assert decode_number(encode_number(number)) == number


@pytest.mark.parametrize("digits", [b" ", b"ab:c", b"ab\n", b"\xff", b"="])
def test_other_characters_are_no_digits(digits: bytes) -> None:
    with pytest.raises(ValueError, match="not a digit"):
        decode_number(digits)


def test_key_sizes() -> None:
    keys = (CLAMAV_KEYS.cvd, CLAMAV_KEYS.info, CLAMAV_KEYS.cdiff)
    assert [key.modulus.bit_length() for key in keys] == [1024, 2047, 2047]
    assert [key.byte_length for key in keys] == [128, 256, 256]


def test_md5_with_leading_zeros_verifies() -> None:
    digest = bytes(3) + bytes(range(13))
    assert TOY_KEY.verifies_md5(digest, encode_number(int.from_bytes(digest)))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"a",
        b"!",
        encode_number(5) + b"a",  # a leading zero
        encode_number(5 + TOY_KEY.modulus),  # the same modulo n
        b"/" * 10_000,
    ],
)
def test_other_spellings_of_a_signature_are_refused(signature: bytes) -> None:
    digest = (5).to_bytes(16)
    assert TOY_KEY.verifies_md5(digest, encode_number(5))
    assert not TOY_KEY.verifies_md5(digest, signature)


def test_result_beyond_16_bytes_is_no_md5() -> None:
    key = RsaPublicKey(modulus=(1 << 521) - 1, exponent=1)
    assert not key.verifies_md5(bytes(15) + b"\x05", encode_number((1 << 128) + 5))


def test_hash_of_another_length_is_refused() -> None:
    assert not TOY_KEY.verifies_md5(b"\x05", encode_number(5))
    key = forge_keys().trusted.info
    assert not key.verifies_sha256(b"\x05", sign_sha256(forge_keys().info, b"\x05"))


@given(st.binary(max_size=400), st.sampled_from(["cvd", "info", "cdiff"]))
def test_any_bytes_are_just_a_wrong_signature(signature: bytes, name: str) -> None:
    key: RsaPublicKey = getattr(CLAMAV_KEYS, name)
    assert not key.verifies_md5(bytes(16), signature)
    assert not key.verifies_sha256(bytes(32), signature)


@given(st.binary(min_size=330, max_size=345).map(lambda data: bytes(DIGITS[byte & 63] for byte in data)))
def test_any_digits_are_just_a_wrong_signature(signature: bytes) -> None:
    assert not CLAMAV_KEYS.info.verifies_sha256(bytes(32), signature)


def test_pss_as_clamav_makes_it_goes_beyond_the_rfc() -> None:
    """A quarter and more of the good signatures have a bit that RFC 8017 wants clear."""
    signer = forge_keys().cdiff
    numbers = signer.public_key().public_numbers()
    key = RsaPublicKey(numbers.n, numbers.e)
    by_the_rfc = []
    for index in range(40):
        digest = hashlib.sha256(bytes([index])).digest()
        signature = sign_sha256(signer, digest)
        assert key.verifies_sha256(digest, signature)
        by_the_rfc.append(_verifies_by_the_rfc(signer.public_key(), digest, signature))
        encoded = pow(decode_number(signature), numbers.e, numbers.n)
        assert by_the_rfc[-1] == (encoded.bit_length() <= 2046)
    assert set(by_the_rfc) == {True, False}


def _verifies_by_the_rfc(key: rsa.RSAPublicKey, digest: bytes, signature: bytes) -> bool:
    number = decode_number(signature).to_bytes(256)
    try:
        key.verify(number, digest, padding.PSS(padding.MGF1(SHA256()), 32), Prehashed(SHA256()))
    except InvalidSignature:
        return False
    return True


def test_pss_signature_of_another_hash_is_refused() -> None:
    key = forge_keys().trusted.info
    digest = hashlib.sha256(b"one").digest()
    signature = sign_sha256(forge_keys().info, digest)
    assert key.verifies_sha256(digest, signature)
    assert not key.verifies_sha256(hashlib.sha256(b"other").digest(), signature)
    assert not forge_keys().trusted.cdiff.verifies_sha256(digest, signature)
    assert not key.verifies_sha256(digest, signature + b"a")


@given(st.binary(max_size=64), st.integers(0, 70), st.integers(0, 70))
def test_file_part_is_a_slice(data: bytes, start: int, end: int) -> None:
    assert FilePart(io.BytesIO(data), start, end).read() == data[start:end]
