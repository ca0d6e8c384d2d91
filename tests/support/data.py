"""The location of the test data: files signed by ClamAV, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
