"""Two processes on one cache directory: what one fetches, the other follows. Each has a store of its own."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from clamproxy.cache.partial import PartialFile, Validators
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.messages import SourceError
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, TransferError
from clamproxy.origin.transfer import WITHHELD, Transfer
from clamproxy.origin.transfers import CooldownError
from tests.harness.transfers import (
    LIMIT,
    SIZE,
    TransferHarness,
    leave_partial,
    open_harness,
    partial_names,
    stored,
    validators_of,
)
from tests.support import faults
from tests.support.faults import Fault
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff
from tests.support.origin import OriginServer
from tests.support.stored import NEW, OLD, cdiff, cvd, read_all, until

BREAK = 200_000
"""Bytes after which the origin stops sending."""


@pytest.fixture
async def harness(origin: OriginServer, store: Store) -> AsyncIterator[TransferHarness]:
    """One process. What stalls, stalls until the origin heals."""
    async with open_harness(origin, store, LIMIT) as harness:
        yield harness


@pytest.fixture
async def other(harness: TransferHarness, origin: OriginServer) -> AsyncIterator[TransferHarness]:
    """The other process."""
    store = Store(harness.store.directory, tidy=False)
    async with open_harness(origin, store, LIMIT) as other:
        yield other
    store.close()


@pytest.fixture(autouse=True)
async def _guard() -> AsyncIterator[None]:
    async with asyncio.timeout(2 * LIMIT):
        yield


async def both(
    harness: TransferHarness, other: TransferHarness, object_id: ObjectId
) -> tuple[Transfer, Transfer]:
    """The transfer of one process, which asks the origin, and the other's, which follows it."""
    theirs, _ = harness.transfers.join(object_id, NEW)
    await until(harness.origin.requests)
    ours, _ = other.transfers.join(object_id, NEW)
    await until(lambda: ours.is_shared)
    return theirs, ours


async def failure(transfer: Transfer) -> Exception:
    try:
        await transfer.finish()
    except (NotFoundError, TransferError) as error:
        return error
    raise AssertionError("it has not failed")


# While it arrives


async def test_readers_get_what_has_arrived_there(
    harness: TransferHarness, other: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.stall(BREAK), times=1)
    theirs, ours = await both(harness, other, cvd(5))
    await ours.ready()
    assert replace(ours.metadata, fetched_at=0) == replace(theirs.metadata, fetched_at=0)
    source = ours.source()
    assert 0 < await source.wait(0) <= BREAK
    harness.origin.heal()
    assert await read_all(source) == body
    source.close()
    await ours.finish()
    assert ours.is_shared
    assert harness.origin.count("W") == 1
    assert stored(other, cvd(5)) == body


async def test_the_last_bytes_wait_for_the_proof(harness: TransferHarness, other: TransferHarness) -> None:
    theirs = PartialFile.claim(harness.store.partials, cvd(5))
    theirs.begin(Validators(SIZE, '"one"', None))
    theirs.append(b"1" * SIZE)
    ours, _ = other.transfers.join(cvd(5), NEW)
    await ours.ready()
    source = ours.source()
    assert await source.wait(0) == SIZE - WITHHELD
    source.close()
    theirs.discard()
    theirs.release()


async def test_what_an_earlier_process_left_is_shown_once_the_origin_has_confirmed_it(
    harness: TransferHarness, other: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:BREAK], await validators_of(harness, "/daily.cvd"))
    path = harness.store.partials / "daily-5.cvd.part"
    os.utime(path, (1e9, 1e9))
    harness.origin.rule("*", Fault(held=True))
    _, ours = await both(harness, other, cvd(5))
    await asyncio.sleep(0.2)  # it looks several times
    assert (ours.is_ready, ours.have) == (False, 0)
    harness.origin.heal()
    await ours.finish()
    assert stored(other, cvd(5)) == body
    assert [seen.headers["range"] for seen in harness.origin.requests()] == [f"bytes={BREAK}-"]


@pytest.mark.parametrize("has_links", [True, False])
async def test_what_was_published_is_what_was_read(
    harness: TransferHarness,
    other: TransferHarness,
    make_cvd: MakeCvd,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_links: bool,
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.stall(BREAK), times=1)
    _, ours = await both(harness, other, cvd(5))
    await ours.ready()
    source = ours.source()
    harness.origin.heal()
    assert await read_all(source) == body
    source.close()


async def test_a_signature_waits_until_its_file_is_published_there(
    harness: TransferHarness, other: TransferHarness
) -> None:
    """A client has all of the file as soon as it is verified, and asks the other process for the rest."""
    theirs = PartialFile.claim(harness.store.partials, cvd(5))
    theirs.begin(Validators(4, '"one"', None))
    await other.transfers.settle(cvd(5))  # it is still arriving
    theirs.append(b"body")
    waiting = asyncio.create_task(other.transfers.settle(cvd(5)))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    harness.store.publish(cvd(5), theirs.path, Metadata(4, 1.0))
    theirs.release()
    await waiting


# The end of the one that fetches


async def test_a_process_that_stops_is_taken_over_where_it_was(
    harness: TransferHarness, other: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.stall(BREAK), times=1)
    theirs, ours = await both(harness, other, cvd(5))
    await ours.ready()
    source = ours.source()
    await until(lambda: theirs.have == ours.have == BREAK)
    harness.transfers.stop()
    assert await read_all(source) == body
    source.close()
    assert not ours.is_shared
    assert [seen.headers.get("range") for seen in harness.origin.requests()] == [None, f"bytes={BREAK}-"]


