"""Bundles: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamproxy.bundle import (
    BundleError,
    Since,
    select,
    sweep_staging,
    write_bundle,
    written_file,
)
from clamproxy.bundle.contents import RECENT
from clamproxy.bundle.manifest import MANIFEST_NAME
from clamproxy.cache.partial import LONGEST_KEPT
from clamproxy.cache.store import Store
from clamproxy.formats.signatures import CLAMAV_KEYS
from clamproxy.objects import Kind, ObjectId
from tests.support.bundle_parts import (
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
from tests.support.data import CDIFF_NAMES, SIGN_NAMES, keys_of_tests, read_testdata
from tests.support.fixtures import Fill, MakeCvd
from tests.support.forge import forge_cdiff, forge_sign
from tests.support.killing import killed_at
from tests.support.stored import cdiff, cvd, put, put_cvd, read, sign

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
    late = [f"daily-{version}.cdiff.sign" for version in range(3, 7)] + ["daily-5.cvd.sign"]
    assert sorted(names(bundle)[1:]) == sorted(
        [*late, "daily-7.cdiff.sign", "daily-8.cdiff.sign", "daily-7.cdiff", "daily-8.cdiff"]
    )
    assert sorted(listed["name"] for listed in manifest_of(bundle)["signatures"]) == sorted(late)
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


def test_what_is_held_back_stays_here(store: Store, fill: Fill) -> None:
    fill(store, 4)
    fill(store, 7, range(5, 10))
    fill(store, 62, database="main")
    selection = select(store, ceilings={"daily": 5, "main": 61})
    (part,) = selection.databases.values()
    assert (part.version, part.base, max(one.version for one in part.sizes)) == (5, 4, 5)
    assert selection.remarks == [
        "daily is exported up to version 5: newer ones are held back.",
        "main is exported up to version 61: newer ones are held back.",
        "main is left out: no CVD of it up to version 61 is cached.",
    ]
    part = select(store, ["daily"], Since.parse(["4"]), {"daily": 5}).databases["daily"]
    assert [one.file_name for one in part.sizes if not one.kind.is_signature] == ["daily-5.cdiff"]


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


def test_a_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    """And devices: ``clamproxy export /dev/null`` must not replace that."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with written_file(tmp_path / "pipe") as file:
        file.write(b"content")
    assert os.read(reader, 99) == b"content"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/x.tar")
    for content in (b"first", b"second"):
        with written_file(tmp_path / "link") as file:
            file.write(content)
        assert (tmp_path / "elsewhere" / "x.tar").read_bytes() == content
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_itself_leads_nowhere_and_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with written_file(tmp_path / "link") as file:
        file.write(b"content")
    assert (tmp_path / "link").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_directory_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError), written_file(Path(name)):
        pass
    assert list(tmp_path.iterdir()) == []


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
    assert manifest.databases["daily"].version == 8
    assert_nothing_staged(other)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    here, there = (Store(directory / name, keys=keys_of_tests()) for name in ("here", "there"))
    for database, version in versions.items():
        put_cvd(here, version, make_cvd(version, database=database), database)
    for database, version in patches:
        if database in versions:
            body = b"" if version in empty else forge_cdiff(database, version)
            put(here, cdiff(version, database), body)
            if signed:
                put(here, sign(cdiff(version, database)), forge_sign(body))
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
    imported(other, exported(store), keys_of_tests())
    assert other.reached_version("test") == 6
    assert set(contents(store)) - set(contents(other)) == {f"test-{v}.cvd.sign" for v in (1, 2, 4, 5, 6)}
    assert "test-3.cvd.sign" in contents(other)


# Signatures


