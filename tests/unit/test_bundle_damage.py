"""Bundles that are damaged, lie or are cut off, and imports that are interrupted."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clamproxy.bundle import (
    BundleError,
)
from clamproxy.bundle import importing as intake_module
from clamproxy.bundle.manifest import MANIFEST_NAME, sha256_of
from clamproxy.cache.store import Store
from clamproxy.formats.verification import verify
from clamproxy.objects import ObjectId
from tests.support.bundle_parts import (
    KEYS,
    assert_nothing_staged,
    assert_refused,
    contents,
    exported,
    imported,
    manifest_of,
    names,
    packed,
    unpacked,
)
from tests.support.fixtures import Fill, MakeCvd
from tests.support.forge import forge_cdiff
from tests.support.killing import killed_at
from tests.support.stored import cvd, put_cvd, sign


@pytest.fixture
def bundle(store: Store, fill: Fill) -> bytes:
    fill(store, 5, range(6, 8))
    return exported(store)


def test_any_flipped_byte_is_noticed(bundle: bytes, other: Store) -> None:
    """Headers, contents and padding of each member: nothing in the file is without meaning."""
    spots, end = [], 0
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        for member in tar:
            data = member.offset_data
            end = data + member.size + -member.size % 512
            spots += [
                member.offset,
                member.offset + 130,
                data,
                data + member.size // 2,
                data + member.size - 1,
            ]
            spots += [end - 1]
    for spot in [*spots, end, len(bundle) - 1]:
        damaged = bytearray(bundle)
        damaged[spot] ^= 0x01
        with pytest.raises(BundleError):
            imported(other, bytes(damaged))
        assert contents(other) == {}
        assert_nothing_staged(other)
    imported(other, bundle)


def test_any_cut_is_noticed(bundle: bytes, other: Store) -> None:
    for length in [*range(0, len(bundle), 1777), len(bundle) - 1024, len(bundle) - 1025]:
        assert_refused(other, bundle[:length], "cut off|no bundle")
    assert len(staged(other)) == len(names(bundle)) - 1
    imported(other, bundle)


def staged(store: Store) -> list[Path]:
    """The files of the one bundle that can go on."""
    (area,) = [path for path in (store.directory / "staging").iterdir() if path.is_dir()]
    return list(area.iterdir())


def test_a_member_that_is_missing(bundle: bytes, other: Store) -> None:
    for name in names(bundle):
        members = unpacked(bundle)
        del members[name]
        assert_refused(other, packed(members), "lacks|not a bundle")


@pytest.mark.parametrize(
    "name",
    ["daily-9.cdiff", "../daily-9.cdiff", "/tmp/x", "daily-5.cld", "lock", "x\\y", MANIFEST_NAME, "a/b"],
)
def test_a_member_too_many(bundle: bytes, other: Store, name: str) -> None:
    extra = packed({name: forge_cdiff("daily", 9)})
    with_extra = bundle[:-1024] + extra
    assert_refused(other, with_extra, "without listing it")


def test_a_member_twice(bundle: bytes, other: Store) -> None:
    assert_refused(other, bundle[:-1024] + packed({"daily-6.cdiff": forge_cdiff("daily", 6)}), "twice")


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE),
        *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE),
    ],
)
def test_only_regular_files(bundle: bytes, other: Store, kind: bytes) -> None:
    members = unpacked(bundle)
    stream = io.BytesIO()
    for name, data in members.items():
        member = tarfile.TarInfo(name)
        if name == "daily-6.cdiff":
            member.type, member.linkname = kind, "/etc/passwd"
        member.size = len(data)
        stream.write(member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    assert_refused(other, stream.getvalue() + bytes(1024), "not a regular file")


def test_something_else(other: Store) -> None:
    for data in (
        b"",
        b"text",
        bytes(1024),
        os.urandom(4096),
        packed({"x": b"y"}),
        packed({MANIFEST_NAME: b"{"}),
    ):
        assert_refused(other, data)
    line = assert_refused(other, packed({MANIFEST_NAME: b"{"}))
    assert line.startswith("the manifest is invalid: Invalid JSON")


Lie = Callable[[dict[str, Any]], object]


def daily(manifest: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = manifest["databases"]["daily"]
    return part


def entry(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(o for o in daily(manifest)["objects"] if o["name"] == name)
    return found


LIES: dict[str, Lie] = {
    "a format to come": lambda m: m.update(format=3),
    "a text as format": lambda m: m.update(format="1"),
    "a key too many": lambda m: m.update(more=1),
    "no databases": lambda m: m.update(databases={}),
    "a newer version": lambda m: daily(m).update(version=99),
    "an older version": lambda m: daily(m).update(version=6),
    "no version": lambda m: daily(m).update(version=None),
    "a huge version": lambda m: daily(m).update(version=2**40),
    "another base": lambda m: daily(m).update(base=4),
    "another database": lambda m: m["databases"].update(main=m["databases"].pop("daily")),
    "no objects": lambda m: daily(m).update(objects=[]),
    "another size": lambda m: entry(m, "daily-6.cdiff").update(size=7),
    "a negative size": lambda m: entry(m, "daily-6.cdiff").update(size=-1),
    "a huge size": lambda m: entry(m, "daily-6.cdiff").update(size=2**40),
    "another hash": lambda m: entry(m, "daily-6.cdiff").update(sha256="0" * 64),
    "no hash": lambda m: entry(m, "daily-6.cdiff").update(sha256=""),
    "another build time": lambda m: entry(m, "daily-5.cvd").update(built=1_600_000_000),
    "a date that is none": lambda m: entry(m, "daily-5.cvd").update(last_modified="Infinity"),
    "another version of an object": lambda m: entry(m, "daily-6.cdiff").update(version=7),
    "another name": lambda m: entry(m, "daily-6.cdiff").update(name="daily-8.cdiff"),
    "a path": lambda m: entry(m, "daily-6.cdiff").update(name="../daily-6.cdiff"),
    "a CLD": lambda m: entry(m, "daily-5.cvd").update(name="daily-5.cld"),
    "an object twice": lambda m: daily(m)["objects"].append(entry(m, "daily-6.cdiff")),
    "an object that is not there": lambda m: daily(m)["objects"].append(
        entry(m, "daily-6.cdiff") | {"name": "daily-3.cdiff", "version": 3}
    ),
    "a signature of nothing": lambda m: daily(m)["objects"].append(
        entry(m, "daily-6.cdiff.sign") | {"name": "daily-3.cdiff.sign", "version": 3}
    ),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_manifest_that_lies(bundle: bytes, other: Store, lie: Lie) -> None:
    manifest = manifest_of(bundle)
    lie(manifest)
    assert_refused(other, packed(unpacked(bundle), manifest))


def test_a_tar_of_another_program_will_do(bundle: bytes, other: Store) -> None:
    imported(other, packed(unpacked(bundle)))
    assert other.reached_version("daily") == 7


def test_an_impossible_date_is_not_taken_over(bundle: bytes, other: Store) -> None:
    for date in (0, 1_600_000_000, 9_000_000_000):
        manifest = manifest_of(bundle)
        entry(manifest, "daily-5.cvd").update(last_modified=date)
        imported(other, packed(unpacked(bundle), manifest))
        with other.open(cvd(5)) as published:  # type: ignore[union-attr]
            assert published.metadata.last_modified is None


@pytest.mark.parametrize("name", ["daily-5.cvd", "daily-6.cdiff"])
def test_objects_that_are_listed_but_not_signed(
    store: Store, other: Store, fill: Fill, make_cvd: MakeCvd, name: str
) -> None:
    fill(store, None, range(6, 8))
    put_cvd(store, 5, make_cvd(5))
    bundle = exported(store)
    members, manifest = unpacked(bundle), manifest_of(bundle)
    middle = len(members[name]) // 2
    members[name] = members[name][middle:] + members[name][:middle]
    entry(manifest, name).update(sha256=sha256_of([members[name]]))
    assert_refused(other, packed(members, manifest), f"{name} failed verification")


@pytest.mark.parametrize("name", ["daily-5.cvd", "daily-6.cdiff"])
def test_what_is_damaged_on_the_disk_is_not_exported(
    store: Store, fill: Fill, make_cvd: MakeCvd, name: str
) -> None:
    fill(store, None, range(6, 8))
    put_cvd(store, 5, make_cvd(5))
    path = store.directory / "objects" / "daily" / name
    body = path.read_bytes()
    path.write_bytes(body[:-9] + bytes([body[-9] ^ 1]) + body[-8:])
    with pytest.raises(BundleError, match="is damaged"):
        exported(store)


def test_a_damaged_signature_is_left_out(store: Store, fill: Fill, make_cvd: MakeCvd) -> None:
    """As one that is not there yet: a later bundle brings it."""
    fill(store, None, range(6, 8))
    put_cvd(store, 5, make_cvd(5))
    path = store.directory / "objects" / "daily" / "daily-6.cdiff.sign"
    body = path.read_bytes()
    path.write_bytes(body[:-9] + bytes([body[-9] ^ 1]) + body[-8:])
    members = unpacked(exported(store))
    assert path.name not in members
    assert "daily-6.cdiff" in members


@pytest.mark.parametrize("name", ["daily-5.cvd", "daily-6.cdiff", "daily-6.cdiff.sign"])
def test_a_forged_copy_of_what_is_there(bundle: bytes, other: Store, name: str) -> None:
    """Its hash is the listed one; the cache having the right one doesn't excuse it."""
    imported(other, bundle)
    members, manifest = unpacked(bundle), manifest_of(bundle)
    body = members[name]
    members[name] = body[: len(body) // 2] + bytes(8) + body[len(body) // 2 + 8 :]
    entry(manifest, name).update(sha256=sha256_of([members[name]]))
    assert_refused(other, packed(members, manifest), f"{name} failed verification")
    assert_refused(other, packed(members, manifest_of(bundle)), f"{name} is damaged")


# Interruptions


def test_a_killed_import_leaves_no_half_state(
    tmp_path: Path, store: Store, fill: Fill, make_cvd: MakeCvd
) -> None:
    fill(store, 8, range(4, 11))
    fill(store, 3, database="main")
    bundle = exported(store)
    directory = tmp_path / "target"
    target = Store(directory)
    fill(target, 3, range(4, 5))
    target.close()

    def work() -> None:
        killed = Store(copy, tidy=False)
        imported(killed, bundle)
        killed.close()

    for step in range(0, 1000, 3):
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(directory, copy)
        killed = killed_at(step, work)
        target = Store(copy, tidy=False)
        assert_consistent(target, tmp_path)
        imported(target, bundle)
        assert contents(target).keys() >= contents(store).keys()
        target.close()
        if not killed:
            break
        shutil.rmtree(copy)
    else:
        pytest.fail("never finished")


def assert_consistent(store: Store, tmp_path: Path) -> None:
    """Every object is what its name says; what a client is given leads on to the version reached."""
    for name, body in contents(store).items():
        assert body is not None
        (tmp_path / "copy").write_bytes(body)
        verify(tmp_path / "copy", ObjectId.parse(name), KEYS)
    if store.newest_version("daily") == 8:
        assert store.reached_version("daily") == 10
        assert store.open(sign(cvd(8))) is not None


def test_an_interrupted_import_goes_on(bundle: bytes, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(intake_module, "verify", lambda *_: (_ for _ in ()).throw(OSError("power")))
        with pytest.raises(OSError, match="power"):
            imported(other, bundle)
    files = {path.name: path for path in staged(other)}
    assert files.keys() == set(names(bundle)[1:])
    files["daily-6.cdiff"].write_bytes(b"spoilt")
    written: list[str] = []
    write = intake_module._write

    def spy(*arguments: Any) -> None:
        written.append(arguments[0].name)
        write(*arguments)

    monkeypatch.setattr(intake_module, "_write", spy)
    imported(other, bundle)
    assert written == ["daily-6.cdiff"]
    assert_nothing_staged(other)
    assert other.reached_version("daily") == 7


def test_old_leftovers_are_swept(bundle: bytes, other: Store) -> None:
    old, young = other.directory / "staging" / "old", other.directory / "staging" / "young"
    for area in (old, young):
        area.mkdir(parents=True)
        (area / "x").write_bytes(b"x")
    os.utime(old, (1, 1))
    with pytest.raises(BundleError):
        imported(other, b"")
    assert (old.exists(), young.exists()) == (False, True)
    imported(other, bundle)
    assert not young.exists()


def test_two_imports_at_once(bundle: bytes, other: Store) -> None:
    with intake_module._staging(other.directory), pytest.raises(BundleError, match="another import"):
        imported(other, bundle)
