"""Bundles: what goes in, what comes out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamproxy.bundle import (
    BundleError,
    Since,
    select,
    write_bundle,
    written_file,
)
from clamproxy.bundle.manifest import MANIFEST_NAME
from clamproxy.cache.store import Store
from clamproxy.formats.signatures import CLAMAV_KEYS
from clamproxy.objects import Kind, ObjectId
from tests.support.data import CDIFF_NAMES, SIGN_NAMES, read_testdata
from tests.support.forge import forge_cdiff, forge_sign
from tests.support.killing import killed_at
from tests.unit.bundle_bench import (
    assert_nothing_staged,
    assert_refused,
    contents,
    exported,
    imported,
    manifest_of,
    names,
)
from tests.unit.conftest import Fill, MakeCvd, cdiff, cvd, put, put_cvd, read, sign

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


def test_what_is_there_already_stays(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    put(other, sign(cdiff(6)), forge_sign(b"another"))
    imported(other, exported(store))
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
