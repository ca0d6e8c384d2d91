"""The two gates: the first bytes of a body, and the finished file."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamproxy.formats.signatures import CLAMAV_KEYS
from clamproxy.formats.verification import InvalidObject, check_beginning, verify
from clamproxy.objects import Kind, ObjectId
from tests.support.data import (
    CDIFF_NAMES,
    CVD_NAMES,
    SIGN_NAMES,
    keys_of_testdata,
    read_testdata,
    require_testdata,
)
from tests.support.forge import ForgeKeys, forge_cdiff, forge_cvd, forge_keys, forge_sign

ALL_NAMES = [*CVD_NAMES, *CDIFF_NAMES, *SIGN_NAMES, "test-6.cld"]
HTML = b"<!DOCTYPE html><html><title>Sign in to the guest network</title></html>" * 20


@pytest.mark.parametrize("name", ALL_NAMES)
def test_clamavs_own_files_verify(name: str) -> None:
    verify(require_testdata() / name, ObjectId.parse(name), keys_of_testdata())


@pytest.mark.parametrize("name", ALL_NAMES)
def test_no_file_passes_for_another(name: str) -> None:
    """Except a .sign, which names nothing, for another .sign."""
    path = require_testdata() / name
    for other in ALL_NAMES:
        if other != name and not (name in SIGN_NAMES and other in SIGN_NAMES):
            with pytest.raises(InvalidObject):
                verify(path, ObjectId.parse(other), keys_of_testdata())


def test_forged_files_verify_with_keys_of_another_process(tmp_path: Path) -> None:
    forge_keys().save(tmp_path / "keys")
    trusted = ForgeKeys.load(tmp_path / "keys").trusted
    forge_cvd(tmp_path / "cvd", "daily", 7)
    (tmp_path / "cdiff").write_bytes(forge_cdiff("daily", 7))
    (tmp_path / "cvd.sign").write_bytes(forge_sign())
    for kind in (Kind.CVD, Kind.CDIFF, Kind.CVD_SIGN):
        verify(tmp_path / kind, ObjectId("daily", 7, kind), trusted)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.CDIFF])
def test_empty_file_is_refused(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(InvalidObject):
        verify(path, ObjectId("daily", 7, kind), CLAMAV_KEYS)


def test_empty_cdiff_is_an_object(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    verify(path, ObjectId("daily", 7, Kind.CDIFF), CLAMAV_KEYS)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("data", [HTML, gzip.compress(HTML, mtime=0), b"error code: 1020"])
def test_error_pages_are_refused(tmp_path: Path, kind: Kind, data: bytes) -> None:
    path = tmp_path / "page"
    path.write_bytes(data)
    with pytest.raises(InvalidObject):
        check_beginning(kind, data)
    with pytest.raises(InvalidObject):
        verify(path, ObjectId("daily", 7, kind), CLAMAV_KEYS)


def test_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "missing", ObjectId("daily", 7, Kind.CVD), CLAMAV_KEYS)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_beginnings_of_objects_pass_at_any_length(name: str) -> None:
    data = read_testdata(name)
    for length in (*range(20), 511, 512, 513, len(data)):
        check_beginning(ObjectId.parse(name).kind, data[:length])


@pytest.mark.parametrize(
    ("kind", "beginning"),
    [
        (Kind.CVD, b"X"),
        (Kind.CVD, b"ClamAV-Diff:"),
        (Kind.CVD, b"ClamAV-VDB;"),
        (Kind.CVD, b"ClamAV-VDB:".ljust(512)),
        (Kind.CVD, b"ClamAV-VDB:1:1:1:1:X:X:b:1".ljust(512)),
        (Kind.CLD, b"ClamAV-VDB:".ljust(512)),
        (Kind.CDIFF, b"ClamAV-VDB:"),
        (Kind.CDIFF, b"ClamAV-"[::-1]),
        (Kind.CVD_SIGN, b"ClamAV-VDB:"),
        (Kind.CDIFF_SIGN, b"#clamsing"),
    ],
)
def test_wrong_beginnings(kind: Kind, beginning: bytes) -> None:
    with pytest.raises(InvalidObject):
        check_beginning(kind, beginning)


@given(
    st.sampled_from(Kind),
    st.sampled_from([b"", b"ClamAV-VDB:", b"ClamAV-Diff:", b"#clamsign-1.0\n"]),
    st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, kind: Kind, magic: bytes, data: st.DataObject) -> None:
    """Only an empty cdiff passes by chance, and nothing but InvalidObject ever comes out."""
    content = magic + data.draw(st.binary(max_size=1000))
    path = tmp_path / "any"
    path.write_bytes(content)
    with contextlib.suppress(InvalidObject):
        check_beginning(kind, content)
    if kind is Kind.CDIFF and not content:
        return
    with pytest.raises(InvalidObject) as refusal:
        verify(path, ObjectId("daily", 7, kind), CLAMAV_KEYS)
    assert "\n" not in str(refusal.value)
