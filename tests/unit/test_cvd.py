"""The header of a CVD, and what a file must be to pass for one."""

from __future__ import annotations

import gzip
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clamproxy.formats import cvd
from clamproxy.formats.cvd import PayloadDigest, verify_cvd
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import CLAMAV_KEYS, InvalidObject, TrustedKeys
from clamproxy.objects import Kind, ObjectId
from tests.support.data import CVD_NAMES, read_testdata
from tests.support.forge import (
    cvd_header,
    forge_cvd,
    forge_keys,
    info_line,
    info_member,
    payload_of,
    seal,
)

LINE = "ClamAV-VDB:22 Jun 2021 21-34 -0400:6:14:81:3e249e00076b0b15bb54ced37be880c7:Dou6:micasnyd:1624412045"
DAILY_7 = ObjectId("daily", 7, Kind.CVD)
KEYS = forge_keys().trusted
INFO = info_member(info_line(7), [], forge_keys())


def header(line: str) -> bytes:
    return line.ljust(HEADER_SIZE).encode("latin-1")


def check(data: bytes, expected: ObjectId = DAILY_7, keys: TrustedKeys = KEYS) -> None:
    verify_cvd(io.BytesIO(data), expected, keys)


def sealed(*members: tuple[str, bytes]) -> bytes:
    return seal(7, payload_of(members))


# The header


def test_parse() -> None:
    raw = header(LINE)
    assert CvdHeader.parse(raw + b"payload") == CvdHeader(
        raw=raw,
        build_time="22 Jun 2021 21-34 -0400",
        version=6,
        signatures=14,
        functionality_level=81,
        md5="3e249e00076b0b15bb54ced37be880c7",
        dsig="Dou6",
        builder="micasnyd",
        stime=1624412045,
    )


def test_info_line_hides_hash_and_signature() -> None:
    parsed = CvdHeader.parse(header(LINE))
    assert parsed.info_line == "ClamAV-VDB:22 Jun 2021 21-34 -0400:6:14:81:X:X:micasnyd:1624412045"


def test_ancient_header_without_build_time_in_seconds() -> None:
    parsed = CvdHeader.parse(header(LINE.rpartition(":")[0]))
    assert (parsed.builder, parsed.stime) == ("micasnyd", 0)
    assert parsed.info_line.endswith(":X:X:micasnyd")


def test_header_of_a_cld() -> None:
    parsed = CvdHeader.parse(read_testdata("test-6.cld"))
    assert (parsed.version, parsed.md5, parsed.dsig) == (6, "X", "X")
    assert parsed.info_line == parsed.raw.decode().rstrip()


@pytest.mark.parametrize("name", CVD_NAMES)
def test_headers_of_test_data(name: str) -> None:
    parsed = CvdHeader.parse(read_testdata(name))
    assert parsed.version == ObjectId.parse(name).version
    assert parsed.stime > 1_624_000_000


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"ClamAV-VDB:",
        header(LINE)[:511],
        header("<!DOCTYPE html>"),
        header(LINE.replace("VDB", "vdb")),
        header(" " + LINE),
        header(LINE.replace("Jun", "J\tn")),
        header(LINE.replace("Jun", "J\xfcn")),
        header(LINE)[:-1] + b"\n",
        header(LINE)[:-1] + b"\0",
        header(LINE)[:-1] + b"x",
        header(LINE.replace(":6:", "::6:")),
        header(LINE.replace(":micasnyd", ":")),
        header(LINE + ":surplus"),
        header(LINE + ":"),
        header(LINE.rsplit(":", 2)[0]),
        header(LINE.replace(":6:", ":0:")),
        header(LINE.replace(":6:", ":-6:")),
        header(LINE.replace(":6:", ":+6:")),
        header(LINE.replace(":6:", ": 6:")),
        header(LINE.replace(":6:", ":6_0:")),
        header(LINE.replace(":6:", ":2147483648:")),
        header(LINE.replace(":6:", ":00000000006:")),
        header(LINE.replace(":14:", ":many:")),
        header(LINE.replace(":81:", ":0x51:")),
        header(LINE.replace("1624412045", "99999999999999999999")),
        header(LINE.replace("3e249e", "3E249E")),
        header(LINE.replace("3e249e", "3e249")),
        header(LINE.replace("3e249e", "3e249g")),
    ],
)
def test_malformed_headers(raw: bytes) -> None:
    with pytest.raises(InvalidObject):
        CvdHeader.parse(raw)


