"""A disk that is full, read-only or damaged: what is cached is served, and what is small passes through."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import TESTDATA
from tests.support.disk import Disk, open_disk
from tests.support.freshclam import OK
from tests.support.gateway import Way
from tests.support.scenes import NEWEST, ROOMY, explain, hold, settle, shown
from tests.support.site import Site, eventually, flipped, signed

from .conftest import MakeSite

HELD = 3
"""The version that clients have, and that is cached with its patches, before the disk fails."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with open_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def site(make_site: MakeSite, disk: Disk) -> Site:
    """A site whose cache and records are on the small disk, with version 3 of database test by a patch."""
    site = make_site(
        cache={"directory": str(disk.path / "cache")},
        state={"directory": str(disk.path / "state")},
        delta=ROOMY,
    )
    hold(site, 2, HELD)
    return site


def readiness(site: Site) -> tuple[int, str]:
    answer = site.gateway.ask("/readyz", Way.ABSOLUTE, host="clamproxy")
    return answer.status, answer.body.decode()


def storage(site: Site) -> Any:
    return site.gateway.stats()["storage"]["cache"]


def lines(site: Site, text: str) -> int:
    return sum(text in line for line in site.gateway.log.splitlines())


def assert_updated(site: Site, *names: str) -> None:
    """Clients that have version 3 get the newest, by patches that the origin is asked for once."""
    assert eventually(lambda: shown(site.gateway) == NEWEST), site.gateway.log
    for name in names:
        client = site.client(name)
        client.install(TESTDATA / f"test-{HELD}.cvd")
        outcome = client.run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(site, outcome)
    for patch in range(HELD + 1, NEWEST + 1):
        assert site.origin.count(f"D{patch}") == 1, site.origin.trace


@pytest.mark.parametrize("left", [0, 100 * 1024], ids=["nothing is left", "100 KiB are left"])
@pytest.mark.parametrize("restart", [False, True], ids=["it runs", "it starts"])
def test_full(site: Site, disk: Disk, left: int, restart: bool) -> None:
    if restart:
        site.gateway.kill()
    disk.fill(left)
    if restart:
        site.gateway.start()
    before = len(site.gateway.log)
    site.publish(NEWEST)
    assert_updated(site, "one", "two")
    status, text = readiness(site)
    assert (status, "degraded" in text) == (200, True), text
    assert storage(site)["state"] == "full"
    assert lines(site, "The cache directory: ") == 1, site.gateway.log
    assert "Traceback" not in site.gateway.log
    disk.clear()
    assert eventually(lambda: storage(site) is None and readiness(site)[1] != text)
    assert eventually(lambda: lines(site, "The cache directory can be written to again") == 1)
    # What was held in memory is on the disk now.
    assert eventually((disk.path / "cache" / "objects" / "test" / f"test-{NEWEST}.cdiff").exists)
    site.gateway.kill()
    site.gateway.start()
    site.origin.forget()
    assert site.gateway.ask(f"/test-{NEWEST}.cdiff").body == signed(f"test-{NEWEST}.cdiff")
    assert site.origin.count(f"D{NEWEST}") == 0
    assert len(site.gateway.log) > before


def test_read_only(site: Site, disk: Disk) -> None:
    site.gateway.kill()
    disk.make_read_only()
    site.gateway.start()
    site.publish(NEWEST)
    assert_updated(site, "one", "two")
    status, text = readiness(site)
    assert (status, "degraded" in text) == (200, True), text
    assert storage(site)["state"] == "read-only"
    assert lines(site, "The cache directory: ") == 1, site.gateway.log
    assert "Traceback" not in site.gateway.log
    asked = site.gateway.stats()["requests"]
    disk.make_writable()
    assert eventually(lambda: storage(site) is None)
    assert eventually(lambda: site.gateway.stats()["requests"] > asked)
    assert eventually((disk.path / "cache" / "objects" / "test" / f"test-{NEWEST}.cdiff").exists)


