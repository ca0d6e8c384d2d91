"""CLDs: what is built from a CVD and cdiffs, and what a file must be to pass for one."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats import members as formats_members
from clamproxy.formats.cld import build_cld, verify_cld
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.members import iter_members, member_header, open_payload
from clamproxy.formats.signatures import CLAMAV_KEYS, InvalidObject, TrustedKeys
from clamproxy.objects import Kind, ObjectId
from tests.support.data import read_testdata
from tests.support.forge import (
    forge_cdiff,
    forge_database,
    forge_info,
    forge_keys,
    forge_patch,
    info_line,
    payload_of,
    seal,
)

DAILY_2 = ObjectId("daily", 2, Kind.CLD)
TEST_6 = ObjectId("test", 6, Kind.CLD)
KEYS = forge_keys().trusted
ONE = {
    "daily.ndb": b"Aa one\nBb two\nCc three\n",
    "daily.hdb": b"Xx\nYy\n",
    "daily.cfg": b"DOCUMENT:0x5:11:13\n",
    "3986187.cbc": b"ClamBC\n",
}
TWO = {**ONE, "daily.ndb": b"Aa one\nCc drei\nDd four five\n"}
SCRIPT = b"OPEN daily.ndb\nDEL 2 Bb\nXCHG 3 Cc Cc drei\nADD Dd four five\nCLOSE\n"


def members(data: bytes) -> list[tuple[str, bytes]]:
    return [(member.name, member.read()) for member in iter_members(open_payload(io.BytesIO(data)))]


def build(
    tmp_path: Path,
    base: bytes,
    patches: Sequence[bytes],
    expected: ObjectId = DAILY_2,
    level: int = 0,
    keys: TrustedKeys = KEYS,
) -> bytes:
    workspace, target = tmp_path / "workspace", tmp_path / "target"
    workspace.mkdir()
    files = [io.BytesIO(data) for data in patches]
    try:
        header = build_cld(io.BytesIO(base), files, expected, workspace, target, keys, level=level)
    except InvalidObject:
        assert not target.exists()
        raise
    data = target.read_bytes()
    assert header == CvdHeader.parse(data)
    return data


def check(data: bytes, expected: ObjectId = DAILY_2, keys: TrustedKeys = KEYS) -> None:
    verify_cld(io.BytesIO(data), expected, keys)


def tar(*files: tuple[str, bytes]) -> bytes:
    return b"".join(member_header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in files)


def header(version: int = 2) -> bytes:
    return info_line(version).ljust(HEADER_SIZE).encode()


def plain_cld(files: dict[str, bytes] = TWO) -> bytes:
    """A CLD without compression, of files that it lists."""
    return header() + tar(("COPYING", b"x"), ("daily.info", forge_info("daily", 2, files)), *files.items())


def packed(payload: bytes, level: int = 6) -> bytes:
    """A payload as zlib's own gzip writer compresses it."""
    compressor = zlib.compressobj(level, wbits=31)
    return compressor.compress(payload) + compressor.flush()


# Built


@pytest.mark.parametrize("version", range(2, 7))
def test_clamavs_own_patches_lead_to_the_contents_of_each_version(tmp_path: Path, version: int) -> None:
    patches = [read_testdata(f"test-{number}.cdiff") for number in range(2, version + 1)]
    expected = ObjectId("test", version, Kind.CLD)
    built = build(tmp_path, read_testdata("test-1.cvd"), patches, expected, keys=CLAMAV_KEYS)
    check(built, expected, CLAMAV_KEYS)
    assert sorted(members(built)) == sorted(members(read_testdata(f"test-{version}.cvd")))