@given(
    st.binary(max_size=600)
    | st.text("0123456789aX: ", max_size=520).map(lambda t: b"ClamAV-VDB:" + t.encode())
)
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        parsed = CvdHeader.parse(data.ljust(HEADER_SIZE))
    except InvalidObject:
        return
    assert parsed.version >= 1


# Whole files


@pytest.mark.parametrize("name", CVD_NAMES)
def test_clamavs_own_files_verify(name: str) -> None:
    check(read_testdata(name), ObjectId.parse(name), CLAMAV_KEYS)


@pytest.mark.parametrize("size", [0, 10_000, 300_000])
def test_forged_file_verifies(tmp_path: Path, size: int) -> None:
    path = tmp_path / "daily.cvd"
    forge_cvd(path, "daily", 7, size)
    with path.open("rb") as file:
        verify_cvd(file, DAILY_7, KEYS)
    assert size == 0 or abs(path.stat().st_size - size) < 2048 + size // 1000


def test_smallest_file_verifies() -> None:
    check(sealed(("COPYING", b"x"), ("daily.info", INFO)))


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (ObjectId("daily", 8, Kind.CVD), "names version 7, not 8"),
        (ObjectId("main", 7, Kind.CVD), "holds daily.info, not main.info"),
    ],
)
def test_file_under_another_name_is_refused(expected: ObjectId, reason: str) -> None:
    with pytest.raises(InvalidObject, match=reason):
        check(sealed(("COPYING", b"x"), ("daily.info", INFO)), expected)


def test_keys_of_another_signer_are_refused() -> None:
    data = sealed(("daily.info", INFO))
    with pytest.raises(InvalidObject, match="wrong RSA signature"):
        check(data, keys=CLAMAV_KEYS)
    with pytest.raises(InvalidObject, match=r"wrong signature of \.info"):
        check(data, keys=replace(KEYS, info=KEYS.cdiff))


def test_cld_is_no_cvd() -> None:
    with pytest.raises(InvalidObject, match="without an MD5"):
        check(read_testdata("test-6.cld"), ObjectId("test", 6, Kind.CVD), CLAMAV_KEYS)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "no daily.info"),
        ([("COPYING", b"x")], "no daily.info"),
        ([("COPYING", b"x"), ("main.info", INFO), ("daily.info", INFO)], "holds main.info"),
        ([("sub/daily.info", INFO)], "malformed member"),
        ([("d\xe4ily.info", INFO)], "malformed member"),
        ([("daily.info", b"")], "does not end with a signature"),
        ([("daily.info", info_member(info_line(8), [], forge_keys()))], "differs from the first line"),
        ([("daily.info", info_member(info_line(7, 5), [], forge_keys()))], "differs from the first line"),
        ([("daily.info", INFO.partition(b"DSIG:")[0])], "does not end with a signature"),
        ([("daily.info", INFO.replace(b"81:X", b"82:X"))], "wrong signature of .info"),
    ],
)
def test_well_signed_payload_with_wrong_members(members: list[tuple[str, bytes]], reason: str) -> None:
    with pytest.raises(InvalidObject, match=reason):
        check(sealed(*members))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "complete gzip stream"),
        (b"not gzip", "complete gzip stream"),
        (gzip.decompress(payload_of([("daily.info", INFO)])), "complete gzip stream"),
        (gzip.compress(b"x" * 511, mtime=0), "ends inside the header"),
        (
            gzip.compress(gzip.decompress(payload_of([("daily.info", INFO)]))[:600], mtime=0),
            "ends inside daily.info",
        ),
        (payload_of([("COPYING", bytes(2000)), ("daily.info", INFO)])[:30], "complete gzip stream"),
        (
            gzip.compress(b"daily.info".ljust(124, b"\0") + b"7777777777".ljust(388, b"\0"), mtime=0),
            ".info of",
        ),
        (
            gzip.compress(b"COPYING".ljust(124, b"\0") + b"77777777777".ljust(388, b"\0"), mtime=0),
            "no daily.info",
        ),
        (
            gzip.compress(b"daily.info".ljust(124, b"\0") + b"0o17".ljust(388, b"\0"), mtime=0),
            "malformed member",
        ),
        (
            gzip.compress(b"daily.info".ljust(124, b"\0") + b"17".ljust(32, b"\0") + b"5" * 356, mtime=0),
            "malformed member",
        ),
    ],
)
def test_well_signed_payload_that_is_no_tar(payload: bytes, reason: str) -> None:
    with pytest.raises(InvalidObject, match=reason):
        check(seal(7, payload))


