"""Downloads: when readers are woken, and what they read."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clamproxy import downloads as downloads_module
from clamproxy.downloads import FileSource, Progress
from clamproxy.origin.transfer import WITHHELD
from tests.harness.transfers import LIMIT, TransferHarness, running, stored
from tests.support.fixtures import MakeCvd
from tests.support.stored import cvd, read_all

ENDLESS = 3600.0
PIECES = 100


class ProgressHarness(Progress):
    """A thread that brings bytes, and a reader that counts how often it is woken for them."""

    def __init__(self) -> None:
        super().__init__()
        self.brought = 0
        self.seen = 0

    def _on_progress(self) -> None:
        self.seen = self.brought

    def bring(self, times: int = 1) -> None:
        """In a thread."""

        def work() -> None:
            for _ in range(times):
                self.brought += 1
                self.report()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(LIMIT)

    async def woken(self) -> int:
        """What is there when the wait ends."""
        async with asyncio.timeout(LIMIT):
            await self.wait()
        return self.seen


async def turns(count: int = 20) -> None:
    """Let the loop do all that it could do at once."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_piece_wakes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads_module, "PAUSE", ENDLESS)
    harness = ProgressHarness()
    harness.bring()
    assert await harness.woken() == 1


async def test_further_pieces_wait_for_the_end_of_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads_module, "PAUSE", ENDLESS)
    harness = ProgressHarness()
    harness.bring()
    await harness.woken()
    waiting = asyncio.create_task(harness.woken())
    harness.bring(PIECES)
    await turns()
    assert not waiting.done()
    harness.wake()
    await waiting


async def test_no_piece_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes, a wake-up follows after which all of it is seen."""
    monkeypatch.setattr(downloads_module, "PAUSE", 0.001)
    harness = ProgressHarness()
    thread = threading.Thread(target=harness.bring, args=(PIECES,))
    thread.start()
    while harness.seen < PIECES:
        await harness.woken()
    thread.join(LIMIT)
    assert harness.seen == PIECES


async def test_all_who_wait_are_woken() -> None:
    harness = ProgressHarness()
    waiting = [asyncio.create_task(harness.woken()) for _ in range(10)]
    await turns()
    harness.bring()
    assert await asyncio.gather(*waiting) == [1] * 10


def test_a_thread_that_outlives_the_loop() -> None:
    async def make() -> Callable[[], None]:
        return ProgressHarness().bring

    asyncio.run(make())()


async def test_a_herd_is_woken_a_few_times_whatever_the_pieces(
    harness: TransferHarness, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all has arrived, and when that is verified; the beginning is there already."""
    monkeypatch.setattr(downloads_module, "PAUSE", ENDLESS)
    body = make_cvd(5, 4_000_000)
    harness.origin.put("daily.cvd", body)
    harness.origin.rate = 20_000_000
    harness.resources = replace(
        harness.resources, stall_window=LIMIT
    )  # a busy machine is no reason to ask again

    class Counted:
        def __init__(self) -> None:
            self.source = transfer.source()
            self.size, self.fileno, self.close = self.source.size, self.source.fileno, self.source.close
            self.distrust = self.source.distrust
            self.woken = 0

        async def wait(self, offset: int) -> int:
            self.woken += offset >= min(transfer.have, self.size - WITHHELD)  # nothing more is here yet
            return await self.source.wait(offset)

    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        readers = [Counted() for _ in range(20)]
        assert set(await asyncio.gather(*map(read_all, readers))) == {body}
        for reader in readers:
            reader.close()
    assert max(reader.woken for reader in readers) <= 3
    assert harness.origin.trace == "W"
    assert stored(harness, cvd(5)) == body


# Readers


async def test_a_file_that_is_here(tmp_path: Path) -> None:
    path, closed = tmp_path / "file", list[str]()
    path.write_bytes(b"content")
    source = FileSource(os.open(path, os.O_RDONLY), 7, closed=lambda: closed.append("closed"))
    path.unlink()
    assert not source.is_arriving
    assert await source.wait(0) == 7
    assert os.pread(source.fileno(), 10, 0) == b"content"
    for _ in range(2):
        source.close()
    assert closed == ["closed"]
    with pytest.raises(ValueError, match="closed"):
        source.fileno()
