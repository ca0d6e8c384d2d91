"""Transfers that wait for the link: that is no stall, and whoever doesn't want to wait any more needn't."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from clamproxy.config.rates import Rates
from clamproxy.config.units import KIB
from clamproxy.origin.link import Link
from clamproxy.origin.scope import CancelledScopeError, CancelScope
from clamproxy.origin.transfer import Transfer
from tests.harness.transfers import SIZE, TransferHarness, connect, running, stored
from tests.support.fixtures import MakeCvd
from tests.support.stored import NEW, cvd, until


class Busy:
    """Somebody else who has read a lot and doesn't wait."""

    def pause(self, seconds: float) -> None:
        pass


@pytest.fixture
def link(harness: TransferHarness) -> Iterator[Link]:
    """The link of the harness's transfers, with a limit of 16 KiB/s."""
    link = Link()
    link.follow(Rates.parse("16KiB/s"))
    upstream = connect(harness.origin, link=link)
    harness.resources = replace(harness.resources, upstream=upstream)
    yield link
    upstream.close()


async def test_waiting_for_the_link_is_no_stall(
    harness: TransferHarness, link: Link, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, SIZE)
    harness.origin.put("daily.cvd", body)
    link.pay(48 * KIB, Busy())  # three seconds; the window for stalls is half a second
    async with running(harness, cvd(5)) as transfer:
        await until(lambda: transfer.have > KIB)
        link.follow(None)
    assert stored(harness, cvd(5)) == body
    assert [seen.headers.get("range") for seen in harness.origin.requests()] == [None]


async def test_a_transfer_that_waits_for_the_link_can_be_cancelled(
    harness: TransferHarness, link: Link, make_cvd: MakeCvd
) -> None:
    harness.origin.put("daily.cvd", make_cvd(5, SIZE))
    link.pay(16_000 * KIB, Busy())
    transfer = Transfer(cvd(5), NEW, harness.resources)
    task = asyncio.create_task(transfer.run())
    await until(lambda: transfer.have > 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not any("clamproxy-fetch" in thread.name for thread in threading.enumerate()))


async def test_a_pause_ends_when_its_scope_does() -> None:
    scope = CancelScope()
    waiting = asyncio.create_task(asyncio.to_thread(scope.pause, 1000))
    await until(lambda: scope.held_back > 0)
    scope.cancel()
    with pytest.raises(CancelledScopeError):
        await waiting
    with pytest.raises(CancelledScopeError):
        scope.pause(1000)
