"""The mirror in cvdupdate's layout."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from clamproxy.cache.store import Store
from clamproxy.formats.signatures import CLAMAV_KEYS, TrustedKeys
from clamproxy.formats.verification import verify
from clamproxy.mirroring import LOCK_FILE, MirrorError, MirrorReport, _locked, update_mirror
from clamproxy.objects import Kind, ObjectId
from tests.support.data import CDIFF_NAMES, SIGN_NAMES, read_testdata
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff, forge_keys, forge_sign
from tests.support.killing import killed_at
from tests.support.stored import cdiff, cvd, put, put_cvd, read, sign, stime_of

KEYS = forge_keys().trusted
DNS = "1.4.3:62:{}:1759500000:1:90:49192:339"

type Release = Callable[..., None]


@pytest.fixture
def release(store: Store, make_cvd: MakeCvd) -> Release:
    """Puts a CVD and the cdiffs up to a version into the store, with their signatures."""

    def do(version: int, patches: range | None = None, database: str = "daily") -> None:
        body = make_cvd(version, database=database)
        put_cvd(store, version, body, database)
        put(store, ObjectId(database, version, Kind.CVD_SIGN), forge_sign(body))
        for patch in range(version - 3, version + 1) if patches is None else patches:
            if store.open(cdiff(patch, database)) is None:
                body = forge_cdiff(database, patch)
                put(store, cdiff(patch, database), body, last_modified=1.7e9 + patch)
                put(store, ObjectId(database, patch, Kind.CDIFF_SIGN), forge_sign(body))

    return do


def update(store: Store, directory: Path, *databases: str, keep: int = 3, version: int = 0) -> MirrorReport:
    return update_mirror(store, directory, databases or ["daily"], keep, DNS.format(version))


def listed(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {LOCK_FILE}


def layout(version: int, patches: range, database: str = "daily") -> set[str]:
    names = {f"{database}-{patch}.cdiff" for patch in patches}
    names |= {f"{name}.sign" for name in names}
    return names | {f"{database}.cvd", f"{database}-{version}.cvd.sign", "dns.txt"}


def assert_complete(directory: Path, keys: TrustedKeys = KEYS, database: str = "daily") -> None:
    """Every file is what its name says; what dns.txt advertises can be had from what is here."""
    for path in directory.iterdir():
        if path.name.startswith(".") or path.name == "dns.txt":
            continue
        version = version_in(path) if path.suffix == ".cvd" else None
        name = path.name if version is None else f"{path.stem}-{version}.cvd"
        verify(path, ObjectId.parse(name), keys)
        assert path.stat().st_mode & 0o444 == 0o444
        if version is not None:
            assert (directory / f"{name}.sign").exists()
    if (directory / "dns.txt").exists():
        advertised = int((directory / "dns.txt").read_text().split(":")[2])
        reached = version_in(directory / f"{database}.cvd")
        assert reached is not None
        while (directory / f"{database}-{reached + 1}.cdiff").exists():
            reached += 1
        assert advertised <= reached


def version_in(path: Path) -> int:
    return int(path.read_bytes()[:512].split(b":")[2])


def test_the_layout(tmp_path: Path, store: Store, release: Release) -> None:
    release(7, range(3, 10))
    report = update(store, tmp_path / "a" / "mirror", version=9)
    mirror = tmp_path / "a" / "mirror"
    assert listed(mirror) == layout(7, range(7, 10))
    assert (mirror / "dns.txt").read_text() == DNS.format(9) + "\n"
    assert_complete(mirror)
    assert (mirror / "daily.cvd").read_bytes() == read(store, cvd(7))
    assert (report.versions, report.removed, report.warnings) == ({"daily": 7}, [], [])
    assert set(report.added) == listed(mirror) - {"dns.txt"}


def test_files_of_clamav(tmp_path: Path, store: Store) -> None:
    for name in ["test-6.cvd", *CDIFF_NAMES, *SIGN_NAMES]:
        put(store, ObjectId.parse(name), read_testdata(name))
    update_mirror(store, tmp_path / "mirror", ["test"], 2, "text")
    assert listed(tmp_path / "mirror") == layout(6, range(5, 7), "test")
    for name in ("test-5.cdiff", "test-6.cdiff", "test-6.cvd.sign"):
        assert (tmp_path / "mirror" / name).read_bytes() == read_testdata(name)
    verify(tmp_path / "mirror" / "test.cvd", ObjectId("test", 6, Kind.CVD), CLAMAV_KEYS)


def test_a_release_supersedes_the_one_before(tmp_path: Path, store: Store, release: Release) -> None:
    mirror = tmp_path / "mirror"
    release(5)
    update(store, mirror, version=5)
    release(6)
    report = update(store, mirror, version=6)
    # Who has just fetched version 5 may still ask for its signature.
    assert listed(mirror) == layout(6, range(4, 7)) | {"daily-5.cvd.sign"}
    assert report.removed == ["daily-3.cdiff", "daily-3.cdiff.sign"]
    report = update(store, mirror, version=6)
    assert (report.added, report.removed) == ([], ["daily-5.cvd.sign"])
    assert listed(mirror) == layout(6, range(4, 7))
    assert update(store, mirror, version=6) == MirrorReport({"daily": 6})


WRONG = forge_sign(b"another file")


@pytest.mark.parametrize("signature", [sign(cvd(6)), sign(cdiff(5))], ids=lambda one: one.file_name)
def test_a_signature_of_another_file_is_replaced(
    tmp_path: Path, store: Store, release: Release, signature: ObjectId
) -> None:
    """As an earlier version took it over from the cache."""
    mirror = tmp_path / "mirror"
    release(6)
    right = read(store, signature) or b""
    update(store, mirror, version=6)
    (mirror / signature.file_name).unlink()
    (mirror / signature.file_name).write_bytes(WRONG)
    assert update(store, mirror, version=6).added == [signature.file_name]
    assert (mirror / signature.file_name).read_bytes() == right


@pytest.mark.parametrize("signature", [sign(cvd(6)), sign(cdiff(5))], ids=lambda one: one.file_name)
@pytest.mark.parametrize("cached", [WRONG, None])
def test_a_signature_of_another_file_is_removed(
    tmp_path: Path, store: Store, release: Release, signature: ObjectId, cached: bytes | None
) -> None:
    """Clients do without one rather than with that."""
    mirror = tmp_path / "mirror"
    release(6)
    store.drop(signature)
    if cached is not None:
        put(store, signature, cached)
    update(store, mirror, version=6)
    (mirror / signature.file_name).write_bytes(WRONG)
    report = update(store, mirror, version=6)
    assert (report.added, report.removed) == ([], [signature.file_name])
    assert listed(mirror) == layout(6, range(4, 7)) - {signature.file_name}


def test_a_signature_of_a_patch_that_only_the_mirror_has(
    tmp_path: Path, store: Store, release: Release
) -> None:
    mirror = tmp_path / "mirror"
    release(6)
    update(store, mirror, version=6)
    for version in (4, 5):
        store.drop(cdiff(version))
        store.drop(sign(cdiff(version)))
    (mirror / "daily-4.cdiff.sign").unlink()
    (mirror / "daily-4.cdiff.sign").write_bytes(WRONG)
    assert update(store, mirror, version=6).removed == ["daily-4.cdiff.sign"]
    assert "daily-5.cdiff.sign" in listed(mirror)


@pytest.mark.parametrize("keep", [0, 1])
def test_patches_after_the_cvd_are_always_kept(
    tmp_path: Path, store: Store, release: Release, keep: int
) -> None:
    release(5, range(3, 9))
    update(store, tmp_path / "mirror", keep=keep, version=8)
    assert listed(tmp_path / "mirror") == layout(5, range(6, 9))


def test_patches_that_only_the_mirror_has_stay(tmp_path: Path, store: Store, release: Release) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for version in (3, 8):
        (mirror / f"daily-{version}.cdiff").write_bytes(forge_cdiff("daily", version))
    release(7, range(6, 8))
    update(store, mirror)
    assert listed(mirror) == layout(7, range(6, 8)) | {"daily-8.cdiff"}


def test_foreign_files_stay(tmp_path: Path, store: Store, release: Release) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "daily-1.cdiff").mkdir(parents=True)
    foreign = {"index.html", "daily-1.cvd", "daily.cld", "daily-01.cdiff", "dailyx-1.cdiff", "main-1.cdiff"}
    foreign |= {".x.part", "daily-1.cdiff.bak", "main.cvd"}
    for name in foreign:
        (mirror / name).write_bytes(b"mine")
    (mirror / ".daily.cvd.clamproxy-part").write_bytes(b"of a killed run")
    release(7)
    update(store, mirror, keep=1)
    assert listed(mirror) == layout(7, range(7, 8)) | foreign | {"daily-1.cdiff"}


def test_never_backwards(tmp_path: Path, store: Store, release: Release, make_cvd: MakeCvd) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "daily.cvd").write_bytes(make_cvd(9))
    (mirror / "daily-1.cdiff").write_bytes(b"")
    (mirror / "dns.txt").write_text(DNS.format(10))
    release(7)
    release(3, range(0), database="main")
    report = update_mirror(store, mirror, ["daily", "main"], 1, DNS.replace(":62:", ":3:").format(7))
    assert report.versions == {"daily": 9, "main": 3}
    assert "daily is left as it is" in report.warnings[0]
    assert version_in(mirror / "daily.cvd") == 9
    assert listed(mirror) == layout(3, range(0), "main") | {"daily.cvd", "daily-1.cdiff"}
    assert (mirror / "dns.txt").read_text() == DNS.replace(":62:", ":3:").format(10) + "\n"


def test_a_run_for_one_database_advertises_the_others_as_before(
    tmp_path: Path, store: Store, release: Release
) -> None:
    """As long as they are there."""
    release(5)
    release(6, range(0), database="main")
    for version, databases in ((5, ("daily", "main")), (6, ("daily",))):
        main = 6 if "main" in databases else "-"  # what the command knows of
        record = DNS.replace(":62:", f":{main}:").replace(":339", ":-").format(version)
        update_mirror(store, tmp_path, databases, 3, record)
        assert (tmp_path / "dns.txt").read_text().split(":")[1:3] == ["6", str(version)]
    (tmp_path / "main.cvd").unlink()
    update_mirror(store, tmp_path, ["daily"], 3, record)
    assert (tmp_path / "dns.txt").read_text() == record + "\n"


def test_what_is_not_cached_is_left_alone(
    tmp_path: Path, store: Store, release: Release, make_cvd: MakeCvd
) -> None:
    mirror = tmp_path / "mirror"
    with pytest.raises(MirrorError, match="no CVD of daily or main is cached"):
        update(store, mirror, "main", "daily")
    assert not mirror.exists()
    mirror.mkdir()
    (mirror / "main.cvd").write_bytes(make_cvd(63, database="main"))
    release(7)
    report = update(store, mirror, "daily", "main", "bytecode")
    assert report.versions == {"daily": 7, "main": 63}
    assert [warning.split()[0] for warning in report.warnings] == ["bytecode", "main"]
    assert (mirror / "dns.txt").read_text().split(":")[1] == "63"


def test_damage_is_mended(tmp_path: Path, store: Store, release: Release) -> None:
    mirror = tmp_path / "mirror"
    release(7)
    update(store, mirror)
    for name in ("daily.cvd", "daily-6.cdiff"):
        body = (mirror / name).read_bytes()
        (mirror / name).unlink()
        (mirror / name).write_bytes(body[:-1] + bytes([body[-1] ^ 1]))  # whatever it was
    (mirror / "daily-7.cdiff").unlink()
    (mirror / "daily-7.cdiff").symlink_to("/nonexistent")
    report = update(store, mirror)
    assert set(report.added) == {"daily.cvd", "daily-6.cdiff", "daily-7.cdiff"}
    assert_complete(mirror)


def test_a_damaged_header_is_replaced(tmp_path: Path, store: Store, release: Release) -> None:
    (tmp_path / "daily.cvd").write_bytes(b"<html>")
    release(7)
    update(store, tmp_path)
    assert version_in(tmp_path / "daily.cvd") == 7


# Files


def test_hard_links(tmp_path: Path, store: Store, release: Release) -> None:
    release(7)
    update(store, tmp_path / "mirror")
    cached, linked = store.open(cvd(7)), tmp_path / "mirror" / "daily.cvd"
    assert cached is not None
    with cached:
        assert os.path.samestat(os.fstat(cached.fileno()), linked.stat())
    # Nobody may write into the cache's file by its other name; the date is the origin's.
    assert linked.stat().st_mode & 0o777 == 0o444
    assert linked.stat().st_mtime == stime_of(7) + 60
    assert (tmp_path / "mirror" / "daily-7.cdiff").stat().st_mtime == 1.7e9 + 7
    linked.unlink()
    assert read(store, cvd(7)) is not None


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_copies_where_links_cannot_be(
    tmp_path: Path, store: Store, release: Release, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    release(7)
    link, mirror = os.link, tmp_path / "mirror"

    def refuse(source: str, target: Path) -> None:
        if target.is_relative_to(mirror):
            raise OSError(code, os.strerror(code))
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    update(store, mirror, version=7)
    assert_complete(mirror)
    assert (mirror / "daily.cvd").stat().st_nlink == 1
    assert (mirror / "daily.cvd").stat().st_mtime == stime_of(7) + 60
    assert update(store, mirror, version=7).added == []


def test_a_full_disk(tmp_path: Path, store: Store, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    release(6)
    update(store, mirror, version=6)
    before = listed(mirror)
    release(7)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        update(store, mirror, version=7)
    assert listed(mirror) == before
    assert_complete(mirror)


def test_link_of_the_store(tmp_path: Path, store: Store, release: Release) -> None:
    assert not store.link(cvd(7), tmp_path / "x")
    release(7)
    assert store.link(cvd(7), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == read(store, cvd(7))
    with pytest.raises(FileExistsError):
        store.link(cvd(7), tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        store.link(cvd(7), tmp_path / "nowhere" / "x")


def test_two_runs_at_once(tmp_path: Path, store: Store, release: Release) -> None:
    release(7)
    with _locked(tmp_path), pytest.raises(MirrorError, match="another run"):
        update(store, tmp_path)
    update(store, tmp_path)


@pytest.mark.parametrize("copies", [False, True])
def test_a_mirror_is_complete_whenever_its_making_is_killed(
    tmp_path: Path, store: Store, release: Release, monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    release(5)
    first = tmp_path / "first"
    update(store, first, version=5)
    release(6, range(3, 10))
    release(9, range(3, 12))
    store.disconnect()
    if copies:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "other")))
    for step in range(500):
        mirror = tmp_path / f"mirror-{step}"
        shutil.copytree(first, mirror)
        killed = killed_at(step, partial(update, store, mirror, version=11))
        assert_complete(mirror)
        update(store, mirror, version=11)
        store.disconnect()
        assert_complete(mirror)
        assert listed(mirror) - {"daily-5.cvd.sign"} == layout(9, range(9, 12))
        shutil.rmtree(mirror)
        if not killed:
            break
    else:
        pytest.fail("never finished")


@pytest.mark.parametrize("name", ["daily-7.cvd", "daily-7.cdiff"])
def test_what_is_damaged_on_the_disk_is_not_mirrored(
    tmp_path: Path, store: Store, release: Release, name: str
) -> None:
    release(7)
    path = store.directory / "objects" / "daily" / name
    body = path.read_bytes()
    path.write_bytes(body[:-9] + bytes([body[-9] ^ 1]) + body[-8:])
    with pytest.raises(MirrorError, match=f"{name} is damaged"):
        update(store, tmp_path / "mirror", "daily")
    public = {file.read_bytes() for file in (tmp_path / "mirror").iterdir() if file.is_file()}
    assert path.read_bytes() not in public