def test_same_as_freshclams_own_but_for_the_order(tmp_path: Path) -> None:
    patches = [read_testdata(f"test-{number}.cdiff") for number in range(2, 7)]
    built = build(tmp_path, read_testdata("test-1.cvd"), patches, TEST_6, keys=CLAMAV_KEYS)
    freshclams = read_testdata("test-6.cld")
    assert len(built) == len(freshclams)
    assert built[:HEADER_SIZE] == freshclams[:HEADER_SIZE]
    assert sorted(members(built)) == sorted(members(freshclams))
    names = [name for name, _ in members(built)]
    assert names[:3] == ["COPYING", "test.info", "test.cfg"]
    assert names[3:] == sorted(names[3:])


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_forged_patch(tmp_path: Path, level: int) -> None:
    base, update = forge_database("daily", 1, ONE), forge_patch("daily", 2, ONE, TWO, SCRIPT)
    built = build(tmp_path, base, [update], level=level)
    check(built)
    assert dict(members(built))["daily.ndb"] == TWO["daily.ndb"]
    names = [name for name, _ in members(built)]
    assert names == ["COPYING", "daily.info", "daily.cfg", "3986187.cbc", "daily.hdb", "daily.ndb"]
    payload = built[HEADER_SIZE:]
    assert payload.startswith(b"\x1f\x8b\x08\0\0\0\0\0" if level else b"COPYING")
    assert not level or len(gzip.decompress(payload)) % 512 == 0


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    base, update = forge_database("daily", 1, ONE), forge_patch("daily", 2, ONE, TWO, SCRIPT)
    built = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        built.append(build(tmp_path / name, base, [update], level=6))
    assert built[0] == built[1]


@pytest.mark.parametrize("level", [0, 6])
def test_a_cld_is_a_base(tmp_path: Path, level: int) -> None:
    base, update = forge_database("daily", 1, ONE), forge_patch("daily", 2, ONE, TWO, SCRIPT)
    (tmp_path / "first").mkdir()
    first = build(tmp_path / "first", base, [update], level=level)
    three = {**TWO, "daily.new": b"Nn\n"}
    del three["daily.hdb"]
    script = b"UNLINK daily.hdb\nOPEN daily.new\nADD Nn\nCLOSE\n"
    expected = ObjectId("daily", 3, Kind.CLD)
    built = build(tmp_path, first, [forge_patch("daily", 3, TWO, three, script)], expected, level)
    check(built, expected)
    assert dict(members(built)[2:]) == three


def test_no_patch_at_all_repacks_a_cvd(tmp_path: Path) -> None:
    check(build(tmp_path, forge_database("daily", 2, TWO), []))


def test_moved_lines(tmp_path: Path) -> None:
    after = {**ONE, "daily.ndb": b"Cc three\n", "daily.hdb": b"Xx\nYy\nAa one\nBb two\n"}
    script = b"MOVE daily.ndb daily.hdb 1 Aa 2 Bb\n"
    built = build(tmp_path, forge_database("daily", 1, ONE), [forge_patch("daily", 2, ONE, after, script)])
    assert dict(members(built)[2:]) == after


