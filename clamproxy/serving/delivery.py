"""Delivery: an object from the cache or the origin to a client that waits for it."""

from __future__ import annotations

import asyncio

from clamproxy.cache.published import Metadata, PublishedFile
from clamproxy.cache.store import Store
from clamproxy.messages import Requester, Result, Source
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.transfer import TransferError
from clamproxy.origin.transfers import Transfers
from clamproxy.releases.signs import Signs

type Delivered = tuple[ObjectId, Metadata, Source, Result]
"""What comes, what is known of it, its bytes, and how it came to be here."""


class Delivery:
    """Opens what is here; for the rest, starts and joins transfers for clients."""

    def __init__(self, store: Store, transfers: Transfers, signs: Signs) -> None:
        """Use the given parts; who makes them also stops them."""
        self._store = store
        self._transfers = transfers
        self._signs = signs

    async def open(self, object_id: ObjectId) -> PublishedFile | None:
        """An object for reading, or None if the cache has none that may be handed out."""
        if object_id.kind.is_signature:
            # Who has just been given the end of a file asks for its signature.
            await self._transfers.settle(object_id.signed)
            await self._signs.examine(object_id)
        return self._store.open(object_id)

    def require_not_missing(self, object_id: ObjectId) -> None:
        """Give up at once on an object that can be had nowhere. Quick.

        Raises:
            KnownMissingError: it isn't cached, and the origin said a short while ago that it hasn't got it.
        """
        if not self._store.has(object_id):
            self._transfers.require_not_missing(object_id)

    def asked_at(self, object_id: ObjectId) -> float | None:
        """See `Transfers.asked_at`."""
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
            object_id: what the client wants.
            requester: the client.
            until: loop time at which waiting ends; if it is over, no transfer begins.
            oldest: see `Transfer`.
            verified: whether to wait until all of it is here and verified.

        Raises:
            OriginTrouble: it can't be had now.
        """
        is_over = asyncio.get_running_loop().time() >= until
        if is_over and not self._transfers.is_running(object_id):
            raise TimeoutError
        async with asyncio.timeout_at(until):
            transfer, joined = await self._transfers.ready(object_id, requester, oldest)
            result = Result.COLLAPSED if joined else Result.MISS
            if verified:
                await transfer.finish()
            found = transfer.object_id
            if not transfer.published:
                return found, transfer.metadata, transfer.source(), result
            if (published := self._store.open(found)) is not None:
                return found, published.metadata, published, result
            raise TransferError(FailureKind.LOCAL, "dropped from the cache as soon as it was there")
