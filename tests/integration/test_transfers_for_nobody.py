"""Transfers for no client in particular: they give up at the first break, and the next one resumes."""

from __future__ import annotations

import asyncio

import pytest

from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import TransferError
from clamproxy.origin.transfer import Transfer
from clamproxy.releases.signs import Signs
from clamproxy.serving.delivery import Delivery
from tests.harness.transfers import LIMIT, SIZE, TransferHarness, ended, partial_names, stored
from tests.support import faults
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff, forge_keys
from tests.support.stored import NEW, cdiff, cvd, put, read_all

BREAK = 300_000
"""Bytes of a CVD after which its connection breaks."""


async def failure_of(transfer: Transfer) -> FailureKind:
    async with asyncio.timeout(LIMIT):
        with pytest.raises(TransferError) as caught:
            await transfer.finish()
    return caught.value.failure


@pytest.mark.parametrize(
    "fault",
    [faults.short(BREAK), faults.reset(BREAK), faults.stall(BREAK)],
    ids=["closed", "reset", "stalled"],
)
async def test_the_first_break_ends_a_transfer_for_nobody_and_the_next_one_resumes(
    harness: TransferHarness, make_cvd: MakeCvd, fault: faults.Fault
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", fault, times=1)
    transfer, _ = harness.transfers.join(cvd(5), NEW, for_client=False)
    assert await failure_of(transfer) is FailureKind.INTERRUPTED
    await ended(harness)
    for key in harness.cooldowns.in_force():
        harness.cooldowns.succeeded(key, NEW.version)
    assert harness.origin.trace == "W"
    assert "daily-5.cvd.part" in partial_names(harness)
    transfer, joined = harness.transfers.join(cvd(5), NEW, for_client=False)
    assert not joined
    async with asyncio.timeout(LIMIT):
        await transfer.finish()
    assert stored(harness, cvd(5)) == body
    whole, rest = harness.origin.requests()
    start = int(rest.headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= BREAK
    assert (rest.status, rest.sent) == (206, len(body) - start)
    assert whole.sent <= len(body)


@pytest.mark.parametrize(
    ("for_client", "asked"), [pytest.param(False, 1, id="nobody"), pytest.param(True, 2, id="a client")]
)
async def test_a_small_file_whose_connections_break(
    harness: TransferHarness, for_client: bool, asked: int
) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    harness.origin.rule("*", faults.reset())
    transfer, _ = harness.transfers.join(cdiff(5), NEW, for_client=for_client)
    assert await failure_of(transfer) in (FailureKind.UNREACHABLE, FailureKind.INTERRUPTED)
    assert harness.origin.trace.split() == ["D5"] * asked
    await ended(harness)
    # What the gateway does by itself makes no client wait.
    assert bool(harness.cooldowns.in_force()) is for_client


async def test_a_client_that_joins_makes_a_transfer_patient(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    harness.origin.rule("W", faults.short(BREAK), times=1)
    harness.origin.rule("R", faults.short(50_000), times=2)
    transfer, _ = harness.transfers.join(cvd(5), NEW, for_client=False)
    other, joined = harness.transfers.join(cvd(5), NEW)
    assert (other is transfer, joined) == (True, True)
    harness.transfers.join(cvd(5), NEW, for_client=False)  # nor does this make it impatient again
    async with asyncio.timeout(LIMIT):
        await transfer.ready()
        source = transfer.source()
        assert await read_all(source) == body
        source.close()
        await transfer.finish()
    assert stored(harness, cvd(5)) == body
    assert harness.origin.trace == "W R R R"


async def test_a_client_that_waits_until_a_transfer_is_ready_makes_it_patient(
    harness: TransferHarness, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    harness.origin.rule("W", faults.short(BREAK), times=1)
    transfer, _ = harness.transfers.join(cvd(5), NEW, for_client=False)
    async with asyncio.timeout(LIMIT):
        same, joined = await harness.transfers.ready(cvd(5), NEW)
        assert (same is transfer, joined) == (True, True)
        await same.finish()
    assert harness.origin.trace == "W R"


# Nobody waits any more


async def test_a_client_whose_time_is_over_begins_no_transfer(harness: TransferHarness) -> None:
    harness.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    delivery, now = (
        Delivery(harness.store, harness.transfers, Signs(harness.store, forge_keys().trusted)),
        asyncio.get_running_loop().time(),
    )
    for until_then in (now, now - 60):
        with pytest.raises(TimeoutError):
            await delivery.fetch(cdiff(5), NEW, until_then)
    assert not harness.transfers.under_way()
    assert harness.origin.requests() == []
    put(harness.store, cdiff(6), b"somebody else's")
    object_id, *_, source, _ = await delivery.fetch(cdiff(5), NEW, now + LIMIT)
    source.close()
    assert object_id == cdiff(5)
