"""Earlier versions and this one on the same disk: real code of both, and nothing is fetched again.

There is no release yet, so the versions are commits: the last one, and those before each new layout.
`tests/unit/test_former_layouts.py` says the same of each layout, where the history isn't at hand.
"""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clamproxy.formats.header import HEADER_SIZE
from tests.support.dns_server import FakeDns
from tests.support.gateway import FORGED_ADDON, ROOT, Gateway
from tests.support.origin import OriginServer
from tests.support.releases import Releases
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
"""Large enough that the patches are less than `delta.max_share` of them, so that no new base is due."""
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
            if done.returncode:  # a shallow clone, or no repository
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
        self._release(1, lambda name: name.removesuffix(".sign").endswith(".cvd"))
        with self.run(tree) as gateway:
            assert gateway.ask("/daily.cvd").body == CONTENTS["daily.cvd"]
        self._release(NEWEST, lambda name: not name.endswith(".cvd"))
        self.origin.put("daily.cvd", RELEASES["daily"].cvd(NEWEST))
        with self.run(tree) as gateway:
            ask_for_all(gateway)
            figures: dict[str, Any] = told(gateway, "stats")
        self.origin.forget()
        return figures

    def _release(self, version: int, are_new: Callable[[str], bool]) -> None:
        for name in filter(are_new, CONTENTS):
            self.origin.put(name, CONTENTS[name])
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
