"""Feeds of two processes on one cache directory: what one fetches, both have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.feeds import Feeds, turns
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.notes import Notes
from clamproxy.threads import Writer
from tests.harness.feeds import BIG, BODY, NAME, PATH, VIA, FeedsHarness, read
from tests.support import faults
from tests.support.faults import Fault
from tests.support.origin import OriginServer
from tests.support.stored import until

COLLAPSED = "fwd=miss; collapsed"
FRESH = "max-age=3600"


class Process(FeedsHarness):
    """One process."""

    def open(self) -> Feeds:
        self.store = Store(self.directory, tidy=False)
        self.writer = Writer()
        self.leases = DirectoryLeases(self.directory)
        return Feeds(
            self.directory / "feeds",
            Settings.model_validate({"feeds": {"hosts": ["localhost"]}, "upstream": {"read_timeout": 5}}),
            lambda topic: Notes(self.store, self.writer, topic, shared=self.store.noted),
            lambda *_: None,
            VIA,
            self.clock,
            machine=self.leases,
        )

    def close(self) -> None:
        """End, as a process that is killed does for the others: its locks are gone."""
        self.feeds.stop()
        self.leases.stop()
        self.writer.close()
        self.store.close()

    async def settle(self) -> None:
        await super().settle()
        await self.writer.run(lambda: None)


@pytest.fixture
def both(tmp_path: Path, origin: OriginServer) -> Iterator[tuple[Process, Process]]:
    processes = Process(tmp_path, origin), Process(tmp_path, origin)
    processes[0].set_out()
    yield processes
    for process in processes:
        process.close()


async def waits(process: Process) -> None:
    """Until a process waits for its turn."""
    await until(process.feeds.under_way)
    await asyncio.sleep(0.1)


async def test_what_one_has_stored_the_other_serves(both: tuple[Process, Process]) -> None:
    one, other = both
    one.set_out(cache_control=FRESH)
    assert await other.get("/other") == (
        404,
        "fwd=miss",
        b"clamproxy: the feed has no such file\n",
    )  # it has begun
    first, second = await one.get(), await other.get()
    assert first == (200, "fwd=miss", BODY)
    assert second == (200, "hit", BODY)
    assert other.feeds.figures()["objects"] == 1
    one.set_out(b"another body", cache_control=FRESH)
    assert (await one.get(Cache_Control="no-cache"))[2] == b"another body"
    assert await other.get() == (200, "hit", b"another body")
    assert len(one.files()) == 2


@pytest.mark.parametrize("code", [404, 403, 429])
async def test_a_client_with_its_answer_may_go_to_the_other(both: tuple[Process, Process], code: int) -> None:
    """Even if the disk is slow."""
    one, other = both
    one.origin.rule(PATH, faults.status(code, retry_after="100"))
    one.writer.submit(lambda: time.sleep(0.5))
    first, second = await one.ask(), await other.ask()
    assert first.status == second.status == (404 if code == 404 else 503)
    assert one.origin.count(PATH) == 1


async def test_the_age_is_the_same_at_both(both: tuple[Process, Process]) -> None:
    one, _ = both
    one.set_out(cache_control=FRESH)
    await one.get()
    answers = [await process.ask() for process in both]
    kept = ("ETag", "Last-Modified", "Cache-Control", "Date", "Content-Length")
    first, second = ([answer.headers.get(name) for name in kept] for answer in answers)
    assert first == second
    assert abs(int(answers[0].headers["Age"]) - int(answers[1].headers["Age"])) <= 1
    for answer in answers:
        await read(answer)


@pytest.mark.parametrize("body", [BODY, BIG], ids=["small", "big"])
async def test_clients_of_both_cost_one_request(both: tuple[Process, Process], body: bytes) -> None:
    one, other = both
    one.set_out(body)
    one.origin.rule(PATH, Fault(held=True))
    asking = [asyncio.create_task(one.get())]
    await until(one.origin.requests)
    asking += [asyncio.create_task(process.get()) for process in (one, other, other)]
    await waits(other)
    one.origin.heal()
    answers = await asyncio.gather(*asking)
    assert answers == [(200, "fwd=miss", body), *[(200, COLLAPSED, body)] * 3]
    assert one.origin.count(PATH) == 1


async def test_a_stale_copy_is_revalidated_once(both: tuple[Process, Process]) -> None:
    one, other = both
    one.set_out(cache_control="max-age=0")
    await one.get()
    one.origin.rule(PATH, Fault(held=True, headers={"Cache-Control": "max-age=0"}), times=1)
    asking = [asyncio.create_task(one.get())]
    await until(lambda: one.origin.count(PATH) == 2)
    asking.append(asyncio.create_task(other.get()))
    await waits(other)
    one.origin.heal()
    first, second = await asyncio.gather(*asking)
    assert first == (200, "fwd=stale; fwd-status=304", BODY)
    assert second == (200, "fwd=stale; fwd-status=304; collapsed", BODY)
    assert one.origin.count(PATH) == 2


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (faults.status(404), 404),
        (faults.status(403), 503),
        (faults.status(429), 503),
        (faults.status(500), 503),
    ],
)
async def test_a_failure_is_found_out_once(both: tuple[Process, Process], fault: Fault, status: int) -> None:
    one, other = both
    one.origin.rule(PATH, replace(fault, held=True))
    asking = [asyncio.create_task(one.get())]
    await until(one.origin.requests)
    asking.append(asyncio.create_task(other.get()))
    await waits(other)
    one.origin.heal()
    assert [answer[0] for answer in await asyncio.gather(*asking)] == [status] * 2
    assert [(await process.get())[0] for process in both] == [status] * 2
    assert one.origin.count(PATH) == 1


async def test_a_failure_of_one_is_known_to_the_other(both: tuple[Process, Process]) -> None:
    one, other = both
    one.origin.rule(PATH, faults.status(429))
    one.origin.rule("/missing", faults.status(404))
    assert [(await one.get(path))[0] for path in ("/missing", PATH)] == [404, 503]
    assert await other.get("/missing") == (
        404,
        "hit; detail=negative",
        b"clamproxy: the feed has no such file\n",
    )
    assert (await other.get())[0] == 503
    assert len(one.origin.requests()) == 2


async def test_a_process_that_ends_leaves_its_turn(both: tuple[Process, Process]) -> None:
    one, other = both
    one.origin.rule(PATH, faults.silent(), times=1)
    dying = asyncio.create_task(one.ask())
    await until(one.origin.requests)
    asking = asyncio.create_task(other.get())
    await waits(other)
    one.feeds.stop()
    assert (await dying).status == 503
    assert await asking == (200, "fwd=miss", BODY)


async def test_nobody_waits_for_ever(both: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LONGEST_WAIT", 0.2)
    one, other = both
    one.origin.rule(PATH, faults.silent(), times=1)
    silent = asyncio.create_task(one.ask())
    await until(one.origin.requests)
    assert await other.get() == (200, "fwd=miss", BODY)
    one.feeds.stop()
    await silent


async def test_what_may_not_be_shared_is_fetched_for_each(both: tuple[Process, Process]) -> None:
    one, other = both
    one.set_out(BIG)
    one.origin.rule(PATH, replace(faults.stall(100_000), headers={"Cache-Control": "private"}), times=1)
    first = await one.ask()
    assert first.status == 200  # and nobody has all of it yet
    assert (await other.get())[::2] == (200, BIG)
    assert one.origin.count(PATH) == 2
    one.origin.heal()
    first.body.source.close()  # type: ignore[union-attr]


async def test_a_digest_that_was_given_by_one_is_kept_step_with_by_the_other(
    both: tuple[Process, Process],
) -> None:
    """The new digest isn't stored: nobody may. But a client has it, and wants the file that belongs to it."""
    one, other = both
    one.set_out(cache_control=FRESH)
    assert (await other.get())[1] == "fwd=miss"
    assert (await other.get())[1] == "hit"
    await asyncio.sleep(0.01)
    one.origin.put(f"{NAME}.sha256", b"new digest")
    one.origin.rule(f"/{NAME}.sha256", Fault(headers={"Cache-Control": "no-store"}))
    assert (await one.get(f"{PATH}.sha256"))[0] == 200
    assert (await other.get())[1] == "fwd=stale; fwd-status=304"
    assert (await other.get())[1] == "hit"


async def test_what_arrives_at_one_counts_at_the_other(both: tuple[Process, Process]) -> None:
    """The client has the new digest before it is stored."""
    one, other = both
    one.set_out(cache_control=FRESH)
    assert (await other.get())[1] == "fwd=miss"
    await asyncio.sleep(0.01)
    one.origin.put(f"{NAME}.md5", b"new digest" * 1000)
    one.origin.rule(f"/{NAME}.md5", faults.stall(5000), times=1)
    arriving = await one.ask(f"{PATH}.md5")
    assert arriving.status == 200
    assert (await other.get())[1] == "fwd=stale; fwd-status=304"
    one.origin.heal()
    arriving.body.source.close()  # type: ignore[union-attr]


async def test_both_count_what_is_stored(both: tuple[Process, Process]) -> None:
    one, _ = both
    for number in range(8):
        one.origin.put(f"{number}", b"x" * 1000)
        one.origin.rule(f"/{number}", Fault(headers={"Cache-Control": FRESH}))
        await both[number % 2].get(f"/{number}")
    assert [process.feeds.figures()["objects"] for process in both] == [8, 8]
