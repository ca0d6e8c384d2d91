"""The signed list of a database's files."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.formats.cvd import read_info
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.formats.info import Info, ListedFile, verify_info
from clamproxy.formats.signatures import CLAMAV_KEYS, InvalidObject
from tests.support.data import CVD_NAMES, read_testdata
from tests.support.forge import forge_info, forge_keys, info_line, info_member

HASH = "0748b843a1cea3242d70531083b84f877d8de398cfefe65509b5d3bb1e3bcb57"
KEYS = forge_keys().trusted


def listing(*lines: str, first: str = info_line(7)) -> bytes:
    """A well-signed member with any lines."""
    return info_member("\n".join([first, *lines]), [], forge_keys())


@pytest.mark.parametrize("name", [*CVD_NAMES, "test-6.cld"])
def test_clamavs_own_members(name: str) -> None:
    data = read_info(io.BytesIO(read_testdata(name)), "test")
    info = verify_info(data, "test", CLAMAV_KEYS)
    assert info == Info.parse(data)
    assert info.raw == data
    assert f"test-{info.header.version}" == name.partition(".")[0]
    assert info.files["test.ldb"].size in (44, 176)


def test_header_is_that_of_the_cld() -> None:
    data = read_testdata("test-6.cld")
    assert Info.parse(read_info(io.BytesIO(data), "test")).header.raw == data[:HEADER_SIZE]


def test_listed_files() -> None:
    info = verify_info(forge_info("daily", 7, {"daily.ndb": b"", "daily.hdb": b"x"}), "daily", KEYS)
    assert list(info.files) == ["daily.ndb", "daily.hdb"]
    assert info.files["daily.ndb"] == ListedFile(
        0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


@pytest.mark.parametrize("name", ["daily.cfg", "daily.my_rules.yar", "3986187.cbc", "last.hdb"])
def test_names_that_may_be_listed(name: str) -> None:
    assert list(verify_info(listing(f"{name}:44:{HASH}"), "daily", KEYS).files) == [name]


@pytest.mark.parametrize(
    "lines",
    [
        [""],
        ["daily.ndb"],
        ["daily.ndb:44"],
        [f"daily.ndb::{HASH}"],
        [f"daily.ndb:-1:{HASH}"],
        [f"daily.ndb: 44:{HASH}"],
        [f"daily.ndb:0x44:{HASH}"],
        [f"daily.ndb:4444444444444:{HASH}"],
        [f"daily.ndb:44:{HASH}0"],
        [f"daily.ndb:44:{HASH[1:]}"],
        [f"daily.ndb:44:{HASH.upper()}"],
        [f"daily.ndb:44:{HASH}:"],
        [f":44:{HASH}"],
        [f"../daily.ndb:44:{HASH}"],
        [f".daily.ndb:44:{HASH}"],
        [f"daily./ndb:44:{HASH}"],
        [f"daily.{'x' * 100}:44:{HASH}"],
        [f"daily.ndb:44:{HASH}", f"daily.ndb:44:{HASH}"],
        [f"daily.ndb:44:{HASH}", f"daily.ndb:45:{HASH}"],
        [f"DSIG:44:{HASH}"],
    ],
)
def test_malformed_lines(lines: list[str]) -> None:
    with pytest.raises(InvalidObject):
        verify_info(listing(*lines), "daily", KEYS)


@pytest.mark.parametrize("name", ["main.ndb", "dailyx.ndb", "daily", "COPYING", "daily.info", "main.info"])
def test_files_of_another_database(name: str) -> None:
    with pytest.raises(InvalidObject, match=f"lists {name}, which is not a file of daily"):
        verify_info(listing(f"{name}:44:{HASH}"), "daily", KEYS)


@pytest.mark.parametrize(
    "first",
    [
        "",
        "ClamAV-VDB",
        info_line(7) + " ",
        info_line(7).replace(":X:X:", f":{'a' * 32}:X:"),
        info_line(7).replace(":X:X:", ":X:Dou6:"),
        info_line(7).replace("forge", "f" * 500),
        info_line(7).replace(":81:", ":x:"),
    ],
)
def test_malformed_first_lines(first: str) -> None:
    with pytest.raises(InvalidObject):
        verify_info(listing(first=first), "daily", KEYS)


def test_nothing_may_follow_the_signature() -> None:
    """Nobody signs what is there."""
    for surplus in (b"\n", b"x", f"daily.ndb:44:{HASH}\n".encode(), b"DSIG:a\n"):
        with pytest.raises(InvalidObject):
            verify_info(listing() + surplus, "daily", KEYS)
    with pytest.raises(InvalidObject):
        verify_info(listing().rstrip(b"\n"), "daily", KEYS)


def test_keys_of_another_signer_are_refused() -> None:
    with pytest.raises(InvalidObject, match=r"wrong signature of \.info"):
        verify_info(listing(), "daily", CLAMAV_KEYS)


@given(st.data())
def test_no_byte_can_change(data: st.DataObject) -> None:
    changed = bytearray(read_info(io.BytesIO(read_testdata("test-6.cvd")), "test"))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidObject):
        verify_info(bytes(changed), "test", CLAMAV_KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    for candidate in (data, data + b"\nDSIG:abc\n", info_line(7).encode() + b"\n" + data):
        with pytest.raises(InvalidObject):
            verify_info(candidate, "daily", KEYS)
