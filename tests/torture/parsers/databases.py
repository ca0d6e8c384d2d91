"""ClamAV's signed files, and the bundles in which they travel."""

from __future__ import annotations

import base64
import gzip
import io
import tarfile
import tempfile
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from clamproxy.bundle import BundleError
from clamproxy.bundle.manifest import Manifest
from clamproxy.bundle.tar import TarError, read_members
from clamproxy.cache.store import Store
from clamproxy.formats.cdiff import CdiffContainer, iter_commands, verify_cdiff
from clamproxy.formats.cld import build_cld, verify_cld
from clamproxy.formats.codesign import parse_sign
from clamproxy.formats.cvd import read_info, verify_cvd
from clamproxy.formats.freshclam_dat import FreshclamDat
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.info import Info
from clamproxy.formats.members import iter_members, open_payload
from clamproxy.formats.patching import apply_commands, patch_info
from clamproxy.formats.verification import InvalidObject, check_beginning, verify
from clamproxy.objects import Kind, ObjectId
from tests.support.bundle_parts import exported, imported, unpacked
from tests.support.forge import (
    forge_cdiff,
    forge_database,
    forge_info,
    forge_keys,
    forge_patch,
    forge_sign,
    payload_of,
)
from tests.support.stored import put_cvd
from tests.torture.parsers.parser import Parser

_KEYS = forge_keys().trusted
_CVD, _CDIFF, _CLD, _SIGN = (
    ObjectId("daily", version, kind)
    for version, kind in ((1, Kind.CVD), (2, Kind.CDIFF), (2, Kind.CLD), (1, Kind.CVD_SIGN))
)
_FILES = {"daily.ndb": b"Aa one\nBb two\nCc three\n", "daily.hdb": b"Xx\nYy\n"}
_DATABASE = forge_database("daily", 1, _FILES)
_INFO = forge_info("daily", 1, _FILES)
_SCRIPTS = (
    b"OPEN daily.ndb\nDEL 2 Bb\nXCHG 3 Cc Cc drei\nADD Dd four\nCLOSE\nUNLINK daily.hdb\n",
    b"MOVE daily.ndb daily.hdb 1 Aa 2 Bb\nOPEN daily.info\nXCHG 1 ClamAV x\nCLOSE\n",
    b"OPEN ..\nADD x\nCLOSE\nOPEN COPYING\nADD x\nCLOSE\n",
)


def _header(data: bytes) -> None:
    for kind in Kind:
        try:
            check_beginning(kind, data)
        except InvalidObject:
            continue
    header = CvdHeader.parse(data)
    assert header.info_line.isprintable()


def _payload(data: bytes, *, exact: bool) -> None:
    """A tar, behind a header that isn't looked at."""
    file = io.BytesIO(bytes(HEADER_SIZE) + data)
    for member in iter_members(open_payload(file), exact=exact):
        for _ in member.pieces():
            pass


def _script(data: bytes) -> None:
    """A script as it would be carried out if it were signed."""
    cdiff = io.BytesIO(b"ClamAV-Diff:2:0:" + gzip.compress(data, 1) + b":" + b"x" * 342)
    container = CdiffContainer.parse(cdiff)
    with suppress(InvalidObject):
        patch_info(_INFO, iter_commands(cdiff, container, "daily"), "daily")
    with tempfile.TemporaryDirectory() as outside:
        directory = Path(outside, "workspace")
        directory.mkdir()
        for name, content in _FILES.items():
            (directory / name).write_bytes(content)
        try:
            apply_commands(iter_commands(cdiff, container, "daily"), directory)
        finally:
            assert [path.name for path in Path(outside).iterdir()] == ["workspace"]


def _sign(data: bytes) -> None:
    parse_sign(data)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        verify(Path(file.name), _SIGN, _KEYS)


def _tar(data: bytes) -> None:
    for member in read_members(io.BytesIO(data)):
        assert member.size >= 0
        for _ in member.pieces():
            pass


@cache
def _store() -> Store:
    return Store(Path(_place().name, "cache"))


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _bundle(data: bytes) -> None:
    """An import, after which nothing may be outside the cache, and nothing that isn't verified inside."""
    try:
        imported(_store(), data)
    finally:
        assert [path.name for path in Path(_place().name).iterdir()] == ["cache"]
        assert {object_id.database for object_id in _store().sizes()} <= {"daily"}


