"""Fixtures of the integration tests: transfers and followers, between a fake CDN and a store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from clamproxy.cache.store import Store
from tests.harness import follower, transfers
from tests.harness.follower import MakeHarness
from tests.harness.transfers import TransferHarness
from tests.support.origin import OriginServer


@pytest.fixture
async def harness(origin: OriginServer, store: Store) -> AsyncIterator[TransferHarness]:
    """Transfers; modules about other parts have a harness of their own."""
    async with transfers.open_harness(origin, store) as harness:
        yield harness


@pytest.fixture
async def make_harness(origin: OriginServer, store: Store) -> AsyncIterator[MakeHarness]:
    """Makes followers with all that they use."""
    async with follower.open_harnesses(origin, store) as make:
        yield make