@pytest.mark.parametrize(
    ("patches", "reason"),
    [
        ([], r"\.info names version 1, not 2"),
        ([b""], "does not begin with ClamAV-Diff"),
        ([forge_patch("daily", 3, ONE, TWO, SCRIPT)], "patch to version 3 instead of 2"),
        ([forge_patch("daily", 2, ONE, TWO, SCRIPT)] * 2, "patch to version 2 instead of 3"),
        ([forge_cdiff("daily", 2)], r"\.info names version 1, not 2"),
        ([forge_cdiff("main", 2)], "not a file of daily"),
        ([forge_cdiff("daily", 2, b"UNLINK daily.info\n")], "no daily.info"),
        (
            [forge_cdiff("daily", 2, b"OPEN daily.info\nDEL 1 ClamAV\nCLOSE\n")],
            "does not begin with ClamAV-VDB",
        ),
        ([forge_cdiff("daily", 2, b"OPEN daily.info\nADD x\nCLOSE\n")], "does not end with a signature"),
        ([forge_patch("daily", 2, ONE, TWO, b"")], r"daily\.ndb has 23 bytes, not 28"),
        (
            [forge_patch("daily", 2, ONE, ONE, b"OPEN daily.hdb\nXCHG 1 X xX\nCLOSE\n")],
            "differs from its hash",
        ),
        ([forge_patch("daily", 2, ONE, ONE, b"UNLINK daily.hdb\n")], r"daily\.hdb is either missing or"),
        ([forge_patch("daily", 2, ONE, ONE, b"UNLINK COPYING\n")], "COPYING is either missing or"),
        (
            [forge_patch("daily", 2, ONE, ONE, b"OPEN daily.x\nADD x\nCLOSE\n")],
            r"daily\.x is either missing or",
        ),
        (
            [forge_patch("daily", 2, ONE, TWO, SCRIPT.replace(b"Bb", b"Bc"))],
            "patch to version 2: script edits",
        ),
        ([forge_patch("daily", 2, ONE, TWO, SCRIPT + b"RM x\n")], "patch to version 2: unknown command"),
    ],
)
def test_patches_that_do_not_lead_to_the_version(tmp_path: Path, patches: list[bytes], reason: str) -> None:
    with pytest.raises(InvalidObject, match=reason):
        build(tmp_path, forge_database("daily", 1, ONE), patches)


def test_keys_of_another_signer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidObject, match=r"wrong signature of \.info"):
        build(tmp_path, forge_database("daily", 2, TWO), [], keys=CLAMAV_KEYS)
    with pytest.raises(InvalidObject, match=r"wrong signature of \.info"):
        check(plain_cld(), keys=CLAMAV_KEYS)


@pytest.mark.parametrize("name", ["../daily.ndb", "/daily.ndb", "..", ".", "", ".patched", "daily.ndb", "-x"])
def test_names_in_a_base_that_are_no_file_of_the_workspace(tmp_path: Path, name: str) -> None:
    base = seal(2, payload_of([("COPYING", b"x"), ("daily.ndb", b"x"), (name, b"x")]))
    with pytest.raises(InvalidObject):
        build(tmp_path, base, [])
    assert {path.name for path in tmp_path.rglob("*")} <= {"workspace", "COPYING", "daily.ndb"}


def test_size_of_a_base_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats_members, "UNPACKED_LIMIT", 1000)
    with pytest.raises(InvalidObject, match="more than 1000 bytes"):
        build(tmp_path, forge_database("daily", 2, {"daily.ndb": bytes(1000)}), [])


def test_base_that_ends_early(tmp_path: Path) -> None:
    with pytest.raises(InvalidObject):
        build(tmp_path, forge_database("daily", 2, TWO)[:-9], [])


# Verified


def test_freshclams_own_file_verifies() -> None:
    check(read_testdata("test-6.cld"), TEST_6, CLAMAV_KEYS)


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (ObjectId("daily", 3, Kind.CLD), "names version 2, not 3"),
        (ObjectId("main", 2, Kind.CLD), r"holds daily\.info, not main\.info"),
    ],
)
def test_file_under_another_name_is_refused(expected: ObjectId, reason: str) -> None:
    check(plain_cld())
    with pytest.raises(InvalidObject, match=reason):
        check(plain_cld(), expected)


def test_cvd_is_no_cld() -> None:
    with pytest.raises(InvalidObject, match=r"differs from the first line of \.info"):
        check(forge_database("daily", 2, TWO))


