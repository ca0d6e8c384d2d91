"""The location of the test data: files signed by ClamAV, which are not part of the repository."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from clamproxy.formats.signatures import CLAMAV_KEYS, TrustedKeys
from tests.support.forge import forge_keys

TESTDATA = Path(
    os.environ.get("CLAMPROXY_TESTDATA") or Path(__file__).resolve().parents[3] / "shared" / "testdata"
)
"""The directory with test-1.cvd and so on: beside the repository, unless CLAMPROXY_TESTDATA says else."""

CVD_NAMES = [f"test-{version}.cvd" for version in range(1, 7)]
CDIFF_NAMES = [f"test-{version}.cdiff" for version in range(2, 7)]
SIGN_NAMES = [f"{name}.sign" for name in CVD_NAMES + CDIFF_NAMES]


def require_testdata() -> Path:
    """The directory with the test data; if it is missing, the test is skipped, or fails if CI=true."""
    if not (TESTDATA / "test-1.cvd").is_file():
        reason = f"no test data in {TESTDATA}; set CLAMPROXY_TESTDATA"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return TESTDATA


def read_testdata(name: str) -> bytes:
    """The content of one file of the test data; calls `require_testdata`."""
    return (require_testdata() / name).read_bytes()


def keys_of_testdata() -> TrustedKeys:
    """What the test data are signed with.

    The root of their ``.sign`` files is valid until 2049 here, not only until 26 March 2027 like ClamAV's:
    nobody checks a root's own signature.
    """
    pem = read_testdata("clamav-test.crt").decode().strip()
    root = ssl.PEM_cert_to_DER_cert(pem).replace(b"270326175632Z", b"490326175632Z")
    return replace(CLAMAV_KEYS, roots=(root,))


def trust_testdata(directory: Path) -> Path:
    """Make a directory for `upstream.cvd_certs_directory` with the root of the test data."""
    directory.mkdir(parents=True, exist_ok=True)
    (root,) = keys_of_testdata().roots
    (directory / "clamav-test.crt").write_text(ssl.DER_cert_to_PEM_cert(root))
    return directory


def keys_of_tests() -> TrustedKeys:
    """ClamAV's keys, with the roots of all ``.sign`` files in tests: forged ones, and the test data's."""
    roots = forge_keys().trusted.roots
    if (TESTDATA / "clamav-test.crt").is_file():
        roots += keys_of_testdata().roots
    return replace(CLAMAV_KEYS, roots=roots)
