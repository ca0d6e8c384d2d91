"""CLDs that are built here: what comes out, and what happens when it can't be built."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.cache.store import Store
from clamproxy.formats import cld as cld_module
from clamproxy.formats.cld import verify_cld
from clamproxy.formats.members import iter_members, open_payload
from clamproxy.notes import UNKEPT
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases import builder as builder_module
from clamproxy.releases.builder import LONGEST_BUILD, LONGEST_DEMAND, RETRY, BuildError, CldBuilder
from clamproxy.releases.lineage import Lineages, ProvenLineage
from clamproxy.threads import Writer
from tests.support.clock import Clock
from tests.support.forge import forge_keys
from tests.support.notes import notes_in
from tests.support.stored import RELEASES, cdiff, cvd, hold, put, put_cvd, read, until
from tests.support.strategies import json_values

MANY = 10**9
LIMIT = 30
"""Seconds; only a guard."""


def cld(version: int) -> ObjectId:
    return ObjectId("daily", version, Kind.CLD)


class BuilderHarness:
    """A builder with its store and a notebook."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.writer = Writer()
        self.keys = forge_keys().trusted
        self.lineages = Lineages(store, self.keys)
        self.notes: dict[str, Any] = {}
        self.clock = Clock()
        self.builder = self.make()

    def make(self) -> CldBuilder:
        return CldBuilder(self.store, self.writer, self.keys, notes_in(self.notes), clock=self.clock)

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
async def harness(store: Store) -> AsyncIterator[BuilderHarness]:
    """Version 1 is cached, with the patches up to 4."""
    hold(store, 1, [2, 3, 4])
    harness = BuilderHarness(store)
    yield harness
    harness.builder.stop()
    harness.writer.submit(store.disconnect)
    harness.writer.close()


def check(path: Path, content: bytes, version: int) -> None:
    """A CLD must have the members of the CVD of its version, and their proof."""
    path.write_bytes(content)
    with path.open("rb") as file:
        verify_cld(file, cld(version), forge_keys().trusted)
        members = {member.name: member.read() for member in iter_members(open_payload(file))}
    assert members == RELEASES.members(version)
    assert content[:512] == RELEASES.cld_header(version)


async def test_a_cld_is_what_freshclam_would_have_built(harness: BuilderHarness, tmp_path: Path) -> None:
    check(tmp_path / "cld", await harness.build(), 4)
    assert harness.store.has(cld(4))
    assert harness.left_over() == []


async def test_what_is_known_of_a_cld(harness: BuilderHarness) -> None:
    content = await harness.build()
    published = harness.store.open(cld(4))
    assert published is not None
    with published:
        assert published.metadata.header == content[:512].decode()
        assert published.metadata.last_modified is None
    assert harness.store.newest_version("daily") == 1


async def test_each_cld_is_built_once(harness: BuilderHarness) -> None:
    contents = await asyncio.gather(*(harness.build() for _ in range(10)))
    assert len(set(contents)) == 1
    before = read(harness.store, cld(4))
    again = harness.make()
    async with asyncio.timeout(LIMIT):
        published = await again.open("daily", await harness.proven())
    with published:
        assert os.pread(published.fileno(), published.size, 0) == before


async def test_the_next_cld_goes_on_from_the_last(harness: BuilderHarness, tmp_path: Path) -> None:
    """The patches that it is made of need not be here any more."""
    await harness.build()
    hold(harness.store, None, [5, 6])
    proven = await harness.proven()
    harness.store.drop(cdiff(2))
    async with asyncio.timeout(LIMIT):
        published = await harness.builder.open("daily", proven)
    with published:
        check(tmp_path / "cld", os.pread(published.fileno(), published.size, 0), 6)


async def test_a_patch_that_is_gone_is_a_failure_once(
    harness: BuilderHarness, caplog: pytest.LogCaptureFixture
) -> None:
    proven = await harness.proven()
    harness.store.drop(cdiff(2))
    for _ in range(3):
        assert harness.builder.can_build(cld(4)) == (not caplog.text)
        with pytest.raises(BuildError):
            await harness.builder.open("daily", proven)
    assert not harness.builder.can_build(cld(4))
    assert caplog.text.count("can't be built") == 1
    assert harness.left_over() == []
    assert harness.builder.can_build(cld(5))


async def test_after_a_failure_the_next_version_is_built(harness: BuilderHarness, tmp_path: Path) -> None:
    proven = await harness.proven()
    harness.store.drop(cdiff(2))
    with pytest.raises(BuildError):
        await harness.builder.open("daily", proven)
    hold(harness.store, None, [2, 5])
    check(tmp_path / "cld", await harness.build(), 5)


async def test_a_base_whose_payload_is_not_what_it_was(harness: BuilderHarness, store: Store) -> None:
    """Somebody has changed the CVD in the cache: what it would lead to is not published."""
    proven = await harness.proven()
    main = BuilderHarness(store)
    put_cvd(store, 9, RELEASES.cvd(2))
    put(store, cdiff(10), RELEASES.cdiff(3))
    with pytest.raises(BuildError):
        await main.builder.open("daily", ProvenLineage(type(proven.lineage)(9, 1, 10), proven.info))
    assert not store.has(cld(10))
    main.clock.now += 10 * RETRY
    assert not main.builder.can_build(cld(10)), "the content doesn't get any better"
    main.writer.submit(store.disconnect)
    main.writer.close()


