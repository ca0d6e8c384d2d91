"""One transfer: from a fake CDN over real sockets into a real store."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from clamproxy import inspection
from clamproxy.cache.partial import PartialFile
from clamproxy.formats import verification
from clamproxy.messages import SourceError
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError
from clamproxy.origin.transfer import WITHHELD
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
from tests.support.forge import forge_cdiff, forge_sign
from tests.support.stored import AGENT, cdiff, cvd, put, read_all, sign, until

# The good case


@pytest.mark.parametrize("kind", [Kind.CDIFF, Kind.CDIFF_SIGN, Kind.CVD_SIGN])
async def test_a_small_object_arrives(harness: TransferHarness, kind: Kind) -> None:
    object_id = ObjectId("daily", 5, kind)
    body = forge_cdiff("daily", 5) if kind is Kind.CDIFF else forge_sign()
    harness.origin.put(object_id.file_name, body)
    transfer = await fetch(harness, object_id)
    await transfer.ready()
    assert transfer.published
    assert stored(harness, object_id) == body
    assert partial_names(harness) == []
    with pytest.raises(SourceError):
        transfer.source()


async def test_the_request_that_the_origin_sees(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    await fetch(harness, cdiff(5))
    (seen,) = harness.origin.requests()
    assert seen.headers["user-agent"] == AGENT  # trap 26
    assert seen.headers["accept-encoding"] == "identity"  # trap 32
    assert "if-modified-since" not in seen.headers  # trap 10
    assert "range" not in seen.headers


async def test_a_large_object_is_read_while_it_arrives(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.short(200_000), times=1)
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        assert not transfer.published
        assert transfer.metadata.size == len(body)
        assert transfer.metadata.header == body[:512].decode()
        source = transfer.source()
        assert 0 < await source.wait(0) <= 200_000
        assert await read_all(source) == body
        source.close()
        source.close()
    assert transfer.published
    published = harness.store.open(cvd(5))
    assert published is not None
    with published:
        assert published.metadata.header == body[:512].decode()
        assert published.metadata.last_modified is not None
    assert harness.origin.count("W") + harness.origin.count("R") == 2


async def test_nobody_gets_the_end_of_a_corrupt_object(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = bytearray(make_cvd(5, SIZE))
    body[len(body) // 2] ^= 1
    harness.origin.put("daily.cvd", bytes(body))
    harness.origin.rate = 2_000_000
    received = 0
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        source = transfer.source()
        with pytest.raises(SourceError):  # noqa: PT012 - the loop ends by it
            while True:
                received = await source.wait(received)
        source.close()
    assert received == len(body) - WITHHELD
    assert harness.store.open(cvd(5)) is None
    assert harness.store.newest_version("daily") is None
    (rejected,) = harness.store.quarantined()
    assert rejected.name.startswith("daily-5.cvd.")
    assert rejected.read_bytes() == body
    reason = rejected.with_name(f"{rejected.name}.reason").read_text()
    assert "MD5" in reason
    assert "6d8e7326cd40501e-TST" in reason  # the CDN's id of the request
    assert partial_names(harness) == []


async def test_a_reader_of_a_good_object_waits_for_the_verdict(
    harness: TransferHarness, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All has arrived, verification has not passed: the last 64 KiB stay back."""
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    reached, verdict, verify = threading.Event(), threading.Event(), verification.verify

    def slow_verify(*arguments: object) -> None:
        reached.set()
        verdict.wait(LIMIT)
        verify(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inspection, "verify", slow_verify)
    async with running(harness, cvd(5)) as transfer:
        await asyncio.to_thread(reached.wait, LIMIT)
        assert transfer.have == len(body)
        assert await transfer.available(0) == len(body) - WITHHELD
        rest = asyncio.create_task(transfer.available(len(body) - WITHHELD))
        await asyncio.sleep(0.05)
        assert not rest.done()
        verdict.set()
        assert await rest == len(body)


