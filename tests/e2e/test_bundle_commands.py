"""``clamproxy export`` and ``import``: a gateway without internet, its clients the real freshclam."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import read_testdata
from tests.support.dns_server import FakeDns, open_dns
from tests.support.forge import forge_cdiff, forge_database, forge_sign
from tests.support.freshclam import OK
from tests.support.gateway import ROOT, USER_AGENT, Gateway, Way
from tests.support.origin import Origin
from tests.support.scenes import NEWEST, PROBE, ROOMY, advance, explain, hold, settle, shown, whole
from tests.support.site import Site, eventually, flipped, open_site, settings_for, signed

from .conftest import MakeSite

type Result = subprocess.CompletedProcess[bytes]
type Members = dict[str, bytes]
type Snapshot = dict[str, bytes]

OFFLINE: dict[str, Any] = {"upstream": {"offline": True}, "delta": ROOMY}
"""The sections of a gateway without internet."""
BASE = 4
REFUSED = 1
LIMIT = 40
"""Seconds for one run."""
MANIFEST = "manifest.json"
PATCH = f"test-{NEWEST}.cdiff"


@dataclass(frozen=True, slots=True)
class Bundles:
    """Files that a gateway with internet has exported, one release after the other."""

    first: Path
    """CVD 4 and cdiff 5."""
    patch: Path
    """Cdiff 6, since 5."""
    second: Path
    """CVD 4 and cdiffs 5 and 6."""
    whole: Path
    """CVD 6."""


def run(gateway: Gateway, *arguments: str, stdin: bytes = b"") -> Result:
    """Run ``clamproxy`` with the configuration of a gateway; what it prints has no traceback and no bars."""
    result = subprocess.run(
        command(gateway, *arguments),
        cwd=ROOT,
        env=environment(),
        input=stdin,
        capture_output=True,
        timeout=LIMIT,
    )
    assert b"Traceback" not in result.stderr, result.stderr
    assert not {13, 27} & set(result.stderr), result.stderr
    return result


def command(gateway: Gateway, *arguments: str) -> list[str]:
    """The command line."""
    program = str(Path(sys.executable).with_name("clamproxy"))
    return [program, arguments[0], "--config", str(gateway.config), *arguments[1:]]


def environment() -> dict[str, str]:
    """Without the settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLAMPROXY_")}


def export(gateway: Gateway, file: Path, *options: str) -> Path:
    """Export into a file; it must succeed."""
    result = run(gateway, "export", str(file), *options)
    assert (result.returncode, result.stdout) == (OK, b""), result.stderr
    return file


def take_in(gateway: Gateway, file: Path, *options: str) -> str:
    """Import a file; it must succeed. Returns what is told."""
    result = run(gateway, "import", str(file), *options)
    assert (result.returncode, result.stdout) == (OK, b""), result.stderr
    return result.stderr.decode()


def refusal(gateway: Gateway, file: Path, *options: str) -> str:
    """Import a file that must be refused, which changes nothing; returns the line that says why."""
    before = snapshot(gateway.cache)
    result = run(gateway, "import", str(file), *options)
    assert (result.returncode, result.stdout) == (REFUSED, b""), result.stderr
    assert snapshot(gateway.cache) == before
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def snapshot(cache: Path) -> Snapshot:
    """All files of a cache but locks and the database of the index, which changes when it is opened.

    What a bundle has been unpacked to is no part of the cache yet.
    """
    left_out = ("staging", "cache.db")
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and "lock" not in path.name and not any(name in str(path) for name in left_out)
    }


