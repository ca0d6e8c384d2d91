"""CLDs that are built here: what comes out, and what happens when it can't be built."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.cache.store import Store
from clamproxy.formats.cld import verify_cld
from clamproxy.formats.members import iter_members, open_payload
from clamproxy.notes import UNKEPT
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases import builder as builder_module
from clamproxy.releases.builder import LONGEST_BUILD, LONGEST_DEMAND, BuildError, CldBuilder
from clamproxy.releases.lineage import Lineages, ProvenLineage
from clamproxy.threads import Writer
from tests.support.forge import forge_keys
from tests.support.notes import notes_in
from tests.support.strategies import json_values
from tests.unit.conftest import RELEASES, cdiff, cvd, hold, put, put_cvd, read, until

MANY = 10**9
LIMIT = 30
"""Seconds; only a guard."""


def cld(version: int) -> ObjectId:
    return ObjectId("daily", version, Kind.CLD)


class Bench:
    """A builder with its store and a notebook."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.writer = Writer()
        self.keys = forge_keys().trusted
        self.lineages = Lineages(store, self.keys)
        self.notes: dict[str, Any] = {}
        self.builder = self.make()

    def make(self) -> CldBuilder:
        return CldBuilder(self.store, self.writer, self.keys, notes_in(self.notes))

    async def proven(self) -> ProvenLineage:
        proven = await self.lineages.get("daily")
        assert proven is not None
        return proven

    async def build(self) -> bytes:
        """Build the CLD of the version that is reached; gives its bytes."""
        async with asyncio.timeout(LIMIT):
            published = await self.builder.open("daily", await self.proven())
        with published:
            return os.pread(published.fileno(), published.size, 0)

    def left_over(self) -> list[Path]:
        return list((self.store.directory / "build").glob("*"))


@pytest.fixture
async def bench(store: Store) -> AsyncIterator[Bench]:
    """Version 1 is cached, with the patches up to 4."""
    hold(store, 1, [2, 3, 4])
    bench = Bench(store)
    yield bench
    bench.builder.stop()
    bench.writer.submit(store.disconnect)
    bench.writer.close()


def check(path: Path, content: bytes, version: int) -> None:
    """A CLD must have the members of the CVD of its version, and their proof."""
    path.write_bytes(content)
    with path.open("rb") as file:
        verify_cld(file, cld(version), forge_keys().trusted)
        members = {member.name: member.read() for member in iter_members(open_payload(file))}
    assert members == RELEASES.members(version)
    assert content[:512] == RELEASES.cld_header(version)


async def test_it_is_what_freshclam_would_have_built(bench: Bench, tmp_path: Path) -> None:
    check(tmp_path / "cld", await bench.build(), 4)
    assert bench.store.has(cld(4))
    assert bench.left_over() == []


async def test_what_is_known_of_it(bench: Bench) -> None:
    content = await bench.build()
    published = bench.store.open(cld(4))
    assert published is not None
    with published:
        assert published.metadata.header == content[:512].decode()
        assert published.metadata.last_modified is None
    assert bench.store.newest_version("daily") == 1


async def test_each_is_built_once(bench: Bench) -> None:
    contents = await asyncio.gather(*(bench.build() for _ in range(10)))
    assert len(set(contents)) == 1
    before = read(bench.store, cld(4))
    again = bench.make()
    async with asyncio.timeout(LIMIT):
        published = await again.open("daily", await bench.proven())
    with published:
        assert os.pread(published.fileno(), published.size, 0) == before


async def test_the_next_one_goes_on_from_the_last(bench: Bench, tmp_path: Path) -> None:
    """The patches that it is made of need not be here any more."""
    await bench.build()
    hold(bench.store, None, [5, 6])
    proven = await bench.proven()
    bench.store.drop(cdiff(2))
    async with asyncio.timeout(LIMIT):
        published = await bench.builder.open("daily", proven)
    with published:
        check(tmp_path / "cld", os.pread(published.fileno(), published.size, 0), 6)


async def test_a_patch_that_is_gone_is_a_failure_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    proven = await bench.proven()
    bench.store.drop(cdiff(2))
    for _ in range(3):
        assert bench.builder.can_build(cld(4)) == (not caplog.text)
        with pytest.raises(BuildError):
            await bench.builder.open("daily", proven)
    assert not bench.builder.can_build(cld(4))
    assert caplog.text.count("can't be built") == 1
    assert bench.left_over() == []
    assert bench.builder.can_build(cld(5))