INFO = forge_info("daily", 2, ONE)
COPYING = ("COPYING", b"x")
LISTED = list(ONE.items())


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("daily.info", INFO), COPYING, *LISTED], "daily.info in the wrong place"),
        ([("daily.info", INFO), *LISTED], "daily.info in the wrong place"),
        ([COPYING, COPYING, ("daily.info", INFO), *LISTED], "COPYING in the wrong place"),
        ([COPYING, *LISTED], "no daily.info"),
        ([COPYING, ("daily.info", INFO)], r"3986187\.cbc is missing"),
        ([COPYING, ("daily.info", INFO), *LISTED[1:]], r"daily\.ndb is missing"),
        ([COPYING, ("daily.info", INFO), *LISTED, LISTED[0]], r"daily\.ndb in the wrong place"),
        ([COPYING, ("daily.info", INFO), *LISTED, ("daily.info", INFO)], r"daily\.info in the wrong place"),
        ([COPYING, ("daily.info", INFO), *LISTED, ("daily-2.cdiff", b"x")], "is not listed"),
        ([COPYING, ("daily.info", INFO), *LISTED, ("freshclam.dat", b"x")], "is not listed"),
        ([COPYING, ("daily.info", INFO), *LISTED[1:], ("daily.ndb", b"x")], "has 1 bytes, not 23"),
        ([COPYING, ("daily.info", INFO), *LISTED[1:], ("daily.ndb", bytes(23))], "differs from its hash"),
        ([("COPYING", bytes(2**20 + 1)), ("daily.info", INFO), *LISTED], "COPYING of 1048577 bytes"),
    ],
)
def test_wrong_members(files: list[tuple[str, bytes]], reason: str) -> None:
    for payload in (packed(tar(*files)), tar(*files)):
        if payload.startswith((b"COPYING", b"\x1f\x8b")):
            with pytest.raises(InvalidObject, match=reason):
                check(header() + payload)


def test_surplus_bytes_are_refused() -> None:
    data = plain_cld()
    compressed = header() + packed(data[HEADER_SIZE:])
    check(compressed)
    for surplus in (b"\0", b"x", bytes(512), bytes(1024), packed(b"")):
        for candidate in (
            data + surplus,
            compressed + surplus,
            header() + packed(data[HEADER_SIZE:] + surplus),
        ):
            with pytest.raises(InvalidObject):
                check(candidate)


@pytest.mark.parametrize("length", [0, 511, 512, 600, 1000, -100, -1])
def test_truncated_file_is_refused(length: int) -> None:
    data = plain_cld()
    for candidate in (data, header() + packed(data[HEADER_SIZE:])):
        with pytest.raises(InvalidObject):
            check(candidate[:length])


@pytest.mark.parametrize("offset", range(10))
def test_no_byte_of_the_gzip_header_can_change(offset: int) -> None:
    data = bytearray(header() + packed(plain_cld()[HEADER_SIZE:]))
    data[HEADER_SIZE + offset] ^= 0x09
    with pytest.raises(InvalidObject):
        check(bytes(data))


@given(st.data())
def test_no_byte_can_change(data: st.DataObject) -> None:
    """But in COPYING, which comes first and which no signature covers."""
    changed = bytearray(read_testdata("test-6.cld"))
    copying = range(HEADER_SIZE + 512, HEADER_SIZE + 512 + 17992)
    offset = data.draw(st.integers(0, len(changed) - 1).filter(lambda offset: offset not in copying))
    changed[offset] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidObject):
        check(bytes(changed), TEST_6, CLAMAV_KEYS)


COMPRESSED = header() + packed(plain_cld()[HEADER_SIZE:])


@given(st.integers(HEADER_SIZE, len(COMPRESSED) - 1), st.integers(1, 255))
def test_no_byte_of_a_compressed_file_changes_what_is_in_it(offset: int, mask: int) -> None:
    """The same contents can be compressed in many ways; the sum behind them covers COPYING, too."""
    changed = bytearray(COMPRESSED)
    changed[offset] ^= mask
    try:
        check(bytes(changed))
    except InvalidObject:
        return
    assert members(bytes(changed)) == members(COMPRESSED)


@given(st.binary(max_size=1500))
def test_any_payload_is_refused(payload: bytes) -> None:
    info = tar(COPYING, ("daily.info", INFO))
    for candidate in (payload, packed(payload), info + payload, packed(info + payload), b"COPYING" + payload):
        with pytest.raises(InvalidObject):
            check(header() + candidate)
