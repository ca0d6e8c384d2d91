"""Bundles: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamproxy.bundle import (
    BundleError,
    Manifest,
    Since,
    import_bundle,
    select,
    write_bundle,
    written_file,
)
from clamproxy.bundle import intake as intake_module
from clamproxy.bundle.manifest import MANIFEST_NAME, sha256_of
from clamproxy.cache.store import Store
from clamproxy.formats.signatures import CLAMAV_KEYS, TrustedKeys
from clamproxy.formats.verification import verify
from clamproxy.objects import Kind, ObjectId
from tests.support.data import CDIFF_NAMES, SIGN_NAMES, read_testdata
from tests.support.forge import forge_cdiff, forge_keys, forge_sign
from tests.support.killing import killed_at
from tests.unit.conftest import MakeCvd, cdiff, cvd, put, put_cvd, read

KEYS = forge_keys().trusted
SIGNATURE = cache(forge_sign)
"""One and the same for the same data: a signature holds the time at which it was made."""

type Fill = Callable[..., None]


def sign(object_id: ObjectId) -> ObjectId:
    return ObjectId(object_id.database, object_id.version, Kind(f"{object_id.kind}.sign"))


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """The cache on the other side."""
    store = Store(tmp_path / "other")
    yield store
    store.close()


@pytest.fixture
def fill(make_cvd: MakeCvd) -> Fill:
    """Puts a CVD and cdiffs into a store, with their signatures."""

    def do(store: Store, version: int | None, patches: range = range(0), database: str = "daily") -> None:
        if version is not None:
            put_cvd(store, version, make_cvd(version, database=database), database)
            put(store, sign(cvd(version, database)), SIGNATURE(b"cvd"))
        for patch in patches:
            put(store, cdiff(patch, database), forge_cdiff(database, patch), last_modified=1.7e9 + patch)
            put(store, sign(cdiff(patch, database)), SIGNATURE(b"cdiff"))

    return do


def exported(store: Store, *databases: str, since: str | None = None) -> bytes:
    stream = io.BytesIO()
    write_bundle(store, select(store, databases, Since.parse([since] if since else [])), stream)
    return stream.getvalue()


def imported(store: Store, bundle: bytes, keys: TrustedKeys = KEYS, **options: Any) -> Manifest:
    return import_bundle(store, io.BytesIO(bundle), keys, **options)


def contents(store: Store) -> dict[str, bytes | None]:
    return {object_id.file_name: read(store, object_id) for object_id in store.sizes()}


def names(bundle: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return tar.getnames()


def unpacked(bundle: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def packed(members: dict[str, bytes], manifest: dict[str, Any] | None = None) -> bytes:
    """A tar as GNU tar would make it, which is as good."""
    stream = io.BytesIO()
    if manifest is not None:
        members = members | {MANIFEST_NAME: json.dumps(manifest).encode()}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def manifest_of(bundle: bytes) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(unpacked(bundle)[MANIFEST_NAME])
    return data


# What goes in


def test_the_version_that_the_cache_leads_to(store: Store, fill: Fill) -> None:
    assert store.reached_version("daily") is None
    fill(store, None, range(3, 5))
    assert store.reached_version("daily") is None
    fill(store, 5, range(6, 9))
    assert store.reached_version("daily") == 8
    put(store, cdiff(9), b"")
    put(store, cdiff(10), b"x")
    assert store.reached_version("daily") == 8


def test_everything_goes_in_by_default(store: Store, fill: Fill) -> None:
    fill(store, 4)
    fill(store, 5, range(3, 8))
    fill(store, 62, database="main")
    (store.partials / "daily-9.cvd.part").write_bytes(b"arriving")
    bundle = exported(store)
    first, *rest = names(bundle)
    assert first == MANIFEST_NAME
    held = set(contents(store)) - {"daily-4.cvd", "daily-4.cvd.sign"}
    assert set(rest) == held
    databases = manifest_of(bundle)["databases"]
    assert {name: (part["version"], part["base"]) for name, part in databases.items()} == {
        "daily": (7, 5),
        "main": (62, 62),
    }
    assert set(names(exported(store, "main"))) == {MANIFEST_NAME, "main-62.cvd", "main-62.cvd.sign"}


@pytest.mark.parametrize("since", ["6", "daily=6", "1,daily=6", "daily=6,main=62"])
def test_only_the_patches_that_the_other_side_lacks(store: Store, fill: Fill, since: str) -> None:
    fill(store, 5, range(3, 9))
    bundle = exported(store, "daily", since=since)
    assert names(bundle)[1:] == [
        *("daily-7.cdiff.sign", "daily-8.cdiff.sign"),
        *("daily-7.cdiff", "daily-8.cdiff"),
    ]
    assert manifest_of(bundle)["databases"]["daily"]["base"] == 6


@pytest.mark.parametrize("gap", [None, b""])
def test_a_whole_cvd_where_the_patches_have_a_gap(store: Store, fill: Fill, gap: bytes | None) -> None:
    fill(store, 5, range(2, 4))
    fill(store, None, range(5, 8))
    if gap is not None:
        put(store, cdiff(4), gap)
    selection = select(store, since=Since.parse(["2"]))
    assert [remark for remark in selection.remarks if "whole CVD" in remark and "from 3 to 4" in remark]
    patches = {
        object_id.version for object_id in selection.databases["daily"].sizes if "cdiff" in object_id.kind
    }
    assert patches == {3, 5, 6, 7} | ({4} if gap is not None else set())
    assert cvd(5) in selection.databases["daily"].sizes


def test_what_is_left_out_is_named(store: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    fill(store, 3, database="main")
    fill(store, None, range(1, 3), database="bytecode")
    selection = select(store, since=Since.parse(["5", "bytecode=1"]))
    assert list(selection.databases) == ["daily"]
    assert [remark.split()[0] for remark in selection.remarks] == ["bytecode", "main"]
    assert not select(store, ["daily"], Since.parse(["main=1", "7"])).databases
    selection = select(store, since=Since.parse(["daily=7"]))
    assert list(selection.databases) == ["main"]
    assert "nothing newer than 7" in selection.remarks[0]
    with pytest.raises(BundleError, match="nothing to export"):
        exported(store, since="7")


@pytest.mark.parametrize("text", ["", "x", "0", "daily", "daily=", "=5", "daily=5,daily=6", "5,6", "9" * 11])
def test_since_must_be_versions(text: str) -> None:
    with pytest.raises(ValueError, match="version"):
        Since.parse([text])


# Files


def write_half_of(path: Path) -> None:
    with written_file(path) as file:
        file.write(b"half")
        raise OSError("disk full")


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"earlier")
    with pytest.raises(OSError, match="disk full"):
        write_half_of(path)
    assert path.read_bytes() == b"earlier"
    (tmp_path / "x.tar.part").write_bytes(b"of a killed run, and long")
    with written_file(path) as file:
        file.write(b"new")
        with pytest.raises(BundleError, match="another process"), written_file(path):
            pass
        assert path.read_bytes() == b"earlier"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_export_leaves_no_half_file(tmp_path: Path, store: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    path = tmp_path / "x.tar"

    def work() -> None:
        with written_file(path) as file:
            write_bundle(store, select(store), file)

    store.disconnect()
    for step in range(20):
        killed = killed_at(step, work)
        assert killed or path.exists()
        if path.exists():
            assert names(path.read_bytes())[0] == MANIFEST_NAME
        if not killed:
            break
    else:
        pytest.fail("never finished")


# What comes out


@pytest.mark.parametrize("since", [None, "5"])
def test_import_of_export(store: Store, other: Store, fill: Fill, since: str | None) -> None:
    fill(store, 5, range(6, 9))
    if since:
        fill(other, 5)
    manifest = imported(other, exported(store, since=since))
    assert contents(other) == contents(store)
    assert other.reached_version("daily") == 8
    for object_id in store.sizes():
        with store.open(object_id) as here, other.open(object_id) as there:  # type: ignore[union-attr]
            assert here.metadata.header == there.metadata.header
            assert here.metadata.last_modified == there.metadata.last_modified
    note = other.note("imported/daily")
    assert (note["version"], manifest.databases["daily"].version) == (8, 8)
    assert_nothing_staged(other)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    versions=st.dictionaries(st.sampled_from(["daily", "main", "test"]), st.integers(2, 6), min_size=1),
    patches=st.sets(st.tuples(st.sampled_from(["daily", "main", "test"]), st.integers(2, 9))),
    empty=st.sets(st.integers(2, 9), max_size=2),
    signed=st.booleans(),
)
def test_any_cache_survives_the_way(
    tmp_path_factory: pytest.TempPathFactory,
    make_cvd: MakeCvd,
    versions: dict[str, int],
    patches: set[tuple[str, int]],
    empty: set[int],
    signed: bool,
) -> None:
    directory = tmp_path_factory.mktemp("way")
    here, there = Store(directory / "here"), Store(directory / "there")
    for database, version in versions.items():
        put_cvd(here, version, make_cvd(version, database=database), database)
    for database, version in patches:
        if database in versions:
            put(here, cdiff(version, database), b"" if version in empty else forge_cdiff(database, version))
            if signed:
                put(here, sign(cdiff(version, database)), forge_sign())
    imported(there, exported(here))
    assert contents(here) == contents(there)
    assert {name: here.reached_version(name) for name in versions} == {
        name: there.reached_version(name) for name in versions
    }
    here.close()
    there.close()


def test_files_of_clamav(store: Store, other: Store) -> None:
    for name in ["test-3.cvd", *CDIFF_NAMES, *SIGN_NAMES]:
        object_id = ObjectId.parse(name)
        body = read_testdata(name)
        put(store, object_id, body, header=body[:512].decode() if object_id.kind is Kind.CVD else None)
    imported(other, exported(store), CLAMAV_KEYS)
    assert other.reached_version("test") == 6
    assert set(contents(store)) - set(contents(other)) == {f"test-{v}.cvd.sign" for v in (1, 2, 4, 5, 6)}
    assert "test-3.cvd.sign" in contents(other)


def test_what_is_there_already_stays(bundle: bytes, other: Store) -> None:
    put(other, sign(cdiff(6)), forge_sign(b"another"))
    imported(other, bundle)
    assert read(other, sign(cdiff(6))) == forge_sign(b"another")
    assert other.reached_version("daily") == 7
    assert_nothing_staged(other)


def test_a_second_import_changes_nothing(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    bundle = exported(store)
    imported(other, bundle)
    before = contents(other)
    imported(other, bundle)
    assert contents(other) == before


def test_other_keys_refuse_it(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5)
    assert_refused(other, exported(store), "is not what it should be", keys=CLAMAV_KEYS)


# Directions


def test_never_backwards(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    fill(other, 6, range(7, 9))
    bundle = exported(store)
    assert_refused(other, bundle, "leads to daily 7, the cache already has 8")
    imported(other, bundle, allow_older=True)
    assert other.newest_version("daily") == 6
    assert "daily-5.cvd" in contents(other)
    assert other.note("imported/daily")["version"] == 7


def test_one_database_that_is_older_stops_all(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5)
    fill(store, 3, database="main")
    fill(other, 4, database="main")
    assert_refused(other, exported(store), "main 3, the cache already has 4")


@pytest.mark.parametrize(("there", "words"), [(None, "the cache has none"), (5, "the cache has only 5")])
@pytest.mark.parametrize("allow_older", [False, True])
def test_patches_must_join_on(
    store: Store, other: Store, fill: Fill, there: int | None, words: str, allow_older: bool
) -> None:
    fill(store, 5, range(6, 10))
    if there:
        fill(other, there)
    bundle = exported(store, since="7")
    assert_refused(other, bundle, f"need daily 7, {words}", allow_older=allow_older)


def test_patches_that_overlap_join_on(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 10))
    fill(other, 7)
    imported(other, exported(store, since="6"))
    assert other.reached_version("daily") == 9


# Damage


def assert_refused(
    store: Store, bundle: bytes, words: str = ".", keys: TrustedKeys = KEYS, **options: Any
) -> str:
    """Returns the line that says why. A bundle that is cut off may leave something to go on with."""
    before, notes = contents(store), store.notes("imported/")
    with pytest.raises(BundleError, match=words) as error:
        imported(store, bundle, keys, **options)
    assert "\n" not in str(error.value)
    assert (contents(store), store.notes("imported/")) == (before, notes)
    if "cut off" not in str(error.value):
        assert_nothing_staged(store)
    return str(error.value)


def assert_nothing_staged(store: Store) -> None:
    assert [path.name for path in (store.directory / "staging").iterdir()] == ["lock"]


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
        assert_refused(other, packed(members), "lacks|no bundle")


@pytest.mark.parametrize(
    "name",
    ["daily-9.cdiff", "../daily-9.cdiff", "/tmp/x", "daily-5.cld", "lock", "x\\y", MANIFEST_NAME, "a/b"],
)
def test_a_member_too_many(bundle: bytes, other: Store, name: str) -> None:
    extra = packed({name: forge_cdiff("daily", 9)})
    with_extra = bundle[:-1024] + extra
    assert_refused(other, with_extra, "unlisted")


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
    assert line.startswith("the manifest is not right: Invalid JSON")


Lie = Callable[[dict[str, Any]], object]


def daily(manifest: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = manifest["databases"]["daily"]
    return part


def entry(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(o for o in daily(manifest)["objects"] if o["name"] == name)
    return found


LIES: dict[str, Lie] = {
    "a format to come": lambda m: m.update(format=2),
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


@pytest.mark.parametrize("name", ["daily-5.cvd", "daily-6.cdiff", "daily-6.cdiff.sign"])
def test_objects_that_are_listed_but_not_signed(
    store: Store, other: Store, fill: Fill, make_cvd: MakeCvd, name: str
) -> None:
    fill(store, None, range(6, 8))
    put_cvd(store, 5, make_cvd(5))
    path = Path(store._index.get(f"object/{name}", read=True).name)
    body = path.read_bytes()
    middle = len(body) // 2
    path.write_bytes(body[middle:] + body[:middle])
    assert_refused(other, exported(store), f"{name} is not what it should be")


@pytest.mark.parametrize("name", ["daily-5.cvd", "daily-6.cdiff", "daily-6.cdiff.sign"])
def test_a_forged_copy_of_what_is_there(bundle: bytes, other: Store, name: str) -> None:
    """Its hash is the listed one; the cache having the right one doesn't excuse it."""
    imported(other, bundle)
    members, manifest = unpacked(bundle), manifest_of(bundle)
    body = members[name]
    members[name] = body[: len(body) // 2] + bytes(8) + body[len(body) // 2 + 8 :]
    entry(manifest, name).update(sha256=sha256_of([members[name]]))
    assert_refused(other, packed(members, manifest), f"{name} is not what it should be")
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
    if store.notes("imported/"):
        assert store.newest_version("main") == 3


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
