"""mitmproxy's own authority after a power failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from clamproxy.setup.confdir import set_damaged_aside

NAME = "mitmproxy-ca.pem"


def key(encryption: KeySerializationEncryption) -> bytes:
    made = ec.generate_private_key(ec.SECP256R1())
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize("content", [b"", bytes(2000), key(NoEncryption())[:100]])
def test_what_mitmproxy_could_not_read_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    aside = set_damaged_aside(tmp_path)
    assert aside is not None
    assert aside.read_bytes() == content
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("encryption", [NoEncryption(), BestAvailableEncryption(b"secret")])
def test_a_key_stays(tmp_path: Path, encryption: KeySerializationEncryption) -> None:
    (tmp_path / NAME).write_bytes(key(encryption))
    assert set_damaged_aside(tmp_path) is None
    assert (tmp_path / NAME).exists()


def test_nothing_is_there(tmp_path: Path) -> None:
    assert set_damaged_aside(tmp_path / "none") is None