@pytest.mark.parametrize("is_right", [True, False])
async def test_a_part_of_an_object_waits_for_the_verdict(
    harness: TransferHarness, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch, is_right: bool
) -> None:
    """A range in the middle would else be complete before anybody knows that it is wrong."""
    body = bytearray(make_cvd(5, SIZE))
    body[5000] ^= not is_right
    harness.origin.put("daily.cvd", bytes(body))
    verdict, verify = threading.Event(), verification.verify

    def slow_verify(*arguments: object) -> None:
        verdict.wait(LIMIT)
        verify(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(inspection, "verify", slow_verify)
    async with running(harness, cvd(5)) as transfer:
        await transfer.ready()
        source = transfer.source()
        source.last = 6000
        await until(lambda: transfer.have == len(body))
        assert await source.wait(0) == 5999
        rest = asyncio.create_task(source.wait(5999))
        await asyncio.sleep(0.05)
        assert not rest.done()
        verdict.set()
        if is_right:
            assert await rest >= 6000
        else:
            with pytest.raises(SourceError):
                await rest
        source.close()


async def test_a_date_in_the_future_is_that_of_the_transfer(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE), modified="Fri, 31 Dec 9999 23:59:59 GMT")
    await fetch(harness, cvd(5))
    published = harness.store.open(cvd(5))
    assert published is not None
    with published:
        assert (published.metadata.last_modified or 0) <= time.time()


# Empty patches


