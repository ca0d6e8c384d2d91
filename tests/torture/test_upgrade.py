"""Earlier versions and this one on the same disk: real code of both, and nothing is fetched again.

There is no release yet, so the versions are commits: the last one, and those before each new layout. In a
shallow clone they aren't at hand, and what needs them is skipped, also with CI=true: a clone without history
is no fault of the code. `tests/unit/test_former_layouts.py` proves the same of each layout everywhere, from
caches made in that layout; only that real old code has written them is proved here.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clamproxy.formats.header import HEADER_SIZE
from clamproxy.releases.holds import release
from tests.support.dns_server import FakeDns
from tests.support.gateway import CDN, FORGED_ADDON, ROOT, Gateway, tunnel
from tests.support.origin import OriginServer
from tests.support.releases import Releases
from tests.support.site import eventually
from tests.torture.conftest import Figures
from tests.torture.effort import rounds

EARLIER = {
    "the last one": "729528831e5ffa55e9a7ae614e3f2ed153717ad1",
    "objects below the index": "fc67ba95c3ef2a2e5f99459a9c402789229be6c6",
    "records in the cache": "ceac7c09a5d8208edaed5fc750cdf85a2e1524d3",
}
"""Commits, by what is special about them; the second and the third are the last ones with that layout."""
LATEST = "the last one"
NEWEST = 5
PATCHES = range(2, NEWEST + 1)
RELEASES = {name: Releases(database=name, filler=200_000) for name in ("daily", "main")}
"""Large enough that the patches are less than `delta.max_share` of them, so that no new base is due. Once one
is, it is fetched with the index or without it. Without it that happens at once: when the CVD was last asked
for is forgotten, and so is the pause that the budget (`origin/budget.py`) would make first.
"""
CONTENTS = {
    "daily.cvd": RELEASES["daily"].cvd(1),
    "daily-1.cvd.sign": RELEASES["daily"].cvd_sign(1),
    **{f"daily-{version}.cdiff": RELEASES["daily"].cdiff(version) for version in PATCHES},
    **{
        f"daily-{version}.cdiff.sign": RELEASES["daily"].cdiff_sign(version)
        for version in range(2, NEWEST + 1)
    },
    "main.cvd": RELEASES["main"].cvd(1),
    "main-1.cvd.sign": RELEASES["main"].cvd_sign(1),
}
"""What machines ask for, and get: an older base, and what leads on from it."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the files of an earlier version."""
    directory = tmp_path_factory.mktemp("trees")

    def tree(commit: str) -> Path:
        place = directory / commit
        if not place.exists():
            command = ["git", "archive", commit, "clamproxy", "tests/support", "tests/__init__.py"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
            if done.returncode:  # a shallow clone, or no repository: see above
                pytest.skip(f"the history isn't here: {done.stderr.decode().strip()}")
            with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
                archive.extractall(place, filter="data")
        return place

    return tree


@dataclass(slots=True)
class Place:
    """A cache with its records, and what is around it."""

    directory: Path
    origin: OriginServer
    dns: FakeDns

    @contextmanager
    def run(self, tree: Path = ROOT) -> Iterator[Gateway]:
        """A gateway of some version."""
        environment = RELEASES["daily"].trusted(self.directory / "keys")["environment"]
        settings: dict[str, Any] = {
            "upstream": {"url": self.origin.url},
            "versions": {"nameservers": [self.dns.nameserver]},
            "serving": {"prefetch": "cdiffs"},
        }
        if tree != ROOT:
            environment |= {"PYTHONPATH": str(tree)}
        script = str(tree / FORGED_ADDON)
        gateway = Gateway(self.directory, settings, script=script, environment=environment)
        with gateway:
            yield gateway
            gateway.stop()

    def fill(self, tree: Path) -> dict[str, Any]:
        """Have an earlier version fetch everything; returns its statistics."""
        self.release(1)
        with self.run(tree) as gateway:
            assert gateway.ask("/daily.cvd").body == CONTENTS["daily.cvd"]
        self.release(NEWEST)
        with self.run(tree) as gateway:
            ask_for_all(gateway)
            figures: dict[str, Any] = told(gateway, "stats")
        self.origin.forget()
        return figures

    def release(self, version: int) -> None:
        """The origin gets the files of the first version, or all that follow; DNS advertises them."""
        for name, content in CONTENTS.items():
            if name.removesuffix(".sign").endswith(".cvd") == (version == 1):
                self.origin.put(name, content)
        self.origin.put("daily.cvd", RELEASES["daily"].cvd(version))
        self.dns.versions |= {"main": 1, "daily": version}

    @property
    def fetched(self) -> list[str]:
        """What the origin has been asked for since it was filled."""
        return [seen.path for seen in self.origin.requests()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with OriginServer() as origin, FakeDns() as dns:
        yield Place(tmp_path / "gateway", origin, dns)


def ask_for_all(gateway: Gateway) -> None:
    for name, content in CONTENTS.items():
        answer = gateway.ask(f"/{name}")
        assert (answer.status, answer.body == content) == (200, True), (name, answer)


def told(gateway: Gateway, command: str) -> Any:
    """What a command of the gateway's own version prints, once everything has been written."""
    time.sleep(1.5)
    process = gateway.start_tool(command, "--json")
    output, _ = process.communicate(timeout=60)
    return json.loads(output)


def told_by(gateway: Gateway, *command: str) -> str:
    """What a command prints, which must succeed."""
    process = gateway.start_tool(*command)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    return output.decode()


def versions(gateway: Gateway) -> dict[str, dict[str, int]]:
    """What each machine has."""
    return {
        machine["uuid"]: {name: held["version"] for name, held in machine["databases"].items()}
        for machine in told(gateway, "fleet")
    }


@pytest.mark.parametrize("earlier", [*EARLIER][rounds(2, 0) :])
def test_upgrade(place: Place, trees: Callable[[str], Path], earlier: str, figures: Figures) -> None:
    before = place.fill(trees(EARLIER[earlier]))
    assert (place.directory / "cache" / "objects").exists() == (earlier == LATEST)  # it was that code
    with place.run() as gateway:
        ask_for_all(gateway)
        after = told(gateway, "stats")
        assert [held["daily"] for held in versions(gateway).values()] == [NEWEST]
    assert place.fetched == []
    assert after["requests"] == before["requests"] + len(CONTENTS)
    assert after["upstream_requests"] == before["upstream_requests"]
    figures(f"upgrade from {earlier}", objects=len(CONTENTS), fetched_again=0)


def test_back(place: Place, trees: Callable[[str], Path], figures: Figures) -> None:
    """docs/operations.md: the version before finds objects, counters and machines where they are."""
    tree = trees(EARLIER[LATEST])
    place.fill(tree)
    with place.run() as gateway:
        ask_for_all(gateway)
        upgraded, known = told(gateway, "stats"), versions(gateway)
    with place.run(tree) as gateway:
        ask_for_all(gateway)
        after = told(gateway, "stats")
        assert versions(gateway) == known
    assert place.fetched == []
    assert after["requests"] == upgraded["requests"] + len(CONTENTS)
    figures("going back", objects=len(CONTENTS), fetched_again=0)


HOLD = """
import sys, time; from pathlib import Path; from clamproxy.releases import holds
holds.hold(Path(sys.argv[1]), "daily", holds.Hold(1, time.time(), "root", "a false positive"))
"""
"""As `clamproxy hold daily 1` does it, which doesn't trust the test keys."""


def test_what_commands_have_written(place: Place, trees: Callable[[str], Path], figures: Figures) -> None:
    """A hold and the authority are still in force."""
    tree, state = trees(EARLIER[LATEST]), place.directory / "cache-state"
    place.release(1)
    with place.run(tree) as gateway:
        assert gateway.ask("/daily.cvd").body == CONTENTS["daily.cvd"]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run([sys.executable, "-c", HOLD, state], cwd=place.directory, env=environment, check=True)
        told_by(gateway, "ca", "init")
        root = told_by(gateway, "ca", "export")
    place.release(NEWEST)
    with place.run() as gateway:
        assert signs(gateway, root)
        assert [(limit["database"], limit["version"]) for limit in told(gateway, "hold")] == [("daily", 1)]
        assert gateway.ask("/daily-2.cdiff").status == 404
        assert release(state, "daily", "root", time.time()) is not None
        assert eventually(lambda: gateway.ask("/daily-2.cdiff").body == CONTENTS["daily-2.cdiff"])
    figures("upgrade: what commands have written", holds=1, authorities=1)


def signs(gateway: Gateway, root: str) -> bool:
    """Whether machines that trust this root can use https."""
    context = ssl.create_default_context(cadata=root)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as stream:
        tunnel(stream, f"{CDN}:443")
        with context.wrap_socket(stream, server_hostname=CDN) as secured:
            return secured.version() is not None


def break_nothing(index: Path) -> None:
    """The control."""


def delete(index: Path) -> None:
    shutil.rmtree(index)


def overwrite(index: Path) -> None:
    for file in index.glob("cache.db*"):
        file.write_bytes(b"no index" * 1000)


def come_from_the_future(index: Path) -> None:
    """An index of a version that is yet to be written: with another schema, and a number that says so."""
    with closing(sqlite3.connect(index / "cache.db")) as database:
        database.execute("PRAGMA user_version = 99")
        database.execute("ALTER TABLE Cache RENAME TO Entries")
        database.commit()


CHANGES = [come_from_the_future, delete, overwrite, break_nothing]


@pytest.mark.parametrize("change", CHANGES[: rounds(1, 4)])
def test_rebuilt_from_the_objects(place: Place, change: Callable[[Path], None], figures: Figures) -> None:
    before = place.fill(ROOT)
    change(place.directory / "cache" / "index")
    with place.run() as gateway:
        ask_for_all(gateway)
        after = told(gateway, "stats")
    # The header of the newest CVD may be looked at, and its signature asked for, which was never here.
    had = {f"/{name}" for name in CONTENTS} - {"/daily.cvd", "/main.cvd"}
    assert had.isdisjoint(place.fetched)
    assert after["upstream_bytes"] - before["upstream_bytes"] <= 2 * HEADER_SIZE  # a header, not a database
    assert after["requests"] == before["requests"] + len(CONTENTS)
    figures(f"index: {change.__name__}", objects=len(CONTENTS), fetched_again=0)
