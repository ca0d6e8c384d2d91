"""Delivery: an object from the cache or the origin to a client that waits for it."""

from __future__ import annotations

import asyncio

from clamproxy.cache.published import Metadata, PublishedFile
from clamproxy.cache.store import Store
from clamproxy.messages import Requester, Result, Source
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import TransferError
from clamproxy.origin.transfers import Transfers
from clamproxy.releases.signs import Signs

type Delivered = tuple[ObjectId, Metadata, Source, Result]
"""The object that was delivered, its metadata, its bytes, and how it got here."""


class Delivery:
    """Opens cached objects; for all others, starts or joins transfers on behalf of clients."""

    def __init__(self, store: Store, transfers: Transfers, signs: Signs) -> None:
        self._store = store
        self._transfers = transfers
        self._signs = signs

    async def open(self, object_id: ObjectId) -> PublishedFile | None:
        """Open an object; None if the cache has none that may be served."""
        if object_id.kind.is_signature:
            # A client asks for the signature as soon as it has the end of the file.
            await self._transfers.settle(object_id.signed)
            await self._signs.examine(object_id)
        return self._store.open(object_id)

    def require_not_missing(self, object_id: ObjectId) -> None:
        """Fail at once if an object isn't available anywhere. Quick.

        Raises:
            KnownMissingError: it isn't cached, and the origin said a short while ago that it doesn't
                exist.
        """
        if not self._store.has(object_id):
            self._transfers.require_not_missing(object_id)

    def asked_at(self, object_id: ObjectId) -> float | None:
        return self._transfers.asked_at([object_id])

    async def fetch(
        self,
        object_id: ObjectId,
        requester: Requester,
        until: float,
        oldest: int | None = None,
        *,
        verified: bool = False,
    ) -> Delivered:
        """Start or join a transfer, and wait until it can be read from.

        Args:
            until: loop time at which waiting ends; once it has passed, no transfer is started.
            oldest: see `Transfer`.
            verified: whether to wait until the object is complete and verified.

        Raises:
            OriginTrouble: the object isn't available now.
        """
        is_over = asyncio.get_running_loop().time() >= until
        if is_over and not self._transfers.is_running(object_id):
            raise TimeoutError
        async with asyncio.timeout_at(until):
            transfer, joined = await self._transfers.ready(object_id, requester, oldest)
            result = Result.COLLAPSED if joined or transfer.is_shared else Result.MISS
            if verified:
                await transfer.finish()
            found = transfer.object_id
            if not transfer.published:
                return found, transfer.metadata, transfer.source(), result
            if (published := self._store.open(found)) is not None:
                return found, published.metadata, published, result
            raise TransferError(FailureKind.LOCAL, "dropped from the cache as soon as it was there")
