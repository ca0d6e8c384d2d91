"""Transfers that break, stall or are stopped, and go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from clamproxy.cache.partial import Validators
from clamproxy.cache.store import Store
from clamproxy.messages import SourceError
from clamproxy.objects import Kind
from clamproxy.origin.attempt import LARGEST
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import TransferError
from clamproxy.origin.transfer import Transfer
from tests.harness.transfers import (
    LIMIT,
    SIZE,
    TransferHarness,
    failure_of,
    fetch,
    leave_partial,
    partial_names,
    running,
    stored,
    validators_of,
)
from tests.support import faults
from tests.support.fixtures import MakeCvd
from tests.support.stored import NEW, cvd, read_all, until

BREAK = 300_000
"""Bytes of a CVD after which its connection breaks."""


@pytest.mark.parametrize(
    "fault",
    [faults.short(BREAK), faults.reset(BREAK), faults.stall(BREAK)],
    ids=["closed", "reset", "stalled"],
)
async def test_a_break_is_resumed_where_it_was(
    harness: TransferHarness, make_cvd: MakeCvd, fault: faults.Fault
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", fault, times=1)
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        if not transfer.published:
            source = transfer.source()
            assert await read_all(source) == body
            source.close()
    assert stored(harness, cvd(5)) == body
    first, second = harness.origin.requests()
    start = int(second.headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= BREAK
    assert second.status == 206
    assert second.headers["if-range"].startswith('"')
    assert first.sent + second.sent < len(body) + BREAK


async def test_trap_28_an_origin_that_breaks_for_ever_is_given_up(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("*", faults.short(0))
    assert (await failure_of(harness, cvd(5))).failure is FailureKind.INTERRUPTED
    assert len(harness.origin.requests()) == 2


async def test_a_range_that_is_ignored_is_read_over(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("R", faults.Fault(ignore_range=True))
    harness.origin.rule("W", faults.short(BREAK), times=1)
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        source = transfer.source()
        assert await read_all(source) == body
        source.close()
    assert stored(harness, cvd(5)) == body
    assert [seen.status for seen in harness.origin.requests()] == [200, 200]


async def test_a_file_that_changed_while_it_was_read_is_cut(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    """Clients have the beginning of version 5; version 6 must not be put behind it (trap 13)."""
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", faults.short(BREAK), times=1)
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        source = transfer.source()
        harness.origin.put("daily.cvd", make_cvd(6, SIZE))
        with pytest.raises(SourceError):
            await read_all(source)
        source.close()
    assert not transfer.published
    assert transfer.object_id == cvd(5)


async def test_an_interrupted_transfer_of_an_earlier_process_is_resumed(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:BREAK], await validators_of(harness, "/daily.cvd"))
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    (seen,) = harness.origin.requests()
    assert seen.headers["range"] == f"bytes={BREAK}-"
    assert seen.sent == len(body) - BREAK


LARGE = 6_000_000
"""Bytes of a CVD so large that it is digested while it arrives."""


async def test_a_large_file_is_resumed(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    """What is there already is digested with what comes."""
    body = make_cvd(5, LARGE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[: LARGE // 2], await validators_of(harness, "/daily.cvd"))
    harness.origin.rule("R", faults.short(LARGE // 4), times=1)
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    assert harness.origin.trace == "R R"


async def test_a_large_file_that_has_changed_begins_anew(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, LARGE)
    harness.origin.put("daily.cvd", body)
    validators = replace(await validators_of(harness, "/daily.cvd"), etag='"another"')
    leave_partial(harness, cvd(5), bytes(512) + body[1024 : LARGE // 2], validators)
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body


@pytest.mark.parametrize("place", [600, LARGE // 3, LARGE // 2 - 1])
async def test_a_large_file_that_was_spoilt_on_the_disk_is_refused(
    harness: TransferHarness, make_cvd: MakeCvd, place: int
) -> None:
    body = make_cvd(5, LARGE)
    harness.origin.put("daily.cvd", body)
    spoilt = bytearray(body[: LARGE // 2])
    spoilt[place] ^= 1
    leave_partial(harness, cvd(5), bytes(spoilt), await validators_of(harness, "/daily.cvd"))
    transfer = await fetch(harness, cvd(5))
    with pytest.raises(TransferError, match="MD5"):
        await transfer.finish()
    assert stored(harness, cvd(5)) is None


async def test_a_file_that_was_there_but_for_the_verdict(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    """Stopped while it was verified: nothing is asked of the origin again."""
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body, await validators_of(harness, "/daily.cvd"))
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    assert harness.origin.requests() == []


async def test_a_file_that_changed_meanwhile_is_fetched_anew(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    known = await validators_of(harness, "/daily.cvd")
    leave_partial(harness, cvd(5), make_cvd(4, SIZE)[:BREAK], replace(known, etag='"another"'))
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    (seen,) = harness.origin.requests()
    assert (seen.headers["if-range"], seen.status) == ('"another"', 200)


async def test_a_partial_file_that_a_power_failure_spoilt_is_fetched_anew(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    """Its size was on disk, its bytes were not."""
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    known = await validators_of(harness, "/daily.cvd")
    leave_partial(harness, cvd(5), bytes(BREAK), replace(known, etag='"another"'))
    transfers = [await fetch(harness, cvd(5)) for _ in range(3)]
    assert transfers[-1].published


async def test_a_partial_file_that_was_spoilt_does_not_survive_verification(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    leave_partial(harness, cvd(5), bytes(BREAK), await validators_of(harness, "/daily.cvd"))
    transfers = [await fetch(harness, cvd(5)) for _ in range(2)]
    assert [transfer.published for transfer in transfers] == [False, True]


async def test_the_same_cvd_with_another_tag_is_not_taken_twice(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    """Edges of a CDN may disagree on tags; a CVD's header holds the digest of all the rest."""
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    known = await validators_of(harness, "/daily.cvd")
    leave_partial(harness, cvd(5), body[:BREAK], replace(known, etag='"of another edge"'))
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        assert transfer.have >= BREAK
    assert stored(harness, cvd(5)) == body


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"Content-Range": "bytes 0-99/{size}"}, id="another start"),
        pytest.param({"Content-Range": "bytes {start}-{last}/{more}"}, id="another size"),
        pytest.param({"Content-Range": "bytes {start}-{last}/*"}, id="no size"),
        pytest.param({"Content-Range": "nonsense"}, id="no range"),
        pytest.param({"ETag": '"another"'}, id="another tag"),
    ],
)
async def test_trap_37_a_206_that_continues_another_file(
    harness: TransferHarness, make_cvd: MakeCvd, wrong: dict[str, str]
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:BREAK], await validators_of(harness, "/daily.cvd"))
    places = {"size": len(body), "start": BREAK, "last": len(body) - 1, "more": len(body) + 5}
    headers = {name: text.format(**places) for name, text in wrong.items()}
    harness.origin.rule("R", faults.Fault(headers=headers), times=1)
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    assert harness.origin.trace == "R W"