def test_a_whole_file_without_room_is_not_fetched_in_vain(site: Site, disk: Disk) -> None:
    """Nobody gets an older one than before, and it is fetched when there is room."""
    site.publish(NEWEST)
    for patch in range(HELD + 1, NEWEST + 1):
        site.origin.remove(f"test-{patch}.cdiff")
    disk.fill(1024 * 1024 + 4096)
    for _ in range(4):
        answer = site.gateway.ask("/test.cvd", extra={"User-Agent": "curl/8.5.0"})
        assert (answer.status, answer.body[:7]) == (200, b"ClamAV-")
    settle(site.origin)
    assert site.origin.count("W") <= 1, site.origin.trace
    assert "Traceback" not in site.gateway.log
    disk.clear()

    def newest() -> bool:
        body = site.gateway.ask("/test.cvd", extra={"User-Agent": "curl/8.5.0"}).body
        return body == signed(f"test-{NEWEST}.cvd")

    assert eventually(newest, limit=80.0, every=2.0), site.gateway.log


def spoil(cache: Path) -> None:
    with (cache / "index" / "cache.db").open("r+b") as file:
        file.write(b"\xff" * 50_000)


def lock_out(cache: Path) -> None:
    """As if root had made it: here, something that is no file."""
    (cache / "index" / "cache.db").unlink()
    (cache / "index" / "cache.db").mkdir()


def delete(cache: Path) -> None:
    for path in (cache / "index").glob("cache.db*"):
        path.unlink()


@pytest.mark.parametrize("damage", [spoil, lock_out, delete])
@pytest.mark.parametrize("restart", [False, True], ids=["it runs", "it starts"])
def test_a_damaged_index(make_site: MakeSite, damage: Callable[[Path], None], restart: bool) -> None:
    site = make_site(delta=ROOMY)
    hold(site, 2, HELD)
    if restart:
        site.gateway.kill()
    damage(site.gateway.cache)
    assert site.gateway.stats()["databases"]["test"]["reached"] == HELD
    assert site.gateway.tool("verify", "--repair", "--no-fetch").returncode == 0
    if restart:
        site.gateway.start()
    assert site.gateway.ask("/test.cvd").status == 200
    assert site.origin.count("W") == 0
    site.publish(NEWEST)
    assert_updated(site, "one", "two")
    assert "Traceback" not in site.gateway.log
    assert eventually(lambda: site.gateway.stats()["storage"]["index"] is None)
    with closing(sqlite3.connect(site.gateway.cache / "index" / "cache.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    site.gateway.kill()
    site.gateway.start()
    site.origin.forget()
    assert site.gateway.ask(f"/test-{NEWEST}.cdiff").body == signed(f"test-{NEWEST}.cdiff")
    assert site.origin.count(f"D{NEWEST}") == 0


@pytest.mark.parametrize("damage", ["a bit", "an end"])
def test_damaged_objects_are_not_served(make_site: MakeSite, damage: str) -> None:
    """Whatever their kind: from the next start on."""
    site = make_site(delta=ROOMY)
    hold(site, 2, HELD)
    whole = {path.name: path.read_bytes() for path in (site.gateway.cache / "objects" / "test").iterdir()}
    assert {"test-2.cvd", "test-2.cvd.sign", "test-3.cdiff", "test-3.cdiff.sign"} <= set(whole)
    site.gateway.kill()
    for name, body in whole.items():
        path = site.gateway.cache / "objects" / "test" / name
        path.chmod(0o600)
        path.write_bytes(flipped(body) if damage == "a bit" else body[:-1])
    site.gateway.start()
    assert site.gateway.ask("/test-2.cvd.sign").body == signed("test-2.cvd.sign")
    for name in ("test-3.cdiff", "test-3.cdiff.sign"):
        assert site.gateway.ask(f"/{name}").body == signed(name)
    assert site.gateway.ask("/test.cvd").body in (signed("test-2.cvd"), signed(f"test-{HELD}.cvd"))
    assert (
        site.gateway.log.count("was damaged, and has been dropped")
        + site.gateway.log.count("was missing or truncated")
        == 4
    )