async def test_trap_15_an_empty_cdiff_is_data(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", b"")
    transfer = await fetch(harness, cdiff(5))
    await transfer.ready()
    assert stored(harness, cdiff(5)) == b""


async def test_an_empty_cdiff_without_a_length_is_a_lost_connection(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.origin.rule("D5", faults.short_without_length(0))
    assert (await failure_of(harness, cdiff(5))).failure is FailureKind.BAD_CONTENT


@pytest.mark.parametrize("kind", [Kind.CVD, Kind.CVD_SIGN])
async def test_nothing_but_a_cdiff_may_be_empty(harness: TransferHarness, kind: Kind) -> None:
    object_id = ObjectId("daily", 5, kind)
    harness.origin.put(object_id.upstream_path[1:], b"")
    assert (await failure_of(harness, object_id)).failure is FailureKind.BAD_CONTENT


# Lengths


@pytest.mark.parametrize(
    "fault", [faults.chunked(), faults.Fault(length=False)], ids=["chunked", "until the connection ends"]
)
async def test_an_object_of_unknown_length(
    harness: TransferHarness, make_cvd: MakeCvd, fault: faults.Fault
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", fault)
    transfer = await fetch(harness, cvd(5))
    await transfer.ready()
    assert stored(harness, cvd(5)) == body


COMPLETE_OR_NOT = pytest.mark.parametrize(
    ("fault", "is_complete"),
    [
        pytest.param(faults.Fault(), True, id="a length of 0"),
        pytest.param(faults.chunked(), True, id="no chunk but the last"),
        pytest.param(
            faults.Fault(chunked=True, headers={"Content-Length": "7"}), True, id="RFC 9112 6.3: chunks count"
        ),
        pytest.param(
            faults.Fault(chunked=True, headers={"Transfer-Encoding": "Chunked"}), True, id="in capitals"
        ),
        pytest.param(faults.Fault(length=False), False, id="until the connection ends"),
        pytest.param(faults.chunked(cut_after=0), False, id="cut before the last chunk"),
        pytest.param(faults.Fault(headers={"Content-Length": "765"}), False, id="cut before the end"),
        pytest.param(faults.Fault(length=False, cut_after=0), False, id="cut without a length"),
        pytest.param(faults.Fault(length=False, cut_after=0, reset=True), False, id="reset without a length"),
    ],
)


@COMPLETE_OR_NOT
async def test_an_empty_cdiff_where_the_framing_says_that_it_is_all(
    harness: TransferHarness, fault: faults.Fault, is_complete: bool
) -> None:
    harness.origin.put("daily-5.cdiff", b"")
    harness.origin.rule("D5", fault)
    transfer = await fetch(harness, cdiff(5))
    assert transfer.published is is_complete
    assert stored(harness, cdiff(5)) == (b"" if is_complete else None)


@pytest.mark.parametrize("length", ["1", "1000000", "0", "x"])
@pytest.mark.parametrize("object_id", [cvd(5), cdiff(5), sign(cdiff(5))], ids=lambda one: str(one.kind))
async def test_a_length_beside_chunks_says_nothing(
    harness: TransferHarness, make_cvd: MakeCvd, object_id: ObjectId, length: str
) -> None:
    """RFC 9112 6.3: who sends both is told apart by the chunks."""
    body = {Kind.CVD: make_cvd(5), Kind.CDIFF: forge_cdiff("daily", 5)}.get(object_id.kind) or forge_sign()
    harness.origin.put(object_id.upstream_path[1:], body)
    harness.origin.rule("*", faults.Fault(chunked=True, headers={"Content-Length": length}))
    assert (await fetch(harness, object_id)).published
    assert stored(harness, object_id) == body


async def test_trap_17_cut_without_a_length(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", faults.short_without_length(300_000))
    transfer = await fetch(harness, cvd(5))
    assert not transfer.published
    with pytest.raises(SourceError):
        await transfer.available(0)
    assert stored(harness, cvd(5)) is None
    assert len(harness.store.quarantined()) == 1


async def test_cut_inside_a_chunked_body(harness: TransferHarness, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.chunked(cut_after=300_000), times=1)
    assert (await fetch(harness, cvd(5))).published
    assert stored(harness, cvd(5)) == body


@pytest.mark.parametrize("length", ["x", "-5", "1e3"])
async def test_a_length_that_is_no_number(harness: TransferHarness, length: str) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.origin.rule("D5", faults.Fault(headers={"Content-Length": length}))
    assert not (await fetch(harness, cdiff(5))).published


# Answers that are no file


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        pytest.param(faults.status(403), FailureKind.FORBIDDEN, id="403"),
        pytest.param(faults.status(429), FailureKind.RATE_LIMITED, id="429"),
        pytest.param(faults.status(503), FailureKind.SERVER_ERROR, id="503"),
        pytest.param(faults.status(522), FailureKind.SERVER_ERROR, id="522"),
        pytest.param(faults.status(304, b""), FailureKind.SERVER_ERROR, id="304 to no condition"),
        pytest.param(faults.html(), FailureKind.BAD_CONTENT, id="trap 19: an error page with status 200"),
        pytest.param(faults.gzipped(), FailureKind.BAD_CONTENT, id="trap 32: compressed"),
        pytest.param(faults.replaced(b"ClamAV"), FailureKind.BAD_CONTENT, id="shorter than its magic"),
    ],
)
@pytest.mark.parametrize("object_id", [cdiff(5), cvd(5)], ids=["cdiff", "cvd"])
async def test_an_answer_that_is_no_file(
    harness: TransferHarness,
    make_cvd: MakeCvd,
    object_id: ObjectId,
    fault: faults.Fault,
    failure: FailureKind,
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5))
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.origin.rule("*", fault)
    assert (await failure_of(harness, object_id)).failure is failure
    assert len(harness.origin.requests()) == 1


@pytest.mark.parametrize(("field", "seconds"), [("7", 7), ("soon", None), ("-5", None)])
async def test_trap_21_retry_after(harness: TransferHarness, field: str, seconds: float | None) -> None:
    harness.origin.rule("*", faults.status(429, retry_after=field))
    assert (await failure_of(harness, cdiff(5))).retry_after == seconds


@pytest.mark.parametrize("code", [404, 410])
async def test_not_found(harness: TransferHarness, code: int) -> None:
    harness.origin.rule("*", faults.status(code))
    transfer = await fetch(harness, cdiff(5))
    with pytest.raises(NotFoundError):
        await transfer.ready()


async def test_a_cvd_that_is_not_there_though_its_header_was(harness: TransferHarness) -> None:
    """As any lie about the file: each client that asked for it again would be a request to the origin."""
    harness.origin.rule("*", faults.status(404))
    assert (await failure_of(harness, ObjectId("daily", 5, Kind.CVD))).failure is FailureKind.BAD_CONTENT


async def test_trap_18_a_patch_under_another_name(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 6))
    harness.origin.put("main-6.cdiff", forge_cdiff("daily", 6))
    for object_id in (cdiff(5), cdiff(6, "main")):
        assert (await failure_of(harness, object_id)).failure is FailureKind.BAD_CONTENT
    assert len(harness.store.quarantined()) == 2


