"""Certificates in PEM: what can't be read is a ValueError, whatever is wrong with it."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from clamproxy.pem import read_certificates
from tests.support.signers import Wish

VERSION_3 = bytes.fromhex("a003020102")
RIGHT = Wish("clamproxy tests").issue().certificate.public_bytes(Encoding.DER)


def pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_one_after_another() -> None:
    assert [one.public_bytes(Encoding.DER) for one in read_certificates(2 * pem(RIGHT))] == [RIGHT, RIGHT]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"text",
        pem(b""),
        pem(RIGHT[:-1]),
        pem(RIGHT.replace(VERSION_3, bytes.fromhex("a003020122"))),
        pem(RIGHT) + pem(RIGHT.replace(VERSION_3, bytes.fromhex("a003020103"))),
    ],
    ids=["nothing", "a text", "an empty one", "a part", "version 35", "version 4 after a right one"],
)
def test_what_can_not_be_read(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_certificates(text)
