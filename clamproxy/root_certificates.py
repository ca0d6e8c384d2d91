"""The root certificates of ``.sign`` files in a directory, such as freshclam's ``CVDCertsDirectory``."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from clamproxy.pem import read_certificates

_SUFFIXES = (".crt", ".pem")  # libclamav_rust/src/codesign.rs: Verifier::new


def read_roots(directory: Path) -> tuple[bytes, ...]:
    """The certificates in a directory, in DER.

    Raises:
        OSError: it can't be read.
        ValueError: it holds none, or a file that isn't one.
    """
    files = sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    found = [one for path in files for one in read_certificates(path.read_bytes())]
    if not found:
        raise ValueError("no certificate")
    return tuple(one.public_bytes(Encoding.DER) for one in found)