async def test_after_a_failure_the_next_version_is_built(bench: Bench, tmp_path: Path) -> None:
    proven = await bench.proven()
    bench.store.drop(cdiff(2))
    with pytest.raises(BuildError):
        await bench.builder.open("daily", proven)
    hold(bench.store, None, [2, 5])
    check(tmp_path / "cld", await bench.build(), 5)


async def test_a_base_whose_payload_is_not_what_it_was(bench: Bench, store: Store) -> None:
    """Somebody has changed the CVD in the cache: what it would lead to is not published."""
    proven = await bench.proven()
    main = Bench(store)
    put_cvd(store, 9, RELEASES.cvd(2))
    with pytest.raises(BuildError):
        await main.builder.open("daily", ProvenLineage(type(proven.lineage)(9, 1, 10), proven.info))
    assert not store.has(cld(10))
    main.writer.submit(store.disconnect)
    main.writer.close()


async def test_who_leaves_ends_nothing(bench: Bench) -> None:
    waiting = asyncio.create_task(bench.build())
    await until(lambda: bench.builder._running or bench.store.has(cld(4)))
    waiting.cancel()
    await until(lambda: bench.store.has(cld(4)))


async def test_it_can_be_begun_without_waiting(bench: Bench) -> None:
    assert bench.builder.start("daily", await bench.proven()) == cld(4)
    await until(lambda: bench.store.has(cld(4)))
    assert bench.builder.start("daily", await bench.proven()) == cld(4)
    await until(lambda: not bench.left_over())


async def test_a_disk_that_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(builder_module, "build_cld", full)
        with pytest.raises(BuildError):
            await bench.build()
    assert bench.left_over() == []
    assert bench.make().can_build(cld(4))


async def test_stop(bench: Bench) -> None:
    bench.builder.start("daily", await bench.proven())
    bench.builder.stop()
    await asyncio.sleep(0)
    assert not bench.store.has(cvd(4))


async def test_what_a_killed_process_left(bench: Bench) -> None:
    directory = bench.store.directory / "build"
    old, young, stray = directory / "daily-3.cld.x", directory / "daily-4.cld.y", directory / "file"
    for path in (old, young):
        path.mkdir(parents=True)
        (path / "daily.ndb").touch()
    stray.touch()
    moment = time.time() - LONGEST_BUILD - 60
    os.utime(old, (moment, moment))
    bench.builder.sweep()
    assert not old.exists()
    assert young.exists()


def test_sweeping_where_nothing_was_built(store: Store) -> None:
    writer = Writer()

    async def make() -> CldBuilder:
        return CldBuilder(store, writer, forge_keys().trusted, UNKEPT)

    asyncio.run(make()).sweep()
    writer.close()


# Demand


async def test_demand(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    assert not bench.builder.is_in_demand("daily")
    for _ in range(100):
        bench.builder.note_demand("daily")
    assert bench.builder.is_in_demand("daily")
    assert not bench.builder.is_in_demand("main")
    again = bench.make()
    assert again.is_in_demand("daily")
    monkeypatch.setattr(time, "time", lambda: now + LONGEST_DEMAND + 60)
    assert not bench.builder.is_in_demand("daily")
    assert not again.is_in_demand("daily")


async def test_a_demand_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for hours in range(0, 96, 2):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        bench.builder.note_demand("daily")
    assert bench.builder.is_in_demand("daily")


@given(st.dictionaries(st.sampled_from(["daily", "main", ""]), json_values))
@example({"daily": 10**400})
@example({"daily": float("nan")})
@example({"daily": float("inf")})
@example({"daily": 1e300})
def test_whatever_was_noted_does_no_harm(saved: dict[str, Any]) -> None:
    nothing: Any = _NoStore()

    async def restore() -> None:
        builder = CldBuilder(nothing, nothing, nothing, notes_in(dict(saved)))
        for database, value in saved.items():
            assert not builder.is_in_demand(database) or value > 0  # one ahead of the clock counts as now
            builder.note_demand(database)
            assert builder.is_in_demand(database)

    asyncio.run(restore())


class _NoStore:
    """Nothing is built here."""

    directory = Path("nowhere")


async def test_patches_that_are_here_twice_do_no_harm(bench: Bench) -> None:
    put(bench.store, cdiff(4), b"again")
    assert (await bench.build())[:512] == RELEASES.cld_header(4)
