"""Gateways of one site in one process: each with a store of its own, all with one object store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from clamproxy.bucket.bucket import Bucket, open_bucket
from clamproxy.cache.store import Store
from clamproxy.config.settings import CacheSection
from clamproxy.leases.bucket_leases import BucketLeases
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.leases.leases import Leases
from clamproxy.leases.site_leases import SiteLeases
from clamproxy.messages import Requester
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.header_probes import HeaderProbes
from clamproxy.origin.probe_turns import ProbeTurns
from clamproxy.origin.transfer import Resources, Transfer
from clamproxy.origin.transfers import Transfers
from clamproxy.origin.upstream import Upstream
from clamproxy.releases.object_exchange import ObjectExchange
from clamproxy.sharing.shared_objects import SharedObjects
from clamproxy.threads import Writer
from tests.harness.transfers import connect
from tests.support.forge import forge_keys
from tests.support.notes import notes_in
from tests.support.origin import OriginServer
from tests.support.stored import NEW, read

LIMIT = 60
"""Seconds; only a guard."""


@dataclass
class Member:
    """One gateway, as far as objects are concerned."""

    name: str
    store: Store
    writer: Writer
    upstream: Upstream
    bucket: Bucket
    leases: Leases
    shared: SharedObjects
    cooldowns: Cooldowns
    transfers: Transfers
    heads: HeaderProbes
    exchange: ObjectExchange

    async def fetch(
        self, object_id: ObjectId, requester: Requester = NEW, *, for_client: bool = True
    ) -> Transfer:
        """Join and wait until the object is published."""
        async with asyncio.timeout(LIMIT):
            transfer, _ = await self.transfers.ready(object_id, requester, for_client=for_client)
            await transfer.finish()
        return transfer

    def read(self, object_id: ObjectId) -> bytes | None:
        return read(self.store, object_id)

    def stop(self) -> None:
        self.exchange.stop()
        self.transfers.stop()
        self.heads.stop()
        self.shared.stop()
        self.leases.stop()
        self.bucket.stop()
        self.writer.submit(self.store.disconnect)
        self.writer.close()
        self.upstream.close()
        self.store.close()


type MakeMember = Callable[..., Member]


@asynccontextmanager
async def open_site(directory: Path, origin: OriginServer, url: str) -> AsyncIterator[MakeMember]:
    """Makes the members of a site; the environment must lead to its object store."""
    members: list[Member] = []

    def make(name: str = "", *, size_limit: int = 2**30, keep_cdiffs: int = 120) -> Member:
        name = name or f"gateway{len(members)}"
        store, writer, upstream = Store(directory / name), Writer(), connect(origin)
        bucket, keys = open_bucket(url), forge_keys().trusted
        leases = SiteLeases(
            DirectoryLeases(store.directory),
            BucketLeases(bucket, name),
            lambda: bucket.condition.state is not None,
        )
        shared = SharedObjects(bucket, leases, store)
        cooldowns = Cooldowns(notes_in({}))
        heads = HeaderProbes(upstream, cooldowns, notes_in({}), turns=ProbeTurns(leases, bucket))
        resources = Resources(
            upstream, store, writer, keys, 0.5, asyncio.Semaphore(16), shared, heads.put_to_test
        )
        transfers = Transfers(resources, cooldowns, lambda _: 60.0, lambda _: None, lambda *_: None)
        limits = CacheSection(directory=store.directory, size_limit=size_limit, keep_cdiffs=keep_cdiffs)
        exchange = ObjectExchange(shared, transfers, store, keys, ["daily"], limits, dict)
        member = Member(
            name, store, writer, upstream, bucket, leases, shared, cooldowns, transfers, heads, exchange
        )
        members.append(member)
        return member

    try:
        yield make
    finally:
        for member in members:
            member.stop()
        await asyncio.sleep(0)