def objects(cache: Path) -> set[bytes]:
    """The contents of all files."""
    return {path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def members_of(bundle: Path) -> Members:
    """Name to content, in the order of the file."""
    with tarfile.open(bundle) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def pack(file: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar as `export` does."""
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def forged(bundle: Path, file: Path, contents: Members) -> Path:
    """A copy of a bundle with other contents, which its manifest lists as it should."""
    members = members_of(bundle) | contents
    manifest = json.loads(members[MANIFEST])
    for item in manifest["databases"]["test"]["objects"]:
        content = members[item["name"]]
        item |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return pack(file, members | {MANIFEST: json.dumps(manifest).encode()})


def with_manifest(bundle: Path, file: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle whose manifest says something else of database test."""
    members = members_of(bundle)
    manifest = json.loads(members[MANIFEST])
    change(manifest["databases"]["test"])
    return pack(file, members | {MANIFEST: json.dumps(manifest).encode()})


def assert_alone(site: Site) -> None:
    """Nothing has left the gateway."""
    assert (site.origin.trace, site.dns.queries) == ("", []), site.gateway.log


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundles]:
    """What the outside has exported."""
    directory = tmp_path_factory.mktemp("bundles")
    site = open_site(directory / "outside", delta=ROOMY)
    try:
        hold(site, BASE, NEWEST - 1)
        whole(site.gateway, f"/test-{NEWEST - 1}.cdiff.sign")
        first = export(site.gateway, directory / "first.tar")
        advance(site, NEWEST - 1, NEWEST)
        patch = export(site.gateway, directory / "patch.tar", "--since", str(NEWEST - 1))
        second = export(site.gateway, directory / "second.tar")
        whole(site.gateway, user_agent="curl/8.5.0")
        whole(site.gateway, f"/test-{NEWEST}.cvd.sign")
        site.gateway.stop()
        yield Bundles(first, patch, second, export(site.gateway, directory / "whole.tar"))
    finally:
        site.close()


@pytest.fixture(scope="module")
def filled(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One with the first bundle in its cache, which tests do not change."""
    with Origin() as origin, open_dns() as dns:
        gateway = Gateway(tmp_path_factory.mktemp("filled"), settings_for(origin, dns, **OFFLINE))
        take_in(gateway, bundles.first)
        yield gateway


@pytest.fixture
def idle(tmp_path: Path, origin: Origin, dns: FakeDns) -> Gateway:
    """A gateway without internet that does not run and has no cache yet."""
    return Gateway(tmp_path / "idle", settings_for(origin, dns, **OFFLINE))


@pytest.fixture
def inside(make_site: MakeSite) -> Site:
    """A gateway without internet that runs; what its fake servers would say is wrong."""
    site = make_site(**OFFLINE)
    site.publish(NEWEST, advertised=9)
    return site


class TestClients:
    """Clients of the gateway without internet."""

    def test_first_bundle(self, bundles: Bundles, inside: Site) -> None:
        told = take_in(inside.gateway, bundles.first)
        assert "test 5" in told
        assert eventually(lambda: shown(inside.gateway) == 5), inside.gateway.log
        for local in (None, BASE, 5):
            outcome = inside.client(f"client-{local}", local=local).run()
            databases = {"test.cvd" if local == 5 else "test.cld": 5}
            assert (outcome.code, outcome.databases) == (OK, databases), explain(inside, outcome)
        private = inside.client("private", Way.REVERSE, private=True).run()
        assert (private.code, private.databases) == (OK, {"test.cld": 5}), explain(inside, private)
        assert [shown(inside.gateway, "/test.cvd", way) for way in Way] == [5] * len(Way)
        assert_alone(inside)

    def test_patches_for_a_running_gateway(self, bundles: Bundles, inside: Site) -> None:
        """The advertised version moves without a restart."""
        take_in(inside.gateway, bundles.first)
        assert eventually(lambda: shown(inside.gateway) == 5), inside.gateway.log
        clients = [
            inside.client("client"),
            inside.client("whole", scripted=False),
            inside.client("private", Way.REVERSE, private=True),
        ]
        before = [client.run().version for client in clients]
        assert (before[0], before[2]) == (5, 5), inside.gateway.log
        assert "test 6" in take_in(inside.gateway, bundles.patch)
        assert eventually(lambda: shown(inside.gateway) == NEWEST), inside.gateway.log
        for client in [clients[0], clients[2], inside.client("fresh"), inside.client("older", local=BASE)]:
            outcome = client.run()
            assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(inside, outcome)
        assert whole(inside.gateway).body == signed(f"test-{BASE}.cvd")
        assert_alone(inside)

    def test_whole_cvd_for_a_running_gateway(self, bundles: Bundles, inside: Site) -> None:
        take_in(inside.gateway, bundles.first)
        assert eventually(lambda: shown(inside.gateway) == 5), inside.gateway.log
        take_in(inside.gateway, bundles.whole)
        assert eventually(lambda: shown(inside.gateway) == NEWEST), inside.gateway.log
        outcome = inside.client().run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(inside, outcome)
        assert_alone(inside)

    def test_import_before_the_first_start(
        self, bundles: Bundles, make_site: MakeSite, idle: Gateway
    ) -> None:
        take_in(idle, bundles.second)
        assert idle.cache.stat().st_mode & 0o777 == 0o700
        site = make_site(**OFFLINE, cache={"directory": str(idle.cache)})
        assert shown(site.gateway) == NEWEST
        outcome = site.client(local=BASE).run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(site, outcome)
        for name in (PATCH, f"{PATCH}.sign", f"test-{BASE}.cvd.sign"):
            assert whole(site.gateway, f"/{name}").body == signed(name)
        assert_alone(site)

    def test_older_bundle_for_a_running_gateway(self, bundles: Bundles, inside: Site) -> None:
        take_in(inside.gateway, bundles.whole)
        assert eventually(lambda: shown(inside.gateway) == NEWEST), inside.gateway.log
        assert "--allow-older" in refusal(inside.gateway, bundles.first)
        take_in(inside.gateway, bundles.first, "--allow-older")
        settle(inside.origin)
        assert shown(inside.gateway) == NEWEST
        assert inside.client(local=5).run().version == NEWEST
        assert inside.client("fresh").run().version == NEWEST
        assert_alone(inside)

    def test_import_where_there_is_internet(self, bundles: Bundles, make_site: MakeSite) -> None:
        """It saves the download."""
        site = make_site(delta=ROOMY)
        site.publish(NEWEST)
        take_in(site.gateway, bundles.second)
        outcome = site.client().run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(site, outcome)
        settle(site.origin)
        assert site.origin.count("W") == site.origin.count("D5") == site.origin.count("D6") == 0


class TestExport:
    """What goes in."""

    def test_members(self, bundles: Bundles) -> None:
        """The manifest is the first; the objects are as ClamAV signed them."""
        for bundle, version in ((bundles.first, 5), (bundles.second, NEWEST), (bundles.whole, NEWEST)):
            members = members_of(bundle)
            assert next(iter(members)) == MANIFEST
            manifest = json.loads(members.pop(MANIFEST))["databases"]["test"]
            assert manifest["version"] == version
            listed = {item["name"]: (item["size"], item["sha256"]) for item in manifest["objects"]}
            assert {
                name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in members.items()
            } == listed
            assert all(content == signed(name) for name, content in members.items())

    def test_patches_alone(self, bundles: Bundles) -> None:
        assert set(members_of(bundles.patch)) == {MANIFEST, PATCH, f"{PATCH}.sign"}
        assert f"test-{BASE}.cvd" in members_of(bundles.first)

    def test_from_one_to_the_next_by_a_pipe(self, bundles: Bundles, idle: Gateway, tmp_path: Path) -> None:
        """Without and with --since; the standard output has the bundle and nothing else."""
        source = Gateway(tmp_path / "source", idle.settings | {"cache": {}})
        take_in(source, bundles.first)
        self._pipe(source, idle)
        take_in(source, bundles.patch)
        told = self._pipe(source, idle, "--since", "test=5")
        assert "test 6" in told
        names = (f"test-{BASE}.cvd", "test-5.cdiff", PATCH, f"{PATCH}.sign")
        assert {signed(name) for name in names} <= objects(idle.cache)

    def test_a_missing_patch(self, bundles: Bundles, idle: Gateway, tmp_path: Path) -> None:
        """From version 2 no cdiff leads to 3: the CVD goes in, and a line says so."""
        take_in(idle, bundles.second)
        result = run(idle, "export", str(tmp_path / "since.tar"), "--since", "test=2")
        assert result.returncode == OK
        assert "test" in result.stderr.decode().splitlines()[0]
        assert f"test-{BASE}.cvd" in members_of(tmp_path / "since.tar")

    def test_an_existing_file_is_replaced(self, bundles: Bundles, idle: Gateway, tmp_path: Path) -> None:
        take_in(idle, bundles.second)
        file = tmp_path / "bundle.tar"
        file.write_bytes(bytes(100_000))
        export(idle, file)
        assert PATCH in members_of(file)
        assert sorted(path.name for path in tmp_path.glob("*.tar*")) == ["bundle.tar"]

    @pytest.mark.parametrize("options", [["--since", "6"], ["--database", "daily"]])
    def test_nothing_to_export(
        self, bundles: Bundles, idle: Gateway, tmp_path: Path, options: list[str]
    ) -> None:
        take_in(idle, bundles.second)
        result = run(idle, "export", str(tmp_path / "none.tar"), *options)
        assert (result.returncode, result.stdout) == (1, b"")
        assert not list(tmp_path.glob("none*"))

    def test_no_cache(self, idle: Gateway, tmp_path: Path) -> None:
        result = run(idle, "export", str(tmp_path / "none.tar"))
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
        assert not idle.cache.exists()

    @pytest.mark.parametrize("since", ["yesterday", "test=", "test=5,nonsense"])
    def test_wrong_versions(self, idle: Gateway, since: str) -> None:
        result = run(idle, "export", "-", "--since", since)
        assert (result.returncode, result.stdout) == (2, b""), result.stderr

    @staticmethod
    def _pipe(source: Gateway, target: Gateway, *options: str) -> str:
        with subprocess.Popen(
            command(source, "export", "-", *options),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as writer:
            reader: Result = subprocess.run(
                command(target, "import", "-"),
                cwd=ROOT,
                env=environment(),
                stdin=writer.stdout,
                capture_output=True,
                timeout=LIMIT,
            )
            writer.communicate(timeout=LIMIT)
        assert (writer.returncode, reader.returncode, reader.stdout) == (OK, OK, b""), reader.stderr
        return reader.stderr.decode()


def in_member(name: str, offset: int) -> Callable[[Path], int]:
    """The place of a byte in the content of a member; in its header if the offset is negative."""

    def place(bundle: Path) -> int:
        with tarfile.open(bundle) as tar:
            return tar.getmember(name).offset_data + offset

    return place


CVD = f"test-{BASE}.cvd"
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


@pytest.mark.parametrize("key", ["last_modified", "built"])
@pytest.mark.parametrize("seconds", [0, 4_000_000_000])
def test_dates_are_not_trusted(
    bundles: Bundles, inside: Site, tmp_path: Path, key: str, seconds: float
) -> None:
    """libcurl drops a file whose Last-Modified is not after what the client has."""

    def change(database: dict[str, Any]) -> None:
        for item in database["objects"]:
            item[key] = seconds

    file = with_manifest(bundles.whole, tmp_path / "dates.tar", change)
    if run(inside.gateway, "import", str(file)).returncode == REFUSED:
        return
    assert eventually(lambda: shown(inside.gateway) == NEWEST), inside.gateway.log
    for client in (
        inside.client("whole", local=5, scripted=False),
        inside.client("private", Way.REVERSE, private=True, local=5),
    ):
        outcome = client.run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(inside, outcome)


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

    def test_forged_copy_of_what_is_there(self, bundles: Bundles, idle: Gateway, tmp_path: Path) -> None:
        """The cache has that object already: whatever is told, its own stays."""
        take_in(idle, bundles.first)
        forgery = forge_database("test", BASE, {"test.ndb": b"Forged:0:*:00\n"})
        run(idle, "import", str(forged(bundles.second, tmp_path / "forged.tar", {CVD: forgery})))
        assert forgery not in objects(idle.cache)
        assert signed(CVD) in objects(idle.cache)

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
        """What refused bundles have been unpacked to goes with the next import."""
        refusal(idle, forged(bundles.second, tmp_path / "forged.tar", {PATCH: forge_cdiff("test", NEWEST)}))
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


class TestKilled:
    """SIGKILL at some moments; the same command again completes it."""

    @pytest.mark.parametrize("share", [0.3, 0.97])
    def test_while_it_reads(self, bundles: Bundles, idle: Gateway, share: float) -> None:
        """The rest of the bundle is still on its way."""
        take_in(idle, bundles.first)
        before = idle.stats()
        body = bundles.second.read_bytes()
        process = self._start(idle, "-", stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(body[: int(len(body.rstrip(b"\0")) * share)])
        process.stdin.flush()
        time.sleep(1.0)
        assert process.poll() is None
        process.kill()
        process.communicate(timeout=10)
        assert idle.stats() == before
        self._assert_completed(idle, bundles.second)

    @pytest.mark.parametrize("count", [1, 4, 10])
    def test_while_it_writes(self, bundles: Bundles, idle: Gateway, count: int) -> None:
        """When so many files are there."""
        process = self._start(idle, str(bundles.second))
        while process.poll() is None and self._files(idle.cache) < count:
            time.sleep(0.0005)
        process.kill()
        process.communicate(timeout=10)
        self._assert_completed(idle, bundles.second)

    @pytest.mark.parametrize("names", [1, 2])
    def test_beside_a_running_gateway(self, bundles: Bundles, inside: Site, names: int) -> None:
        """Clients get the version before or the new one, never anything between."""
        take_in(inside.gateway, bundles.first)
        files = self._files(inside.gateway.cache)
        process = self._start(inside.gateway, str(bundles.patch))
        while process.poll() is None and self._files(inside.gateway.cache) < files + names:
            time.sleep(0.0005)
        process.kill()
        process.communicate(timeout=10)
        assert eventually(lambda: shown(inside.gateway) in (5, NEWEST)), inside.gateway.log
        outcome = inside.client().run()
        assert outcome.code == OK, explain(inside, outcome)
        assert outcome.version in (5, NEWEST)
        take_in(inside.gateway, bundles.patch)
        assert eventually(lambda: shown(inside.gateway) == NEWEST), inside.gateway.log
        assert inside.client().run().version == NEWEST
        assert_alone(inside)

    @staticmethod
    def _start(gateway: Gateway, file: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(gateway, "import", file),
            cwd=ROOT,
            env=environment(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @staticmethod
    def _files(cache: Path) -> int:
        return sum(len(files) for _, _, files in os.walk(cache))

    @staticmethod
    def _assert_completed(gateway: Gateway, bundle: Path) -> None:
        """A second import: the cache has all of the bundle, and the gateway starts with it."""
        take_in(gateway, bundle)
        contents = [content for name, content in members_of(bundle).items() if name != MANIFEST]
        assert set(contents) <= objects(gateway.cache)
        figures = gateway.stats()
        assert figures["objects"] == len(contents)
        assert figures["cache_bytes"] == sum(map(len, contents))
        with gateway:
            assert shown(gateway) == NEWEST
            assert gateway.ask("/test.cvd", range=PROBE, user_agent=USER_AGENT).status == 206
            assert gateway.ask(f"/{PATCH}").body == read_testdata(PATCH)
