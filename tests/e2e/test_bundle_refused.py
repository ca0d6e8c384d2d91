"""``clamproxy import`` of what is no bundle, or not a right one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import (
    BASE,
    CVD,
    MANIFEST,
    OFFLINE,
    PATCH,
    Bundles,
    forged,
    members_of,
    objects,
    pack,
    refusal,
    snapshot,
    take_in,
    with_manifest,
)
from tests.support.dns_server import open_dns
from tests.support.forge import forge_cdiff, forge_database, forge_sign
from tests.support.gateway import Gateway
from tests.support.origin import OriginServer
from tests.support.scenes import NEWEST, Members
from tests.support.site import flipped, settings_for, signed


def in_member(name: str, offset: int) -> Callable[[Path], int]:
    """The place of a byte in the content of a member; in its header if the offset is negative."""

    def place(bundle: Path) -> int:
        with tarfile.open(bundle) as tar:
            return tar.getmember(name).offset_data + offset

    return place


DAMAGES = {
    "manifest": in_member(MANIFEST, 20),
    "name of the manifest": in_member(MANIFEST, -512),
    "checksum of a header": in_member(PATCH, -512 + 150),
    "name of an object": in_member(PATCH, -512 + 3),
    "size of an object": in_member(CVD, -512 + 130),
    "header of a CVD": in_member(CVD, 45),
    "middle of a CVD": in_member(CVD, 5000),
    "cdiff": in_member(PATCH, 300),
    "signature": in_member(f"{PATCH}.sign", 2000),
}


@pytest.fixture(scope="module")
def filled(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One with the first bundle in its cache, which tests do not change."""
    with OriginServer() as origin, open_dns() as dns:
        gateway = Gateway(tmp_path_factory.mktemp("filled"), settings_for(origin, dns, **OFFLINE))
        take_in(gateway, bundles.first)
        yield gateway


