"""All transfers together: single flight, remembered 404s, cool-downs."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest

from clamproxy import negative_cache
from clamproxy.cache.partial import PartialFile
from clamproxy.messages import SourceError
from clamproxy.notes import Notes
from clamproxy.objects import ObjectId
from clamproxy.origin import breaks
from clamproxy.origin import transfers as transfers_module
from clamproxy.origin.cooldown import Cooldown, Cooldowns, FailureKind
from clamproxy.origin.errors import KnownMissingError, NotFoundError, TransferError
from clamproxy.origin.transfers import CooldownError, Transfers
from tests.harness.transfers import LIMIT, SIZE, TransferHarness, ask, ended, stored
from tests.support import faults
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff
from tests.support.notes import DictKeeper
from tests.support.stored import NEW, OLD, cdiff, cvd, put, read_all, until


async def test_trap_27_a_herd_costs_one_request(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rate = 4_000_000
    joined = [harness.transfers.join(cvd(5), NEW if number % 2 else OLD) for number in range(50)]
    assert [under_way for _, under_way in joined] == [False] + [True] * 49
    assert len({id(transfer) for transfer, _ in joined}) == len(harness.transfers.under_way()) == 1
    transfer = joined[0][0]
    async with asyncio.timeout(LIMIT):
        await transfer.ready()
        sources = [transfer.source() for _ in range(20)]
        assert set(await asyncio.gather(*map(read_all, sources))) == {body}
        for source in sources:
            source.close()
        await ended(harness)
    assert harness.origin.trace == "W"
    assert stored(harness, cvd(5)) == body


async def test_a_client_that_leaves_takes_nothing_with_it(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rate = 1_000_000
    transfer, _ = harness.transfers.join(cvd(5), NEW)
    first = asyncio.create_task(transfer.ready())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    other, under_way = harness.transfers.join(cvd(5), NEW)
    assert under_way
    assert other is transfer
    await other.ready()
    await ended(harness)
    assert other.published


async def test_different_objects_run_side_by_side(harness: TransferHarness) -> None:
    for version in (5, 6):
        harness.origin.put(f"daily-{version}.cdiff", forge_cdiff("daily", version))
    one, other = (harness.transfers.join(cdiff(version), NEW)[0] for version in (5, 6))
    assert one is not other
    await asyncio.gather(one.ready(), other.ready())
    assert {one.object_id, other.object_id} == set(harness.store.sizes())


async def test_after_a_transfer_the_next_client_finds_its_object_published(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    await ask(harness, cdiff(5))
    again = await ask(harness, cdiff(5))
    assert again.published
    assert harness.origin.trace == "D5"


async def test_the_cache_is_tidied_after_publishing(harness: TransferHarness) -> None:
    tidied: list[set[ObjectId]] = []
    transfers = Transfers(
        harness.resources,
        harness.cooldowns,
        lambda _: 60.0,
        lambda _: tidied.append(set(harness.store.sizes())),
        lambda *_: None,
    )
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    for version in (5, 6):
        transfer, _ = transfers.join(cdiff(version), NEW)
        await asyncio.gather(transfer.ready(), return_exceptions=True)
    await until(lambda: not transfers.under_way())
    await harness.writer.run(lambda: None)
    assert tidied == [{cdiff(5)}]


# 404


async def test_trap_16_a_404_is_remembered(harness: TransferHarness) -> None:
    with pytest.raises(NotFoundError) as caught:
        await ask(harness, cdiff(5))
    assert not isinstance(caught.value, KnownMissingError)
    for _ in range(5):
        with pytest.raises(KnownMissingError):
            harness.transfers.join(cdiff(5), NEW)
    assert harness.origin.trace == "D5"
    assert harness.cooldowns.in_force() == {}


async def test_trap_16_a_404_is_forgotten_in_time(harness: TransferHarness) -> None:
    asked: list[ObjectId] = []

    def not_at_all(object_id: ObjectId) -> float:
        asked.append(object_id)
        return 0.0

    transfers = Transfers(harness.resources, harness.cooldowns, not_at_all, lambda _: None, lambda *_: None)
    for _ in range(2):
        transfer, under_way = transfers.join(cdiff(5), NEW)
        assert not under_way
        with pytest.raises(NotFoundError):
            await transfer.ready()
        await until(lambda: not transfers.under_way())
    assert asked == [cdiff(5)] * 2
    assert harness.origin.trace == "D5 D5"


@pytest.mark.parametrize("status", [404, 500])
async def test_a_failure_is_noted_before_a_client_knows_of_it(harness: TransferHarness, status: int) -> None:
    """Else the next client, at another process, would make that ask the origin again."""
    noted = dict[str, Any]()
    notes = Notes(DictKeeper(noted), harness.writer, "topic")
    transfers = Transfers(
        harness.resources, Cooldowns(notes), lambda _: 60.0, lambda _: None, lambda *_: None, missing=notes
    )
    harness.origin.rule("D5", faults.status(status))
    harness.writer.submit(lambda: time.sleep(0.3))  # others write as well
    with pytest.raises((NotFoundError, TransferError)):
        await transfers.ready(cdiff(5), NEW)
    assert list(noted) == [cdiff(5).file_name if status == 404 else cdiff(5).upstream_path]


async def test_remembered_404s_do_not_pile_up(
    harness: TransferHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negative_cache, "MOST", 3)
    for version in range(1, 6):
        with pytest.raises(NotFoundError):
            await ask(harness, cdiff(version))
    for version in (3, 4, 5):
        with pytest.raises(KnownMissingError):
            harness.transfers.require_not_missing(cdiff(version))
    for version in (1, 2):
        harness.transfers.require_not_missing(cdiff(version))


# Cool-downs


async def test_trap_21_a_429_holds_back_one_file(harness: TransferHarness) -> None:
    harness.origin.put("daily-6.cdiff", forge_cdiff("daily", 6))
    harness.origin.rule("D5", faults.status(429, retry_after="3600"))
    with pytest.raises(TransferError):
        await ask(harness, cdiff(5))
    for requester in (NEW, OLD):
        with pytest.raises(CooldownError) as caught:
            harness.transfers.join(cdiff(5), requester)
        assert caught.value.cooldown.failure is FailureKind.RATE_LIMITED
    assert (await ask(harness, cdiff(6))).published
    assert harness.notes["/daily-5.cdiff"]["until"] == caught.value.cooldown.until


async def test_trap_20_a_403_holds_back_one_client_version(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.origin.rule("*", faults.status(403), times=1)
    with pytest.raises(TransferError):
        await ask(harness, cdiff(5), OLD)
    with pytest.raises(CooldownError):
        harness.transfers.join(cdiff(6), OLD)
    assert (await ask(harness, cdiff(5), NEW)).published


async def test_a_running_transfer_is_joined_in_spite_of_a_cooldown(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rate = 1_000_000
    transfer, _ = harness.transfers.join(cvd(5), NEW)
    harness.cooldowns.failed(FailureKind.UNREACHABLE, "/daily.cvd", NEW.version, "another file's trouble")
    assert harness.transfers.join(cvd(5), NEW) == (transfer, True)
    await transfer.ready()
    await ended(harness)


async def test_patches_that_are_refused_together_count_once(harness: TransferHarness) -> None:
    harness.origin.rule("*", faults.status(403))
    transfers = [harness.transfers.join(cdiff(version), NEW)[0] for version in (2, 3, 4, 5)]
    await asyncio.gather(*(transfer.ready() for transfer in transfers), return_exceptions=True)
    await ended(harness)
    assert len(harness.origin.requests()) == 4
    (noted,) = harness.cooldowns.in_force().values()
    assert noted.failures == 1


@pytest.mark.parametrize(
    ("failure", "retry_after", "goes_on"),
    [
        (FailureKind.RATE_LIMITED, None, False),
        (FailureKind.FORBIDDEN, None, False),
        (FailureKind.SERVER_ERROR, 3600.0, False),
        (FailureKind.SERVER_ERROR, None, True),
        (FailureKind.UNREACHABLE, None, True),
    ],
)
async def test_a_transfer_is_not_resumed_in_spite_of_a_refusal(
    harness: TransferHarness,
    make_cvd: MakeCvd,
    failure: FailureKind,
    retry_after: float | None,
    goes_on: bool,
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", faults.stall(300_000))
    async with asyncio.timeout(LIMIT):
        transfer, _ = await harness.transfers.ready(cvd(5), NEW)
        noted = harness.cooldowns.failed(failure, "/daily.cvd", NEW.version, "meanwhile", retry_after)
        await ended(harness)
    assert transfer.published is goes_on
    assert harness.origin.trace == ("W R" if goes_on else "W")
    assert list(harness.cooldowns.in_force().values()) == ([] if goes_on else [noted])


async def test_a_refusal_of_one_client_version_while_it_waits_leaves_the_others_waiting(
    harness: TransferHarness,
) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    slots = harness.resources.slots
    async with asyncio.timeout(LIMIT), AsyncExitStack() as stack:
        while not slots.locked():
            await stack.enter_async_context(slots)
        waiting = [
            asyncio.create_task(harness.transfers.ready(cdiff(5), requester)) for requester in (OLD, NEW)
        ]
        await until(lambda: harness.transfers.is_running(cdiff(5)))
        harness.cooldowns.failed(FailureKind.FORBIDDEN, "/x", OLD.version, "old")
        await stack.aclose()
        refused, served = await asyncio.gather(*waiting, return_exceptions=True)
        await ended(harness)
    assert isinstance(refused, CooldownError)
    assert not isinstance(served, BaseException)
    (request,) = harness.origin.requests()
    assert request.headers["user-agent"] == NEW.user_agent


async def test_success_ends_a_cooldown(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.cooldowns.failed(FailureKind.FORBIDDEN, "/x", OLD.version, "old")
    await ask(harness, cdiff(5), NEW)
    assert set(harness.cooldowns.in_force()) == {f"client {OLD.version}"}


async def test_bad_content_is_not_fetched_over_and_over(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 6))
    with pytest.raises(TransferError):
        await ask(harness, cdiff(5))
    with pytest.raises(CooldownError):
        harness.transfers.join(cdiff(5), NEW)
    assert harness.origin.trace == "D5"


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        pytest.param(None, FailureKind.BAD_CONTENT, id="corrupt"),
        pytest.param(faults.short(300_000), FailureKind.INTERRUPTED, id="broken for ever"),
    ],
)
async def test_a_failure_after_readers_came_is_a_failure(
    harness: TransferHarness,
    make_cvd: MakeCvd,
    monkeypatch: pytest.MonkeyPatch,
    fault: faults.Fault | None,
    failure: FailureKind,
) -> None:
    monkeypatch.setattr(breaks, "MAX_BREAKS", 3)
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body if fault else body[:-1] + b"x")
    if fault:
        harness.origin.rule("W", fault)
        harness.origin.rule("R", faults.short(0))
    transfer = await ask(harness, cvd(5))
    assert not transfer.published
    assert [cooldown.failure for cooldown in harness.cooldowns.in_force().values()] == [failure]


async def test_only_so_many_transfers_run_at_once(
    harness: TransferHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers_module, "MAX_TRANSFERS", 2)
    harness.origin.rule("*", faults.silent())
    for version in (1, 2):
        harness.transfers.join(cdiff(version), NEW)
    with pytest.raises(CooldownError) as caught:
        harness.transfers.join(cdiff(3), NEW)
    assert "too many" in caught.value.cooldown.reason
    assert harness.transfers.join(cdiff(2), NEW)[1]
    assert harness.cooldowns.in_force() == {}


@pytest.mark.parametrize("trouble", ["a 206 to no Range", "another process has the file"])
async def test_the_trouble_of_one_file_does_not_hold_back_the_others(
    harness: TransferHarness, make_cvd: MakeCvd, trouble: str
) -> None:
    harness.origin.put("daily.cvd", make_cvd(6))
    theirs = None
    if trouble == "a 206 to no Range":
        harness.origin.rule("W", faults.Fault(force_status=206))
    else:
        theirs = PartialFile.claim(harness.store.partials, cvd(6))
    with pytest.raises(TransferError):
        await ask(harness, cvd(5))
    held_back = harness.cooldowns.check("/main.cvd", NEW.version)
    if theirs is not None:
        theirs.release()
    assert held_back is None


@contextmanager
def _a_frame_of_a_context_manager() -> Iterator[None]:
    yield


def test_a_cooldown_error_passes_through_context_managers() -> None:
    error = CooldownError(Cooldown(1.0, 1, FailureKind.LOCAL, "why"))
    with pytest.raises(CooldownError), _a_frame_of_a_context_manager():
        raise error
    assert "CooldownError" in "".join(traceback.format_exception(error))


# The end


async def test_stop_ends_all_and_tells_the_readers(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", faults.stall(200_000))
    harness.origin.rule("D5", faults.silent())
    whole, _ = harness.transfers.join(cvd(5), NEW)
    patch, _ = harness.transfers.join(cdiff(5), NEW)
    async with asyncio.timeout(LIMIT):
        await whole.ready()
        source = whole.source()
        harness.transfers.stop()
        with pytest.raises(TransferError, match="stopping"):
            await patch.ready()
        with pytest.raises(SourceError, match="stopping"):
            await read_all(source)
        source.close()
        await ended(harness)
    assert harness.cooldowns.in_force() == {}


async def test_another_process_publishes_what_is_wanted(harness: TransferHarness) -> None:
    theirs = PartialFile.claim(harness.store.partials, cdiff(5))
    waiting = [harness.transfers.join(cdiff(5), NEW)[0] for _ in range(3)]
    await asyncio.sleep(0.1)
    theirs.discard()
    put(harness.store, cdiff(5), b"published by the other")
    theirs.release()
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(transfer.ready() for transfer in waiting))
        await ended(harness)
    assert harness.origin.requests() == []
