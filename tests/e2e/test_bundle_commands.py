"""``clamproxy export`` and ``import``: a gateway without internet, its clients the real freshclam."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import (
    BASE,
    MANIFEST,
    OFFLINE,
    PATCH,
    REFUSED,
    Bundles,
    export,
    members_of,
    objects,
    refusal,
    take_in,
    with_manifest,
)
from tests.support.data import read_testdata
from tests.support.freshclam import OK
from tests.support.gateway import TOOL_LIMIT, USER_AGENT, Gateway, Way
from tests.support.scenes import NEWEST, PROBE, ROOMY, explain, settle, shown, whole
from tests.support.site import Site, eventually, signed

from .conftest import MakeSite


def assert_alone(site: Site) -> None:
    """Nothing has left the gateway."""
    assert (site.origin.trace, site.dns.queries) == ("", []), site.gateway.log


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
        """With the signatures that may have been late when the first bundle was made."""
        late = {f"test-{BASE}.cvd.sign", "test-5.cdiff.sign"}
        assert set(members_of(bundles.patch)) == {MANIFEST, PATCH, f"{PATCH}.sign", *late}
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
        result = idle.tool("export", str(tmp_path / "since.tar"), "--since", "test=2")
        assert result.returncode == OK
        assert "test" in result.stderr.splitlines()[0]
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
        result = idle.tool("export", str(tmp_path / "none.tar"), *options)
        assert (result.returncode, result.stdout) == (1, "")
        assert not list(tmp_path.glob("none*"))

    def test_no_cache(self, idle: Gateway, tmp_path: Path) -> None:
        result = idle.tool("export", str(tmp_path / "none.tar"))
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
        assert not idle.cache.exists()

    @pytest.mark.parametrize("since", ["yesterday", "test=", "test=5,nonsense"])
    def test_wrong_versions(self, idle: Gateway, since: str) -> None:
        result = idle.tool("export", "-", "--since", since)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr

    @staticmethod
    def _pipe(source: Gateway, target: Gateway, *options: str) -> str:
        with source.start_tool("export", "-", *options) as writer:
            reader = target.tool("import", "-", stdin=writer.stdout or subprocess.DEVNULL)
            writer.communicate(timeout=TOOL_LIMIT)
        assert (writer.returncode, reader.returncode, reader.stdout) == (OK, OK, ""), reader.stderr
        return reader.stderr


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
    if inside.gateway.tool("import", str(file)).returncode == REFUSED:
        return
    assert eventually(lambda: shown(inside.gateway) == NEWEST), inside.gateway.log
    for client in (
        inside.client("whole", local=5, scripted=False),
        inside.client("private", Way.REVERSE, private=True, local=5),
    ):
        outcome = client.run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(inside, outcome)


class TestKilled:
    """SIGKILL at some moments; the same command again completes it."""

    @pytest.mark.parametrize("share", [0.3, 0.97])
    def test_while_it_reads(self, bundles: Bundles, idle: Gateway, share: float) -> None:
        """The rest of the bundle is still on its way."""
        take_in(idle, bundles.first)
        before = idle.stats()
        body = bundles.second.read_bytes()
        process = idle.start_tool("import", "-", stdin=subprocess.PIPE)
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
        process = idle.start_tool("import", str(bundles.second))
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
        process = inside.gateway.start_tool("import", str(bundles.patch))
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