class TestRefused:
    """Nothing changes, and one line says why."""

    def test_one_wrong_byte(self, bundles: Bundles, filled: Gateway, tmp_path: Path) -> None:
        before = filled.stats()
        file = tmp_path / "damaged.tar"
        for name, place in DAMAGES.items():
            file.write_bytes(flipped(bundles.second.read_bytes(), place(bundles.second)))
            assert "damaged.tar" in refusal(filled, file), name
        assert filled.stats() == before

    def test_cut_off(self, bundles: Bundles, filled: Gateway, tmp_path: Path) -> None:
        body = bundles.second.read_bytes()
        # What follows the last member are zeros.
        last = len(body.rstrip(b"\0"))
        for size in (0, 100, 512, 4000, 20_000, last - 2000, last - 1):
            (tmp_path / "short.tar").write_bytes(body[:size])
            assert "short.tar" in refusal(filled, tmp_path / "short.tar"), size

    @pytest.mark.parametrize(
        "contents",
        [
            {PATCH: forge_cdiff("test", NEWEST)},
            {CVD: forge_database("test", BASE, {"test.ndb": b"Forged:0:*:00\n"})},
            {f"{PATCH}.sign": b"<html>"},
            {PATCH: b""},
            {PATCH: b"ClamAV-Diff:6:"},
            {CVD: b"<html>no CVD</html>"},
        ],
        ids=["cdiff", "CVD", "page for a signature", "empty cdiff", "head of a cdiff", "page for a CVD"],
    )
    def test_forged(self, bundles: Bundles, idle: Gateway, tmp_path: Path, contents: Members) -> None:
        """The manifest is right, the objects are not ClamAV's."""
        refusal(idle, forged(bundles.second, tmp_path / "forged.tar", contents))
        assert signed(CVD) not in snapshot(idle.cache).values()

    def test_swapped(self, bundles: Bundles, idle: Gateway, tmp_path: Path) -> None:
        """Objects of ClamAV's under names of others."""
        for name, other in ((PATCH, "test-4.cdiff"), (CVD, "test-3.cvd")):
            refusal(idle, forged(bundles.second, tmp_path / "swapped.tar", {name: signed(other)}))

    def test_forged_patch_for_what_is_there(self, bundles: Bundles, filled: Gateway, tmp_path: Path) -> None:
        contents = {PATCH: forge_cdiff("test", NEWEST), f"{PATCH}.sign": forge_sign()}
        for bundle in (bundles.second, bundles.patch):
            refusal(filled, forged(bundle, tmp_path / "forged.tar", contents))

    def test_forged_copy_of_what_is_there(self, bundles: Bundles, filled: Gateway, tmp_path: Path) -> None:
        """The cache has that object already, which does not excuse the bundle."""
        forgery = forge_database("test", BASE, {"test.ndb": b"Forged:0:*:00\n"})
        for bundle in (bundles.first, bundles.second):
            assert CVD in refusal(filled, forged(bundle, tmp_path / "forged.tar", {CVD: forgery}))
        assert forgery not in objects(filled.cache)
        assert signed(CVD) in objects(filled.cache)

    @pytest.mark.parametrize(
        "change", [{"version": 99}, {"version": 5}, {"base": 1}, {"base": NEWEST}, {"objects": []}], ids=str
    )
    def test_wrong_versions(
        self, bundles: Bundles, filled: Gateway, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        """The objects lead somewhere else than the manifest says."""
        file = with_manifest(bundles.second, tmp_path / "wrong.tar", lambda database: database.update(change))
        refusal(filled, file)

    def test_leftovers(self, bundles: Bundles, idle: Gateway, tmp_path: Path) -> None:
        """What refused bundles have been unpacked to goes at once."""
        refusal(idle, forged(bundles.second, tmp_path / "forged.tar", {PATCH: forge_cdiff("test", NEWEST)}))
        assert not any(objects(idle.cache / "staging"))
        take_in(idle, bundles.second)
        contents = [content for name, content in members_of(bundles.second).items() if name != MANIFEST]
        stored = [path.read_bytes() for path in idle.cache.rglob("*") if path.is_file()]
        assert [stored.count(content) for content in contents] == [1] * len(contents)

    @pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "test-3.cdiff", "readme.txt"])
    def test_not_in_the_manifest(self, bundles: Bundles, filled: Gateway, tmp_path: Path, name: str) -> None:
        file = pack(tmp_path / "more.tar", members_of(bundles.second) | {name: signed("test-3.cdiff")})
        refusal(filled, file)
        assert not list(tmp_path.rglob("evil*"))

    def test_not_in_the_file(self, bundles: Bundles, filled: Gateway, tmp_path: Path) -> None:
        members = members_of(bundles.second)
        del members[PATCH]
        assert PATCH in refusal(filled, pack(tmp_path / "less.tar", members))

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
    def test_no_file(self, bundles: Bundles, filled: Gateway, tmp_path: Path, kind: bytes) -> None:
        """A link or the like in the place of an object."""
        file = tmp_path / "link.tar"
        with tarfile.open(file, "w") as tar:
            for name, content in members_of(bundles.second).items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = (kind, "/etc/passwd") if name == PATCH else (info.type, "")
                info.size = 0 if name == PATCH else len(content)
                tar.addfile(info, io.BytesIO(content))
        refusal(filled, file)

    def test_gap(self, bundles: Bundles, idle: Gateway) -> None:
        """Patches that do not join on."""
        assert "--since" in refusal(idle, bundles.patch)

    def test_no_bundle(self, filled: Gateway, tmp_path: Path) -> None:
        for content in (b"x", b"<html>" * 1000, bytes(20_000), signed("test-6.cld")):
            (tmp_path / "other.tar").write_bytes(content)
            refusal(filled, tmp_path / "other.tar")

    def test_manifests_of_other_forms(self, bundles: Bundles, filled: Gateway, tmp_path: Path) -> None:
        members = members_of(bundles.second)
        right = json.loads(members[MANIFEST])
        wrong: list[object] = [[], {}, None, right | {"format": 99}, right | {"databases": []}]
        wrong += [right | {"databases": {"../test": right["databases"]["test"]}}]
        for number, manifest in enumerate(wrong):
            file = pack(tmp_path / f"{number}.tar", members | {MANIFEST: json.dumps(manifest).encode()})
            refusal(filled, file)

    @pytest.mark.parametrize("name", ["nothing.tar", "."])
    def test_no_file_at_all(self, filled: Gateway, tmp_path: Path, name: str) -> None:
        assert str(tmp_path / name) in refusal(filled, tmp_path / name)
