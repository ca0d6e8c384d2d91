"""Holds of a site: what is held at one gateway is held at all of them, by an object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from clamproxy.bucket.bucket import Bucket
from clamproxy.bucket.bucket_requests import BucketRequests
from clamproxy.releases import holds
from clamproxy.releases.holds import FILE_NAME, Hold, HoldChange, Holds, read_holds
from clamproxy.releases.site_holds import PATH, SiteHolds
from tests.support.object_store import ObjectStore

FIRST, SECOND = Hold(100, 1.0, "alice", "bad"), Hold(99, 2.0, "bob")


class Site:
    def __init__(self, directory: Path) -> None:
        self.bucket = Bucket(BucketRequests(MemoryStore()), "memory://")
        self._directory = directory

    def gateway(self, name: str) -> tuple[Path, SiteHolds]:
        directory = self._directory / name
        directory.mkdir()
        return directory, SiteHolds(self.bucket, directory)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_what_is_held_at_one_is_held_at_all(site: Site) -> None:
    (one, first), (other, second) = site.gateway("a"), site.gateway("b")
    await first.synchronize()
    assert await site.bucket.get(PATH) is None  # nothing has ever been held
    holds.hold(one, "daily", FIRST)
    for gateway in (first, second):
        await gateway.synchronize()
    assert read_holds(other) == read_holds(one)
    assert read_holds(other).in_force == {"daily": FIRST}
    holds.release(other, "daily", "carol", 3.0)
    holds.hold(one, "main", SECOND)
    for gateway in (first, second, first):
        await gateway.synchronize()
    assert read_holds(other) == read_holds(one)
    assert read_holds(one).in_force == {"main": SECOND}


async def test_nothing_is_written_while_nothing_changes(site: Site) -> None:
    (one, first), (other, second) = site.gateway("a"), site.gateway("b")
    holds.hold(one, "daily", FIRST)
    for _ in range(3):
        await first.synchronize()
        await second.synchronize()
    stored, times = (
        await site.bucket.get(PATH),
        [(path / FILE_NAME).stat().st_mtime_ns for path in (one, other)],
    )
    for _ in range(3):
        await first.synchronize()
        await second.synchronize()
    assert await site.bucket.get(PATH) == stored
    assert [(path / FILE_NAME).stat().st_mtime_ns for path in (one, other)] == times


async def test_the_same_command_at_two_gateways_is_one_hold(site: Site) -> None:
    """Each has its own time; the document is written until both agree, and no more."""
    (one, first), (other, second) = site.gateway("a"), site.gateway("b")
    holds.hold(one, "daily", FIRST)
    holds.hold(other, "daily", replace(FIRST, since=9.0))
    for gateway in (first, second, first):
        await gateway.synchronize()
    stored = await site.bucket.get(PATH)
    for gateway in (second, first):
        await gateway.synchronize()
    assert await site.bucket.get(PATH) == stored
    assert read_holds(one) == read_holds(other)
    assert read_holds(one).in_force == {"daily": replace(FIRST, since=9.0)}


async def test_a_new_gateway_knows_before_it_serves(site: Site) -> None:
    one, first = site.gateway("a")
    holds.hold(one, "daily", FIRST)
    await first.synchronize()
    pod, new = site.gateway("pod")
    assert new.problem is not None
    await new.learn()
    assert read_holds(pod).in_force == {"daily": FIRST}
    assert new.problem is None


async def test_a_store_that_is_down_stops_nobody(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    _, gateway = site.gateway("a")
    site.bucket.condition.failed("down")
    await gateway.learn()
    assert "isn't known what other gateways hold" in caplog.text
    assert gateway.problem == "it isn't known what other gateways of the site hold: memory://: down"
    site.bucket.condition.recovered()
    await gateway.synchronize()
    assert gateway.problem is None


async def test_a_file_that_cannot_be_written_is_a_problem(site: Site) -> None:
    one, first = site.gateway("a")
    holds.hold(one, "daily", FIRST)
    await first.synchronize()
    other, second = site.gateway("b")
    (other / "holds.lock").mkdir()
    await second.learn()
    assert second.problem is not None
    assert "can't be kept here" in second.problem


def _with(**changes: Any) -> bytes:
    change = {"database": "daily", "at": 5.0, "by": "x", "version": 1, "why": "", **changes}
    return json.dumps({"holds": {}, "changes": [change]}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b"{}",
        _with(version=10**12),
        _with(version=0),
        _with(at=1e300),
        _with(at=float("nan")),
        _with(database="../x"),
        json.dumps(
            {
                "holds": {},
                "changes": [
                    {"database": "a" * n, "at": 1, "by": "", "version": None, "why": ""}
                    for n in range(1, 100)
                ],
            }
        ).encode(),
        b" " * 2**20 + _with(),
    ],
)
async def test_a_hostile_document_lifts_nothing(site: Site, content: bytes) -> None:
    one, first = site.gateway("a")
    holds.hold(one, "daily", FIRST)
    await site.bucket.put(PATH, content)
    await first.synchronize()
    assert read_holds(one).in_force == {"daily": FIRST}
    stored = await site.bucket.get(PATH)
    assert stored is not None
    assert holds.decode(stored.content).in_force == {"daily": FIRST}


async def test_texts_of_others_are_one_line(site: Site) -> None:
    one, first = site.gateway("a")
    document = Holds({}, (HoldChange("daily", 5.0, "x\x1b[2J" * 100, 7, "a\nb\u202e" * 100),))
    await site.bucket.put(PATH, holds.encode(document))
    await first.synchronize()
    held = read_holds(one).in_force["daily"]
    assert held.version == 7
    assert (held.by + held.why).isprintable()
    assert len(held.by + held.why) < 300


_COMMAND = """
import sys
from dataclasses import replace
from pathlib import Path
from clamproxy.releases.site_holds import synchronize
sys.exit(0 if "Connection refused" in (synchronize(sys.argv[1], Path(sys.argv[2])) or "") else 1)
"""


def test_a_command_ends_as_it_should_while_the_store_is_down(
    tmp_path: Path, object_store: ObjectStore
) -> None:
    """obstore's threads must not abort a process that ends right after a call."""
    object_store.go_down()
    command = [sys.executable, "-c", _COMMAND, object_store.url, str(tmp_path)]
    environment = {**os.environ, **object_store.environment}
    ends = [subprocess.run(command, env=environment, capture_output=True, check=False) for _ in range(6)]
    assert [one.returncode for one in ends] == [0] * 6, ends[0].stderr
