"""Transfers for no client in particular: they give up at the first break, and the next one resumes."""

from __future__ import annotations

import asyncio

import pytest

from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.transfer import Transfer, TransferError
from clamproxy.releases.signs import Signs
from clamproxy.serving.delivery import Delivery
from tests.support import faults
from tests.support.forge import forge_cdiff, forge_keys
from tests.unit.conftest import NEW, MakeCvd, Rig, cdiff, cvd, put, read_all
from tests.unit.transfer_bench import LIMIT, SIZE, ended, partial_names, stored

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
async def test_the_first_break_ends_it_and_the_next_one_resumes(
    rig: Rig, make_cvd: MakeCvd, fault: faults.Fault
) -> None:
    body = make_cvd(5, SIZE)
    rig.origin.put("daily.cvd", body)
    rig.origin.rule("W", fault, times=1)
    transfer, _ = rig.transfers.join(cvd(5), NEW, for_client=False)
    assert await failure_of(transfer) is FailureKind.INTERRUPTED
    await ended(rig)
    for key in rig.cooldowns.in_force():
        rig.cooldowns.succeeded(key, NEW.version)
    assert rig.origin.trace == "W"
    assert "daily-5.cvd.part" in partial_names(rig)
    transfer, joined = rig.transfers.join(cvd(5), NEW, for_client=False)
    assert not joined
    async with asyncio.timeout(LIMIT):
        await transfer.finish()
    assert stored(rig, cvd(5)) == body
    whole, rest = rig.origin.requests()
    start = int(rest.headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= BREAK
    assert (rest.status, rest.sent) == (206, len(body) - start)
    assert whole.sent <= len(body)


@pytest.mark.parametrize(
    ("for_client", "asked"), [pytest.param(False, 1, id="nobody"), pytest.param(True, 2, id="a client")]
)
async def test_a_small_file_whose_connections_break(rig: Rig, for_client: bool, asked: int) -> None:
    rig.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    rig.origin.rule("*", faults.reset())
    transfer, _ = rig.transfers.join(cdiff(5), NEW, for_client=for_client)
    assert await failure_of(transfer) in (FailureKind.UNREACHABLE, FailureKind.INTERRUPTED)
    assert rig.origin.trace.split() == ["D5"] * asked
    await ended(rig)
    # What the gateway does by itself makes no client wait.
    assert bool(rig.cooldowns.in_force()) is for_client


async def test_a_client_that_joins_makes_it_patient(rig: Rig, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, SIZE)
    rig.origin.put("daily.cvd", body)
    rig.origin.rule("W", faults.short(BREAK), times=1)
    rig.origin.rule("R", faults.short(50_000), times=2)
    transfer, _ = rig.transfers.join(cvd(5), NEW, for_client=False)
    other, joined = rig.transfers.join(cvd(5), NEW)
    assert (other is transfer, joined) == (True, True)
    rig.transfers.join(cvd(5), NEW, for_client=False)  # nor does this make it impatient again
    async with asyncio.timeout(LIMIT):
        await transfer.ready()
        source = transfer.source()
        assert await read_all(source) == body
        source.close()
        await transfer.finish()
    assert stored(rig, cvd(5)) == body
    assert rig.origin.trace == "W R R R"


async def test_for_a_client_that_waits_until_it_is_ready_too(rig: Rig, make_cvd: MakeCvd) -> None:
    rig.origin.put("daily.cvd", make_cvd(5, SIZE))
    rig.origin.rule("W", faults.short(BREAK), times=1)
    transfer, _ = rig.transfers.join(cvd(5), NEW, for_client=False)
    async with asyncio.timeout(LIMIT):
        same, joined = await rig.transfers.ready(cvd(5), NEW)
        assert (same is transfer, joined) == (True, True)
        await same.finish()
    assert rig.origin.trace == "W R"


# Nobody waits any more


async def test_a_client_whose_time_is_over_begins_no_transfer(rig: Rig) -> None:
    rig.origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    delivery, now = (
        Delivery(rig.store, rig.transfers, Signs(rig.store, forge_keys().trusted)),
        asyncio.get_running_loop().time(),
    )
    for until_then in (now, now - 60):
        with pytest.raises(TimeoutError):
            await delivery.fetch(cdiff(5), NEW, until_then)
    assert not rig.transfers._running
    assert rig.origin.requests() == []
    put(rig.store, cdiff(6), b"somebody else's")
    object_id, *_, source, _ = await delivery.fetch(cdiff(5), NEW, now + LIMIT)
    source.close()
    assert object_id == cdiff(5)