async def test_an_origin_that_is_gone(harness: TransferHarness) -> None:
    harness.origin.refuse()
    assert (await failure_of(harness, cdiff(5))).failure is FailureKind.UNREACHABLE


# Another version than announced


@pytest.mark.parametrize(
    ("sent", "oldest", "taken"),
    [
        pytest.param(6, None, True, id="newer than its head"),
        pytest.param(4, 4, True, id="older than its head, newer than what is cached"),
        pytest.param(4, None, False, id="trap 4: older than what is of use"),
    ],
)
async def test_the_origin_sends_another_version(
    harness: TransferHarness, make_cvd: MakeCvd, sent: int, oldest: int | None, taken: bool
) -> None:
    body = make_cvd(sent, SIZE)
    harness.origin.put("daily.cvd", body)
    transfer = await fetch(harness, cvd(5), oldest)
    assert transfer.published is taken
    if taken:
        assert transfer.object_id == cvd(sent)
        assert stored(harness, cvd(sent)) == body
    assert stored(harness, cvd(5)) is None
    assert partial_names(harness) == [] or not taken


async def test_another_process_has_the_version_that_is_sent(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(6))
    theirs = PartialFile.claim(harness.store.partials, cvd(6))
    assert (await failure_of(harness, cvd(5))).failure is FailureKind.CHANGED
    theirs.release()


# Another process has it


async def test_what_another_process_fetches_is_waited_for(harness: TransferHarness) -> None:
    theirs = PartialFile.claim(harness.store.partials, cdiff(5))
    async with running(harness, cdiff(5)) as transfer:
        await asyncio.sleep(0.3)
        assert not transfer.published
        theirs.discard()
        put(harness.store, cdiff(5), b"published by the other")
        theirs.release()
        await transfer.ready()
        assert transfer.published
    assert stored(harness, cdiff(5)) == b"published by the other"
    assert harness.origin.requests() == []
    assert partial_names(harness) == []


async def test_what_another_process_gave_up_is_taken_over(harness: TransferHarness) -> None:
    body = forge_cdiff("daily", 5)
    harness.origin.put("daily-5.cdiff", body)
    leave_partial(harness, cdiff(5), body[:100], await validators_of(harness, "/daily-5.cdiff"))
    theirs = PartialFile.claim(harness.store.partials, cdiff(5))
    async with running(harness, cdiff(5)) as transfer:
        await asyncio.sleep(0.3)
        assert harness.origin.requests() == []
        theirs.release()
        await transfer.ready()
    (seen,) = harness.origin.requests()
    assert seen.headers["range"] == "bytes=100-"
    assert stored(harness, cdiff(5)) == body


# Trouble of this machine


async def test_a_disk_that_is_full(harness: TransferHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))

    def full(self: PartialFile, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartialFile, "append", full)
    error = await failure_of(harness, cdiff(5))
    assert error.failure is FailureKind.LOCAL
    assert "No space left" in str(error)


async def test_a_store_that_cannot_be_written(
    harness: TransferHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))

    def readonly(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(harness.store), "publish", readonly)
    assert (await failure_of(harness, cdiff(5))).failure is FailureKind.LOCAL