async def test_a_third_process_goes_on_following(
    harness: TransferHarness, other: TransferHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    origin.put("daily.cvd", body)
    origin.rule("W", faults.stall(BREAK), times=1)
    store = Store(harness.store.directory, tidy=False)
    async with open_harness(origin, store, LIMIT) as third:
        transfers = [*await both(harness, other, cvd(5)), third.transfers.join(cvd(5), NEW)[0]]
        await asyncio.gather(*(one.ready() for one in transfers))
        sources = [one.source() for one in transfers[1:]]
        await until(lambda: {one.have for one in transfers} == {BREAK})
        harness.transfers.stop()
        assert await asyncio.gather(*map(read_all, sources)) == [body, body]
        assert sorted(one.is_shared for one in transfers[1:]) == [False, True]
        for source in sources:
            source.close()
    store.close()
    assert len(origin.requests()) == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.status(404), None),
        (faults.status(403), FailureKind.FORBIDDEN),
        (faults.status(429, retry_after="77"), FailureKind.RATE_LIMITED),
        (faults.status(500), FailureKind.SERVER_ERROR),
        (faults.replaced(b"ClamAV-Diff:5:7:" + b"nonsense" * 1000), FailureKind.BAD_CONTENT),
        (faults.html(), FailureKind.BAD_CONTENT),
    ],
)
async def test_a_failure_is_found_out_once(
    harness: TransferHarness, other: TransferHarness, fault: Fault, kind: FailureKind | None
) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.origin.rule("D5", replace(fault, held=True))
    transfers = await both(harness, other, cdiff(5))
    harness.origin.heal()
    theirs, ours = await asyncio.gather(*map(failure, transfers))
    assert type(theirs) is type(ours)
    assert str(theirs) == str(ours)
    for error in (theirs, ours):
        assert getattr(error, "failure", None) is kind
        assert getattr(error, "retry_after", None) == (77 if kind is FailureKind.RATE_LIMITED else None)
    assert harness.origin.count("D5") == 1
    assert partial_names(harness) == []
    with pytest.raises(NotFoundError if kind is None else CooldownError):
        other.transfers.join(cdiff(5), NEW)


async def test_the_refusal_of_an_old_client_is_its_own(
    harness: TransferHarness, other: TransferHarness
) -> None:
    body = forge_cdiff("daily", 5)
    harness.origin.put("daily-5.cdiff", body)
    harness.origin.rule("D5", replace(faults.status(403), held=True), times=1)
    theirs, _ = harness.transfers.join(cdiff(5), OLD)
    await until(harness.origin.requests)
    ours, _ = other.transfers.join(cdiff(5), NEW)
    await until(lambda: ours.is_shared)
    harness.origin.heal()
    assert isinstance(await failure(theirs), TransferError)
    await ours.finish()
    assert stored(other, cdiff(5)) == body


async def test_the_origin_sends_another_version(
    harness: TransferHarness, other: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(6, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", Fault(held=True))
    transfers = await both(harness, other, cvd(5))
    harness.origin.heal()
    await asyncio.gather(*(one.finish() for one in transfers))
    assert [one.object_id for one in transfers] == [cvd(6)] * 2
    assert stored(other, cvd(6)) == body
    assert harness.origin.count("W") == 1
    assert partial_names(harness) == []


async def test_without_room_nobody_asks_again(
    harness: TransferHarness, other: TransferHarness, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", Fault(held=True))
    transfers = await both(harness, other, cvd(5))
    monkeypatch.setattr("clamproxy.cache.partial.free_bytes", lambda _: 1000)
    harness.origin.heal()
    for error in await asyncio.gather(*map(failure, transfers)):
        assert isinstance(error, TransferError)
        assert error.failure is FailureKind.NO_ROOM
        assert error.needed > SIZE
    assert harness.origin.count("W") == 1


# Never a mixture


async def test_readers_of_a_file_that_is_started_again_are_cut(
    harness: TransferHarness, other: TransferHarness
) -> None:
    theirs = PartialFile.claim(harness.store.partials, cvd(5))
    theirs.begin(Validators(SIZE, '"one"', None))
    theirs.append(b"1" * BREAK)
    ours, _ = other.transfers.join(cvd(5), NEW)
    await ours.ready()
    source = ours.source()
    assert await source.wait(0) == BREAK
    theirs.begin(Validators(SIZE, '"two"', None))
    theirs.append(b"2" * SIZE)
    with pytest.raises(SourceError, match="changed"):
        await source.wait(BREAK)
    assert os.pread(source.fileno(), SIZE, 0) == b"1" * BREAK
    source.close()
    assert harness.origin.requests() == []
    theirs.discard()
    theirs.release()


async def test_nobody_has_begun_to_read_a_file_that_is_started_again(
    harness: TransferHarness, other: TransferHarness
) -> None:
    theirs = PartialFile.claim(harness.store.partials, cvd(5))
    theirs.begin(Validators(None, '"one"', None))  # without a length nobody can
    theirs.append(b"1" * BREAK)
    ours, _ = other.transfers.join(cvd(5), NEW)
    await until(lambda: ours.is_shared)
    theirs.begin(Validators(SIZE, '"two"', None))
    theirs.append(b"2" * BREAK)
    await ours.ready()
    source = ours.source()
    assert await source.wait(0) == BREAK
    assert os.pread(source.fileno(), 1, 0) == b"2"
    source.close()
    theirs.discard()
    theirs.release()
