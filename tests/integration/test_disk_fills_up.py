"""A disk that fills up while a whole database arrives: the origin isn't asked for what can't be stored."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from clamproxy.messages import SourceError
from clamproxy.storage.growing_file import GrowingFile
from tests.harness.service import RELEASES, ServiceHarness, open_harness
from tests.support.faults import short
from tests.support.origin import OriginServer

ALLOWED = 10
"""Requests for one file that the CDN answers within an hour."""
PLENTY = 2**40
LITTLE = 10_000
"""Bytes."""


class TightDisk:
    """Takes only the first bytes of each file that arrives."""

    def __init__(self, takes: int, reason: int, free: int) -> None:
        self.takes, self.reason, self.free = takes, reason, free

    def install(self, patch: pytest.MonkeyPatch) -> None:
        append = GrowingFile.append

        def append_some(file: GrowingFile, data: bytes) -> None:
            append(file, data[: max(0, self.takes - file.have)])
            if file.have >= self.takes:
                raise OSError(self.reason, os.strerror(self.reason))

        patch.setattr(GrowingFile, "append", append_some)
        for place in ("cache.partial", "cache.store"):
            patch.setattr(f"clamproxy.{place}.free_bytes", lambda _: self.free)

    def make_room(self) -> None:
        self.takes = self.free = PLENTY


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    async with open_harness(tmp_path / "cache", origin) as harness:
        harness.release(1)
        yield harness


async def ask(harness: ServiceHarness) -> bytes | None:
    content = None
    with suppress(SourceError):  # it is cut off
        response, content = await harness.ask()
        content = content if response.status == 200 else None
    await harness.settle()
    return content


@pytest.mark.parametrize(
    ("reason", "free_at_first", "free"),
    [
        pytest.param(errno.ENOSPC, PLENTY, LITTLE, id="full"),
        pytest.param(errno.EDQUOT, PLENTY, PLENTY, id="over its quota"),
        pytest.param(errno.ENOSPC, LITTLE, LITTLE, id="full from the start"),
    ],
)
async def test_a_database_that_does_not_fit_is_not_asked_for_again_and_again(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch, reason: int, free_at_first: int, free: int
) -> None:
    disk = TightDisk(40_000, reason, free_at_first)
    disk.install(monkeypatch)
    for _ in range(40):
        assert await ask(harness) is None
        disk.free = free
        harness.clock.ahead += 61
    assert len(harness.origin.requests()) <= ALLOWED
    disk.make_room()
    harness.clock.ahead += 601
    assert await ask(harness) == RELEASES.cvd(1)


async def test_the_rest_is_not_asked_for_if_there_is_no_room_for_it(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up between two connections of a transfer."""
    disk = TightDisk(PLENTY, errno.ENOSPC, PLENTY)
    disk.install(monkeypatch)
    harness.origin.rule("W", short(40_000))
    harness.origin.rule("R", short(0))
    assert await ask(harness) is None
    harness.origin.heal()
    harness.origin.forget()
    disk.free = LITTLE
    for _ in range(10):
        harness.clock.ahead += 61
        assert await ask(harness) is None
    assert harness.origin.trace == ""
    disk.make_room()
    harness.clock.ahead += 61
    assert await ask(harness) == RELEASES.cvd(1)
    assert harness.origin.trace == "R"