async def test_who_leaves_ends_nothing(harness: BuilderHarness) -> None:
    waiting = asyncio.create_task(harness.build())
    await until(lambda: harness.builder._running or harness.store.has(cld(4)))
    waiting.cancel()
    await until(lambda: harness.store.has(cld(4)))


async def test_a_build_can_be_begun_without_waiting(harness: BuilderHarness) -> None:
    assert harness.builder.start("daily", await harness.proven()) == cld(4)
    await until(lambda: harness.store.has(cld(4)))
    assert harness.builder.start("daily", await harness.proven()) == cld(4)
    await until(lambda: not harness.left_over())


async def fail(harness: BuilderHarness, proven: ProvenLineage) -> None:
    with pytest.raises(BuildError):
        await harness.builder.open("daily", proven)
    assert not harness.builder.can_build(cld(proven.lineage.reached))
    assert harness.left_over() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
@pytest.mark.parametrize("place", ["clamproxy.releases.builder.build_cld", "clamproxy.cache.layout.place"])
async def test_what_passes_is_tried_again_after_a_pause(
    harness: BuilderHarness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, place: str
) -> None:
    def fail_with(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(place, fail_with)
        await fail(harness, await harness.proven())
    await fail(harness, await harness.proven())
    harness.clock.now += RETRY
    check(tmp_path / "cld", await harness.build(), 4)


async def test_a_patch_that_was_gone_for_a_moment(harness: BuilderHarness, tmp_path: Path) -> None:
    proven = await harness.proven()
    harness.store.drop(cdiff(2))
    await fail(harness, proven)
    hold(harness.store, None, [2])
    harness.clock.now += RETRY
    check(tmp_path / "cld", await harness.build(), 4)


@pytest.mark.parametrize("is_complete", [False, True])
async def test_a_build_that_is_cancelled_leaves_nothing(
    harness: BuilderHarness, monkeypatch: pytest.MonkeyPatch, is_complete: bool
) -> None:
    has_come, may_go, build_cld = threading.Event(), threading.Event(), cld_module.build_cld

    def build_slowly(*arguments: Any, **options: Any) -> None:
        if is_complete:
            build_cld(*arguments, **options)
        has_come.set()
        may_go.wait(LIMIT)
        if not is_complete:
            build_cld(*arguments, **options)

    monkeypatch.setattr(builder_module, "build_cld", build_slowly)
    harness.builder.start("daily", await harness.proven())
    await until(has_come.is_set)
    assert harness.builder.is_building
    harness.builder.stop()
    await until(lambda: not harness.builder.is_building)
    may_go.set()
    await until(lambda: "clamproxy-build" not in {thread.name for thread in threading.enumerate()})
    await until(lambda: not harness.left_over())


async def test_stop(harness: BuilderHarness) -> None:
    harness.builder.start("daily", await harness.proven())
    harness.builder.stop()
    await asyncio.sleep(0)
    assert not harness.store.has(cvd(4))


async def test_what_a_killed_process_left(harness: BuilderHarness) -> None:
    directory = harness.store.directory / "build"
    old, young, stray = directory / "daily-3.cld.x", directory / "daily-4.cld.y", directory / "file"
    for path in (old, young):
        path.mkdir(parents=True)
        (path / "daily.ndb").touch()
    stray.touch()
    moment = time.time() - LONGEST_BUILD - 60
    os.utime(old, (moment, moment))
    harness.builder.sweep()
    assert not old.exists()
    assert young.exists()


def test_sweeping_where_nothing_was_built(store: Store) -> None:
    writer = Writer()

    async def make() -> CldBuilder:
        return CldBuilder(store, writer, forge_keys().trusted, UNKEPT)

    asyncio.run(make()).sweep()
    writer.close()


# Demand


async def test_demand(harness: BuilderHarness) -> None:
    assert not harness.builder.is_in_demand("daily")
    for _ in range(100):
        harness.builder.note_demand("daily")
    assert harness.builder.is_in_demand("daily")
    assert not harness.builder.is_in_demand("main")
    again = harness.make()
    assert again.is_in_demand("daily")
    harness.clock.now += LONGEST_DEMAND + 60
    assert not harness.builder.is_in_demand("daily")
    assert not again.is_in_demand("daily")


async def test_a_demand_goes_on(harness: BuilderHarness) -> None:
    for _ in range(48):
        harness.clock.now += 2 * 3600
        harness.builder.note_demand("daily")
    assert harness.builder.is_in_demand("daily")


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

    workspaces = Path("nowhere")


async def test_patches_that_are_here_twice_do_no_harm(harness: BuilderHarness) -> None:
    put(harness.store, cdiff(4), b"again")
    assert (await harness.build())[:512] == RELEASES.cld_header(4)