async def test_trap_37_a_206_to_no_range(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", faults.Fault(force_status=206))
    assert not (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) is None


async def test_416_begins_anew(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:BREAK], await validators_of(harness, "/daily.cvd"))
    harness.origin.rule("R", faults.status(416, b""))
    assert (await fetch(harness, cvd(5))).published
    assert harness.origin.trace == "R W"


async def test_a_file_without_validators_begins_anew(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    leave_partial(harness, cvd(5), body[:BREAK], Validators(len(body), None, None))
    assert (await fetch(harness, cvd(5))).published
    assert harness.origin.trace == "W"


# Stalls


async def test_a_trickle_is_a_stall(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.stall(BREAK), times=1)
    harness.origin.rule("R", faults.stall(1), times=1)
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    assert harness.origin.trace == "W R R"


async def test_a_further_client_ends_a_silence(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.silent(), times=1)
    resources = replace(harness.resources, stall_window=0.2)
    transfer = Transfer(cvd(5), NEW, resources)
    task = asyncio.create_task(transfer.run())
    async with asyncio.timeout(LIMIT):
        await until(harness.origin.requests)
        transfer.kick()  # too early: it has only just been asked
        await asyncio.sleep(0.4)
        assert len(harness.origin.requests()) == 1  # until the origin answers, its read timeout is the limit
        transfer.kick()
        await task
    assert stored(harness, cvd(5)) == body
    assert len(harness.origin.requests()) == 2


# Stops


async def test_a_stop_keeps_what_has_arrived(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.stall(BREAK), times=1)
    transfer = Transfer(cvd(5), NEW, replace(harness.resources, stall_window=60.0))
    task = asyncio.create_task(transfer.run())
    async with asyncio.timeout(LIMIT):
        await transfer.ready()
        source = transfer.source()
        await until(lambda: transfer.have >= BREAK)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(SourceError, match="stopping"):
            await source.wait(BREAK)
    source.close()
    assert partial_names(harness) == ["daily-5.cvd.json", "daily-5.cvd.part"]
    assert (harness.store.partials / "daily-5.cvd.part").read_bytes() == body[:BREAK]
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body
    assert harness.origin.trace == "W R"


async def test_a_stop_before_the_first_byte(harness: TransferHarness) -> None:
    harness.origin.rule("*", faults.silent())
    transfer = Transfer(cvd(5), NEW, harness.resources)
    task = asyncio.create_task(transfer.run())
    await until(harness.origin.requests)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(TransferError, match="stopping"):
        await transfer.ready()


async def test_nothing_is_written_after_a_stop(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    """The thread may outlive its transfer; the next one owns the partial file."""
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.slow(400_000), times=1)
    transfer = Transfer(cvd(5), NEW, harness.resources)
    task = asyncio.create_task(transfer.run())
    async with asyncio.timeout(LIMIT):
        await transfer.ready()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body


async def test_a_reader_outlives_the_drop_of_its_object(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.short(BREAK), times=1)
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        source = transfer.source()
    store: Store = harness.store
    store.drop(cvd(5))
    assert store.open(cvd(5)) is None
    assert await read_all(source) == body
    source.close()


@pytest.mark.parametrize(
    "fault", [faults.Fault(), faults.Fault(length=False)], ids=["with its length", "without a length"]
)
async def test_an_answer_that_would_fill_the_disk_is_cut(
    harness: TransferHarness, make_cvd: MakeCvd, fault: faults.Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 2**20
    monkeypatch.setitem(LARGEST, Kind.CVD, largest)
    harness.origin.put("daily.cvd", make_cvd(5, 2 * largest))
    harness.origin.rule("W", fault)
    transfer = await fetch(harness, cvd(5))
    assert not transfer.published
    assert transfer.have <= largest


async def test_an_origin_that_sends_for_hours_does_not_hold_up_the_file(
    harness: TransferHarness, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never slow enough to count as stalled. By another connection it is quicker."""
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.slow(16 * 1024))
    monkeypatch.setattr("clamproxy.origin.watched_attempts.LONGEST_CONNECTION", 2.0)
    await fetch(harness, cvd(5))
    assert stored(harness, cvd(5)) == body
    slow, quick = harness.origin.requests()
    assert slow.sent < SIZE
    assert quick.headers["range"] != "bytes=0-"