def test_search_for_info_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvd, "INFLATED_LIMIT", 100_000)
    members = [(f"daily.{number}", bytes(1000)) for number in range(100)]
    with pytest.raises(InvalidObject, match=r"no daily\.info in the first 100000 bytes"):
        check(sealed(*members, ("daily.info", INFO)))


def test_hash_that_begins_with_zero_verifies() -> None:
    payload = bytearray(payload_of([("COPYING", b"x"), ("daily.info", INFO)]))
    for gzip_mtime in range(100_000):
        payload[4:8] = gzip_mtime.to_bytes(4, "little")  # RFC 1952 2.3.1: changes the hash, not the contents
        digest = hashlib.md5(payload, usedforsecurity=False).digest()
        if digest[0] == 0:
            break
    assert digest[0] == 0
    check(cvd_header(7, 1_700_000_000, digest, forge_keys()) + payload)


@pytest.mark.parametrize(
    "data",
    [b"", b"<html><title>Sign in</title></html>", b"ClamAV-VDB:", b"\x1f\x8b" + bytes(600)],
    ids=["empty", "html", "magic only", "gzip"],
)
def test_files_that_are_something_else(data: bytes) -> None:
    with pytest.raises(InvalidObject):
        check(data)


def test_gzip_encoded_file_is_refused() -> None:
    with pytest.raises(InvalidObject, match="does not begin with"):
        check(gzip.compress(read_testdata("test-6.cvd")), ObjectId("test", 6, Kind.CVD), CLAMAV_KEYS)


@pytest.mark.parametrize("length", [511, 512, 513, 519, 9000, 9951])
def test_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(InvalidObject):
        check(read_testdata("test-6.cvd")[:length], ObjectId("test", 6, Kind.CVD), CLAMAV_KEYS)


@pytest.mark.parametrize("surplus", [b"\0", b"\n", bytes(512)])
def test_extended_file_is_refused(surplus: bytes) -> None:
    with pytest.raises(InvalidObject, match="does not match the MD5"):
        check(read_testdata("test-6.cvd") + surplus, ObjectId("test", 6, Kind.CVD), CLAMAV_KEYS)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_no_byte_of_the_header_can_change(mask: int) -> None:
    """The signature does not cover the header: the other checks together do, padding included."""
    data = read_testdata("test-6.cvd")
    for offset in range(HEADER_SIZE):
        changed = bytearray(data)
        changed[offset] ^= mask
        with pytest.raises(InvalidObject):
            check(bytes(changed), ObjectId("test", 6, Kind.CVD), CLAMAV_KEYS)


@given(st.data())
def test_no_byte_can_change(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CVD_NAMES))
    changed = bytearray(read_testdata(name))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidObject):
        check(bytes(changed), ObjectId.parse(name), CLAMAV_KEYS)


@given(st.binary(max_size=2000))
@settings(max_examples=40)
def test_any_payload_is_refused(payload: bytes) -> None:
    """Behind a good signature come the inflater and the tar reader: no bytes may upset them."""
    compressed = gzip.compress(payload)
    for candidate in (payload, b"\x1f\x8b\x08" + payload, compressed, compressed[:-3]):
        with pytest.raises(InvalidObject):
            check(seal(7, candidate))


# While it grows


@pytest.mark.parametrize("steps", [[], [100], [HEADER_SIZE], [HEADER_SIZE + 1, 2000, 2000, 10**9]])
def test_what_was_digested_before_is_not_read_again(steps: list[int]) -> None:
    data = sealed(("COPYING", b""), ("daily.info", INFO), ("daily.ndb", bytes(5000)))
    payload = PayloadDigest()
    for end in steps:
        payload.follow(lambda length, offset: data[offset : offset + length], min(end, len(data)))
    verify_cvd(io.BytesIO(data), DAILY_7, KEYS, payload)


def test_a_digest_of_another_file_proves_nothing() -> None:
    data = sealed(("COPYING", b""), ("daily.info", INFO))
    payload = PayloadDigest()
    payload.follow(lambda length, offset: bytes(length), HEADER_SIZE + 10)
    with pytest.raises(InvalidObject, match="MD5"):
        verify_cvd(io.BytesIO(data), DAILY_7, KEYS, payload)