def _forged_bundle() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory))
        try:
            put_cvd(store, 1, _DATABASE, "daily")
            return exported(store)
        finally:
            store.close()


def _odd(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: str) -> bytes:
    """The bundle with one more member."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    member.linkname = more.get("linkname", "")
    return _BUNDLE[:-1024] + member.tobuf(tarfile.USTAR_FORMAT, "latin-1") + bytes(1024)


def _odd_ones() -> tuple[bytes, ...]:
    names = (
        "../x",
        "/tmp/x",
        "daily-1.cvd",
        "manifest.json",
        "lock",
        ".",
        "a/b",
        "\xe4",
        "daily-1.cvd\0.sign",
    )
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
    records = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE)
    return (
        *map(_odd, names),
        *(_odd("daily-2.cdiff", kind, linkname="../../x") for kind in (*kinds, *records)),
        _odd("daily-2.cdiff", size=8 * 2**30 - 1),
    )


def _built() -> bytes:
    """A CLD of version 2."""
    with tempfile.TemporaryDirectory() as directory:
        workspace, target = Path(directory, "workspace"), Path(directory, "target")
        workspace.mkdir()
        patch = forge_patch("daily", 2, _FILES, _FILES, b"")
        build_cld(io.BytesIO(_DATABASE), [io.BytesIO(patch)], _CLD, workspace, target, _KEYS, level=1)
        return target.read_bytes()


_BUNDLE = _forged_bundle()

PARSERS = (
    Parser("CVD header", _header, (_DATABASE[:HEADER_SIZE],), (InvalidObject,)),
    Parser("CVD", lambda data: verify_cvd(io.BytesIO(data), _CVD, _KEYS), (_DATABASE,), (InvalidObject,)),
    Parser(
        "tar of a CVD",
        partial(_payload, exact=False),
        (gzip.decompress(_DATABASE[HEADER_SIZE:]), _DATABASE[HEADER_SIZE:]),
        (InvalidObject,),
    ),
    Parser(
        "tar of a CLD",
        partial(_payload, exact=True),
        (gzip.decompress(_DATABASE[HEADER_SIZE:]), payload_of([("COPYING", b"x"), ("daily.info", _INFO)])),
        (InvalidObject,),
    ),
    Parser(
        ".info within a CVD",
        lambda data: read_info(io.BytesIO(data), "daily"),
        (_DATABASE,),
        (InvalidObject,),
    ),
    Parser("CLD", lambda data: verify_cld(io.BytesIO(data), _CLD, _KEYS), (_built(),), (InvalidObject,)),
    Parser(".info", Info.parse, (_INFO,), (InvalidObject,)),
    Parser(
        "cdiff",
        lambda data: verify_cdiff(io.BytesIO(data), _CDIFF, _KEYS),
        (forge_cdiff("daily", 2), forge_patch("daily", 2, _FILES, _FILES, _SCRIPTS[0])),
        (InvalidObject,),
    ),
    Parser("script of a cdiff", _script, _SCRIPTS, (InvalidObject,)),
    Parser(
        "signature in ClamAV's digits",
        lambda data: (_KEYS.cvd.verifies_md5(bytes(16), data), _KEYS.cdiff.verifies_sha256(bytes(32), data)),
        (b"x" * 342, b"a" * 172, base64.b64encode(bytes(256))),
    ),
    Parser(".sign", _sign, (forge_sign(_DATABASE), b"#clamsign-1.0\n1:2:pkcs7-pem:MIIB\n"), (InvalidObject,)),
    Parser(
        "freshclam.dat",
        FreshclamDat.parse,
        (b"FreshClamData\1\0\0\x0012345678-9abc-4def-8012-3456789abcde\0" + bytes(7) + b"\xff" * 8,),
        (InvalidObject,),
    ),
    Parser(
        "name of an object",
        lambda data: ObjectId.parse(data.decode("latin-1")),
        (b"daily-1.cvd.sign",),
        (ValueError,),
    ),
    Parser("tar of a bundle", _tar, (_BUNDLE, *_odd_ones()), (TarError,)),
    Parser("manifest of a bundle", Manifest.parse, (unpacked(_BUNDLE)["manifest.json"],), (BundleError,)),
    Parser("bundle", _bundle, (_BUNDLE, *_odd_ones()), (BundleError,)),
)
