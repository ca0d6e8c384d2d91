"""The file of an authority: all certificates and keys, replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clamproxy.authority.certificates import pem_of
from clamproxy.dates import as_time
from clamproxy.files import replacing, sync_directory, try_lock
from clamproxy.notes import UNREADABLE
from clamproxy.pem import read_certificates

FILE = "authority.json"
_FORMAT = 1
_WRITABLE_BY_OTHERS = 0o022


class AuthorityError(Exception):
    """The authority can't be used, or not like this; the text is one line for the operator."""


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One of the certificates that follow each other, with its root. Compared by identity."""

    root: x509.Certificate
    """The certificate that clients trust; its key no longer exists."""
    certificate: x509.Certificate
    """The certificate that signs for hosts."""
    key: ec.EllipticCurvePrivateKey
    signs_from: float
    """Unix seconds. Of the generations whose time has come, the last one signs."""


def read_state(directory: Path) -> tuple[Generation, ...]:
    """Read the generations, oldest first; none if there is no authority.

    Raises:
        AuthorityError: the file is damaged.
        OSError: it can't be read.
    """
    path = directory / FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    try:
        return _parse(json.loads(data))
    except (*UNREADABLE, RecursionError, UnsupportedAlgorithm) as error:
        raise AuthorityError(
            f"{path} is damaged: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def write_state(directory: Path, generations: Sequence[Generation]) -> None:
    """Replace the file; after a crash there is either the old one or the new one.

    Args:
        directory: must be `locked`.
        generations: oldest first.

    Raises:
        OSError: it can't be written.
    """
    for leftover in directory.glob(f"*{FILE}*.part"):  # of a crash; nobody else is at work here
        leftover.unlink(missing_ok=True)
    with replacing(directory / FILE) as file:
        file.write(_serialize(generations))


@contextmanager
def locked(directory: Path, *, make: bool = False) -> Iterator[None]:
    """Keep other processes from changing the authority in the meantime.

    Args:
        make: create the directory if it doesn't exist.

    Raises:
        AuthorityError: another process has locked it, or other users may write to it.
        OSError: it can't be used.
    """
    if make and not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if os.fstat(descriptor).st_mode & _WRITABLE_BY_OTHERS:
            raise AuthorityError(f"other users may write to {directory}; give it mode 0700")
        if not try_lock(descriptor):
            raise AuthorityError(f"another process is changing {directory}")
        yield
    finally:
        os.close(descriptor)


def _serialize(generations: Sequence[Generation]) -> bytes:
    rows = [
        {
            "root": pem_of(generation.root).decode(),
            "certificate": pem_of(generation.certificate).decode(),
            "key": _key_pem(generation.key).decode(),
            "signs_from": generation.signs_from,
        }
        for generation in generations
    ]
    return json.dumps({"format": _FORMAT, "generations": rows}, indent=1).encode() + b"\n"


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _parse(content: Any) -> tuple[Generation, ...]:
    if content["format"] != _FORMAT:
        raise ValueError("its format is that of another version of clamproxy")
    generations = tuple(_parse_generation(row) for row in content["generations"])
    if not generations:
        raise ValueError("it contains no certificate")
    return generations


def _parse_generation(row: Any) -> Generation:
    (root,) = read_certificates(row["root"].encode())
    (certificate,) = read_certificates(row["certificate"].encode())
    key = serialization.load_pem_private_key(row["key"].encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("a key doesn't belong to its certificate")
    try:
        certificate.verify_directly_issued_by(root)
    except InvalidSignature:
        raise ValueError("a certificate is not signed by its root") from None
    return Generation(root, certificate, key, as_time(row["signs_from"]))
