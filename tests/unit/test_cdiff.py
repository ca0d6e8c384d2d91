"""The container of a cdiff, its script, and what a file must be to pass for one."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats import cdiff
from clamproxy.formats.cdiff import (
    Add,
    CdiffContainer,
    Close,
    Command,
    Delete,
    Move,
    Open,
    Replace,
    Unlink,
    iter_commands,
    verify_cdiff,
)
from clamproxy.formats.signatures import CLAMAV_KEYS, InvalidObject, TrustedKeys
from clamproxy.objects import Kind, ObjectId
from tests.support.data import CDIFF_NAMES, read_testdata
from tests.support.forge import forge_cdiff, forge_keys, seal_cdiff

DAILY_7 = ObjectId("daily", 7, Kind.CDIFF)
TEST_3 = ObjectId("test", 3, Kind.CDIFF)
KEYS = forge_keys().trusted


def check(data: bytes, expected: ObjectId = DAILY_7, keys: TrustedKeys = KEYS) -> None:
    verify_cdiff(io.BytesIO(data), expected, keys)


def commands(data: bytes, database: str) -> list[Command]:
    file = io.BytesIO(data)
    return list(iter_commands(file, CdiffContainer.parse(file), database))


@pytest.mark.parametrize("name", CDIFF_NAMES)
def test_clamavs_own_files_verify(name: str) -> None:
    check(read_testdata(name), ObjectId.parse(name), CLAMAV_KEYS)


@pytest.mark.parametrize("name", CDIFF_NAMES)
def test_container(name: str) -> None:
    data = read_testdata(name)
    container = CdiffContainer.parse(io.BytesIO(data))
    script = gzip.decompress(data[container.script_start : container.script_end])
    assert container.version == ObjectId.parse(name).version
    assert container.script_size == len(script)
    assert data.endswith(b":" + container.dsig)


def test_commands_of_a_real_patch() -> None:
    first, second, *_, last = commands(read_testdata("test-2.cdiff"), "test")
    line = b"ClamAV-VDB:22 Jun 2021 16-55 -0400:2:0:81:X:X:micasnyd:1624395301"
    assert (first, last) == (Open("test.info"), Close())
    assert second == Replace(1, b"ClamAV-VDB:22", line)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"OPEN daily.ndb", Open("daily.ndb")),
        (b"OPEN daily.my_rules.yar", Open("daily.my_rules.yar")),
        (b"OPEN COPYING", Open("COPYING")),
        (b"ADD Some.Name:0:*: 00 ", Add(b"Some.Name:0:*: 00 ")),
        (b"ADD ", Add(b"")),
        (b"ADD \xff\x00", Add(b"\xff\x00")),
        (b"OPEN 3986187.cbc", Open("3986187.cbc")),
        (b"DEL 12 Some.Na", Delete(12, b"Some.Na")),
        (b"DEL 12 Some.Na me", Delete(12, b"Some.Na")),
        (b"XCHG 3 Old.Na New line: with spaces", Replace(3, b"Old.Na", b"New line: with spaces")),
        (b"CLOSE", Close()),
        (b"MOVE daily.a daily.b 1 Aa 20 Bb", Move("daily.a", "daily.b", 1, b"Aa", 20, b"Bb")),
        (b"MOVE daily.a daily.b 1 Aa 20 Bb Cc", Move("daily.a", "daily.b", 1, b"Aa", 20, b"Bb")),
        (b"UNLINK daily.old", Unlink("daily.old")),
    ],
)
def test_commands(line: bytes, command: Command) -> None:
    data = forge_cdiff("daily", 7, b"#a comment\n" + line + b"\n")
    assert commands(data, "daily") == [command]
    check(data)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (b"\n", "unknown command"),
        (b"open daily.ndb\n", "unknown command"),
        (b"RENAME daily.a daily.b\n", "unknown command"),
        (b"CLOSE \n", "unknown command"),
        (b"ADD\n", "unknown command"),
        (b"\xff\xfe\n", "unknown command"),
        (b"<html>\n", "unknown command"),
        (b"OPEN main.ndb\n", "changes main.ndb, which is not a file of daily"),
        (b"OPEN dailyx.ndb\n", "not a file of daily"),
        (b"OPEN \n", "malformed file name"),
        (b"OPEN daily.ndb x\n", "malformed file name"),
        (b"OPEN ../daily.ndb\n", "malformed file name"),
        (b"OPEN daily./etc/passwd\n", "malformed file name"),
        (b"UNLINK main.ndb\n", "not a file of daily"),
        (b"MOVE daily.a main.b 1 Aa 2 Bb\n", "not a file of daily"),
        (b"MOVE main.a daily.b 1 Aa 2 Bb\n", "not a file of daily"),
        (b"MOVE daily.a daily.b 1 Aa 2\n", "too few arguments"),
        (b"DEL 1\n", "too few arguments"),
        (b"DEL x Aa\n", "malformed line number"),
        (b"DEL 0 Aa\n", "malformed line number"),
        (b"XCHG 1 Aa\n", "too few arguments"),
        (b"XCHG -1 Aa Bb\n", "malformed line number"),
        (b"CLOSE", "unfinished line"),
        (b"CLOSE\nADD x", "unfinished line"),
    ],
)
def test_well_signed_script_with_wrong_commands(script: bytes, reason: str) -> None:
    with pytest.raises(InvalidObject, match=reason):
        check(forge_cdiff("daily", 7, script))


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"CLOSE\n",
        gzip.compress(b"CLOSE\n", mtime=0)[:-1],
        gzip.compress(b"CLOSE\n", mtime=0)[:-12],
        gzip.compress(b"CLOSE\n", mtime=0) + b"rubbish",
        zlib.compress(b"CLOSE\n"),
        gzip.compress(b"CLOSE\n", mtime=0)[:-8] + bytes(8),
        b"\x1f\x8b\x08\x00" + bytes(6) + b"\xff" * 20,
    ],
)
def test_well_signed_stream_that_is_damaged(stream: bytes) -> None:
    with pytest.raises(InvalidObject):
        check(seal_cdiff(7, stream))


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = forge_cdiff("daily", 7, b"ADD " + b"x" * 2000 + b"\n")
    check(data)
    monkeypatch.setattr(cdiff, "LINE_LIMIT", 1000)
    with pytest.raises(InvalidObject, match="endless"):
        check(data)


def test_empty_file_is_a_cdiff() -> None:
    check(b"")


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (ObjectId("test", 4, Kind.CDIFF), "names version 3, not 4"),
        (ObjectId("daily", 3, Kind.CDIFF), "changes test.info, which is not a file of daily"),
    ],
)
def test_well_signed_file_under_another_name_is_refused(expected: ObjectId, reason: str) -> None:
    """The signature binds neither name nor version: clients would apply it, and fail."""
    with pytest.raises(InvalidObject, match=reason):
        check(read_testdata("test-3.cdiff"), expected, CLAMAV_KEYS)


@pytest.mark.parametrize(
    "data",
    [
        b"ClamAV-Diff:7:1:",
        b"ClamAV-Diff:" + b"1" * 400,
        b"ClamAV-Diff:x:1:" + b"a" * 400,
        b"ClamAV-Diff:0:1:" + b"a" * 400,
        b"ClamAV-Diff:2147483648:1:" + b"a" * 400,
        b"ClamAV-Diff:7:1:" + b"a" * 400,
        b"ClamAV-Diff:7:1:" + b"a" * 400 + b":",
        b"ClamAV-Diff:7:1:" + b"a" * 334,
        b"<html>" + b"x" * 500,
        b"clamav-diff:7:1:" + b"a" * 400,
    ],
)
def test_files_that_are_something_else(data: bytes) -> None:
    with pytest.raises(InvalidObject):
        check(data)


def test_gzip_encoded_file_is_refused() -> None:
    with pytest.raises(InvalidObject, match="does not begin with"):
        check(gzip.compress(read_testdata("test-3.cdiff")), TEST_3, CLAMAV_KEYS)


@pytest.mark.parametrize("length", [1, 12, 100, 349, 350, 1000, 1636])
def test_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(InvalidObject):
        check(read_testdata("test-3.cdiff")[:length], TEST_3, CLAMAV_KEYS)


@pytest.mark.parametrize("surplus", [b"a", b"\n", b"\0", b":", b":a", b"a" * 400])
def test_extended_file_is_refused(surplus: bytes) -> None:
    with pytest.raises(InvalidObject):
        check(read_testdata("test-3.cdiff") + surplus, TEST_3, CLAMAV_KEYS)


def test_keys_of_another_signer_are_refused() -> None:
    with pytest.raises(InvalidObject, match="wrong signature"):
        check(forge_cdiff("daily", 7), keys=CLAMAV_KEYS)


@given(st.data())
def test_no_byte_can_change(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CDIFF_NAMES))
    changed = bytearray(read_testdata(name))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidObject):
        check(bytes(changed), ObjectId.parse(name), CLAMAV_KEYS)


@given(st.binary(max_size=200))
def test_any_script_is_read_or_refused(script: bytes) -> None:
    for stream in (script, gzip.compress(script), gzip.compress(b"OPEN daily.a\n" + script)):
        data = b"ClamAV-Diff:7:0:" + stream + b":" + b"a" * 340
        with contextlib.suppress(InvalidObject):
            assert all(commands(data, "daily"))