def test_a_signature_of_another_file_is_replaced(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    for wrong in (sign(cdiff(6)), sign(cvd(5))):
        put(other, wrong, forge_sign(b"another"))
    imported(other, exported(store))
    assert contents(other) == contents(store)
    assert_nothing_staged(other)


@pytest.mark.parametrize("wrong", [sign(cdiff(6)), sign(cvd(5))], ids=str)
def test_a_signature_of_another_file_does_not_go_in(store: Store, fill: Fill, wrong: ObjectId) -> None:
    fill(store, 5, range(6, 8))
    store.drop(wrong)
    put(store, wrong, forge_sign(b"another"))
    selection = select(store)
    assert selection.remarks == [f"{wrong.file_name} is left out: it belongs to another file."]
    assert set(names(exported(store))) == set(contents(store)) - {wrong.file_name} | {MANIFEST_NAME}


@pytest.mark.parametrize("wrong", [sign(cdiff(6)), sign(cvd(5))], ids=str)
def test_a_bundle_with_a_signature_of_another_file_is_refused(
    store: Store, other: Store, fill: Fill, wrong: ObjectId
) -> None:
    fill(store, 5, range(6, 8))
    members, manifest = unpacked(exported(store)), manifest_of(exported(store))
    members[wrong.file_name] = forge_sign(b"another")
    for listed in manifest["databases"]["daily"]["objects"]:
        if listed["name"] == wrong.file_name:
            body = members[wrong.file_name]
            listed.update(size=len(body), sha256=hashlib.sha256(body).hexdigest())
    assert_refused(other, packed(members, manifest), f"{wrong.file_name} .*: it signs another file")


class TestLateSignatures:
    """Those that were published after their files had been exported."""

    def without(self, store: Store, *signatures: ObjectId) -> None:
        for signature in signatures:
            store.drop(signature)

    def test_come_with_the_next_patches(self, store: Store, other: Store, fill: Fill) -> None:
        fill(store, 5, range(6, 8))
        late = (sign(cvd(5)), sign(cdiff(7)))
        kept = {one: read(store, one) or b"" for one in late}
        self.without(store, *late)
        imported(other, exported(store))
        for one, body in kept.items():
            put(store, one, body)
        fill(store, None, range(8, 9))
        imported(other, exported(store, since="7"))
        assert contents(other) == contents(store)

    def test_of_a_database_without_news(self, store: Store, other: Store, fill: Fill) -> None:
        fill(store, 62, database="main")
        fill(store, 5, range(6, 8))
        imported(other, exported(store))
        self.without(other, sign(cvd(62, "main")))
        bundle = exported(store, since="daily=6,main=62")
        assert "main" not in manifest_of(bundle)["databases"]
        imported(other, bundle)
        assert contents(other) == contents(store)

    def test_are_nothing_to_export_alone(self, store: Store, fill: Fill) -> None:
        fill(store, 5, range(6, 8))
        with pytest.raises(BundleError, match="nothing to export"):
            exported(store, since="7")

    def test_replace_wrong_ones(self, store: Store, other: Store, fill: Fill) -> None:
        fill(store, 5, range(6, 8))
        imported(other, exported(store))
        self.without(other, sign(cvd(5)))
        put(other, sign(cvd(5)), forge_sign(b"another"))
        fill(store, None, range(8, 9))
        imported(other, exported(store, since="7"))
        assert contents(other) == contents(store)

    def test_of_what_the_other_side_has_not(self, store: Store, other: Store, fill: Fill) -> None:
        """Its base is another one, say."""
        fill(store, 5, range(3, 9))
        fill(other, 7)
        imported(other, exported(store, since="7"))
        assert sign(cvd(5)).file_name not in contents(other)
        assert contents(other).keys() == {
            *("daily-7.cvd", "daily-7.cvd.sign", "daily-8.cdiff", "daily-8.cdiff.sign")
        }

    def test_no_more_than_recent_ones(self, store: Store, fill: Fill) -> None:
        fill(store, 1, range(2, RECENT + 6))
        signatures = manifest_of(exported(store, since=str(RECENT + 4)))["signatures"]
        versions = [listed["version"] for listed in signatures if "cdiff" in listed["name"]]
        assert versions == list(range(5, RECENT + 5))

    def test_with_the_whole_cvd_none_goes_in_twice(self, store: Store, other: Store, fill: Fill) -> None:
        fill(store, 6, range(3, 4))
        fill(store, None, range(5, 7))
        put(store, cdiff(4), b"")
        manifest = imported(other, exported(store, since="3"))
        assert [listed.name for listed in manifest.signatures] == ["daily-3.cdiff.sign"]
        assert contents(other).keys() == contents(store).keys() - {"daily-3.cdiff", "daily-3.cdiff.sign"}

    def test_without_late_signatures_older_versions_can_import(self, store: Store, fill: Fill) -> None:
        fill(store, 5, range(6, 8))
        manifest = manifest_of(exported(store))
        assert manifest["format"] == 1
        assert "signatures" not in manifest
        assert manifest_of(exported(store, since="6"))["format"] == 2

    @pytest.mark.parametrize(
        ("format_", "name"),
        [(1, "daily-5.cvd.sign"), (2, "daily-7.cdiff.sign"), (2, "daily-5.cvd"), (2, "daily-7.cdiff")],
    )
    def test_a_manifest_that_lies_about_them(
        self, store: Store, other: Store, fill: Fill, format_: int, name: str
    ) -> None:
        fill(store, 5, range(6, 8))
        fill(other, 5, range(6, 7))
        members, manifest = unpacked(exported(store, since="6")), manifest_of(exported(store, since="6"))
        body = read(store, ObjectId.parse(name)) or b""
        listed = manifest["signatures"][0] | {"name": name, "version": ObjectId.parse(name).version}
        listed |= {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        manifest.update(format=format_, signatures=[listed])
        assert_refused(other, packed(members | {name: body}, manifest), "the manifest is invalid")


# Again


def test_a_second_import_changes_nothing(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    bundle = exported(store)
    imported(other, bundle)
    before = contents(other)
    imported(other, bundle)
    assert contents(other) == before


def test_other_keys_refuse_a_bundle(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5)
    assert_refused(other, exported(store), "failed verification", keys=CLAMAV_KEYS)


# Directions


def test_never_backwards(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 8))
    fill(other, 6, range(7, 9))
    bundle = exported(store)
    assert_refused(other, bundle, "has daily 7, but the cache already has 8")
    imported(other, bundle, allow_older=True)
    assert other.newest_version("daily") == 6
    assert "daily-5.cvd" in contents(other)


def test_never_backwards_after_a_purge(store: Store, other: Store, fill: Fill) -> None:
    """Unless an administrator wants that, who can then go on from there."""
    fill(store, 5)
    fill(other, 8)
    bundle = exported(store)
    for object_id in list(other.object_ids()):
        other.drop(object_id)
    assert_refused(other, bundle, "has daily 5, but version 8 was here before")
    imported(other, bundle, allow_older=True)
    assert other.newest_version("daily") == other.newest_proven.of("daily") == 5


def test_one_database_that_is_older_stops_all(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5)
    fill(store, 3, database="main")
    fill(other, 4, database="main")
    assert_refused(other, exported(store), "main 3, but the cache already has 4")


@pytest.mark.parametrize(("there", "words"), [(None, "the cache has none"), (5, "the cache has only 5")])
@pytest.mark.parametrize("allow_older", [False, True])
def test_patches_must_join_on(
    store: Store, other: Store, fill: Fill, there: int | None, words: str, allow_older: bool
) -> None:
    fill(store, 5, range(6, 10))
    if there:
        fill(other, there)
    bundle = exported(store, since="7")
    assert_refused(other, bundle, f"need daily 7, but {words}", allow_older=allow_older)


def test_patches_that_overlap_join_on(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 5, range(6, 10))
    fill(other, 7)
    imported(other, exported(store, since="6"))
    assert other.reached_version("daily") == 9


def test_what_an_interrupted_import_unpacked_is_not_kept_for_ever(tmp_path: Path) -> None:
    """Even if there is never another import."""
    sweep_staging(tmp_path)  # there was none yet
    old, young = tmp_path / "staging" / "old", tmp_path / "staging" / "young"
    for area, age in ((old, LONGEST_KEPT + 60), (young, LONGEST_KEPT - 60)):
        area.mkdir(parents=True)
        (area / "daily-5.cvd.part").touch()
        os.utime(area, (time.time() - age,) * 2)
    sweep_staging(tmp_path)
    assert [path for path in (tmp_path / "staging").iterdir() if path.is_dir()] == [young]
