"""freshclam.dat: what real ones say, and that no other bytes are taken for one."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats.freshclam_dat import FreshclamDat
from clamproxy.formats.signatures import InvalidObject
from tests.support import faults
from tests.support.freshclam import FORBIDDEN, OK, Freshclam
from tests.support.origin import OriginServer

UUID = "0738ec71-8d58-4bdf-8241-6ad688adc4fd"


def dat(retry_after: int = 0, *, uuid: str = UUID, version: int = 1, tail: bytes = bytes(21)) -> bytes:
    """As freshclam 1.4 writes it on x86-64."""
    return b"FreshClamData" + struct.pack("<I37s7xq", version, uuid.encode(), retry_after) + tail


@pytest.mark.parametrize("tail", [b"", bytes(21), b"8f1a2b3c4d5e6f70-FRA\0"])
def test_both_sizes(tail: bytes) -> None:
    """Before 1.4.0 there was no cf-ray at the end."""
    assert FreshclamDat.parse(dat(1_900_000_000, tail=tail)) == FreshclamDat(UUID, 1_900_000_000)


@pytest.mark.parametrize(
    ("status", "retry_after", "code", "seconds"),
    [(403, None, FORBIDDEN, 86400), (429, "7200", OK, 7200), (429, None, OK, 4 * 3600)],
)
def test_of_a_real_freshclam(
    tmp_path: Path, origin: OriginServer, status: int, retry_after: str | None, code: int, seconds: int
) -> None:
    """It is refused, and remembers until when; a run after that asks nobody, and ends well."""
    origin.rule("*", faults.status(status, retry_after=retry_after or ""))
    client = Freshclam(directory=tmp_path, mirrors=[origin.url], attempts=1)
    before = int(time.time())
    # To the header, any refusal is exit code 11 (docs/protocol.md 2.2); what is remembered is the same.
    assert client.run().code in (code, 11)
    found = FreshclamDat.parse((client.databases / "freshclam.dat").read_bytes())
    assert before + seconds <= found.retry_after <= time.time() + seconds
    asked = origin.requests()
    assert found.uuid in asked[0].headers["user-agent"]
    assert client.run().code == OK
    assert len(origin.requests()) == len(asked)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin with FreshClamData"),
        (b"FreshClamData", "has 13 bytes"),
        (dat()[:-1], "has 89 bytes"),
        (dat() + b"x", "has 91 bytes"),
        (b"FreshClamData" + struct.pack("<I37s3xi", 1, UUID.encode(), 0), "has 61 bytes"),
        (b"FreshClamData" + struct.pack("<I37s3xi", 1, UUID.encode(), 0) + bytes(21), "has 82 bytes"),
        (b"FreshClamData" + struct.pack(">I37s7xq", 1, UUID.encode(), 0), "has version 16777216"),
        (dat(version=2), "has version 2"),
        (dat(uuid="nobody"), "has no UUID"),
    ],
)
def test_what_is_none(data: bytes, reason: str) -> None:
    """Damaged, of a machine with 32 bits or with the other byte order, of a later form."""
    with pytest.raises(InvalidObject, match=reason):
        FreshclamDat.parse(data)


@given(
    st.binary(max_size=200) | st.builds(dat, st.integers(-(2**63), 2**63 - 1), tail=st.binary(max_size=40))
)
def test_any_bytes(data: bytes) -> None:
    """Either it is written again as it was, or it is none."""
    try:
        found = FreshclamDat.parse(data)
    except InvalidObject:
        return
    assert data.startswith(dat(found.retry_after, uuid=found.uuid, tail=b""))
