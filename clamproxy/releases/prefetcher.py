"""Prefetching: objects that are fetched on no particular client's request, and published before use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from clamproxy.cache.store import Store
from clamproxy.messages import Requester
from clamproxy.objects import Kind, Latest, ObjectId
from clamproxy.origin.budget import PER_FILE
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfers import ORIGIN_TROUBLE, Transfers
from clamproxy.releases.lineage import Lineages, ProvenLineage
from clamproxy.single_flight import SingleFlight

logger = logging.getLogger(__name__)

AT_A_TIME = 4
"""How many patches are fetched in parallel when several are missing."""
_COST_OF_RENEWAL = 2
"""In requests: one for the header, one for the whole file."""


class Prefetcher:
    """Fetches what is missing, never the same thing twice at a time. Owns its tasks. Event loop only."""

    def __init__(self, store: Store, origin: Origin, lineages: Lineages, transfers: Transfers) -> None:
        self._store = store
        self._lineages = lineages
        self._heads = origin.heads
        self._transfers = transfers
        self._budget = origin.budget
        self._running = SingleFlight[str, None]("prefetch:", _log_failure)

    async def fetch(self, object_id: ObjectId, requester: Requester, oldest: int | None = None) -> None:
        """Fetch an object unless it is here, and wait until it is published.

        Args:
            requester: on whose behalf.
            oldest: see `Transfer`.

        Raises:
            OriginTrouble: it isn't available now.
        """
        if not self._store.holds(object_id):
            transfer, _ = await self._transfers.ready(object_id, requester, oldest, for_client=False)
            await transfer.finish()

    async def catch_up(
        self, database: str, target: int, requester: Requester, ceiling: int | None = None
    ) -> ProvenLineage | None:
        """Fetch the patches that lead from the cached CVD to a version, as far as they exist.

        Args:
            requester: on whose behalf.
            ceiling: the highest version that counts; the CVD is the newest one up to it.

        Returns:
            The resulting lineage; None if there is no CVD to start from.

        Raises:
            OriginTrouble: a missing patch isn't available.
        """
        before = -1
        while True:
            proven = await self._lineages.get(database, ceiling)
            if proven is None or proven.lineage.is_blocked or not before < proven.lineage.reached < target:
                return proven
            before = proven.lineage.reached
            await self._running.run(
                f"patches of {database} for {requester.version}",
                partial(self.fetch_patches, patches_between(database, before + 1, target), requester),
            )

    async def fetch_patches(self, patches: Iterable[ObjectId], requester: Requester) -> None:
        """Fetch those of the patches that are missing, a few at a time and in order.

        Raises:
            OriginTrouble: the error of the first patch that isn't available; patches after its group are
                not asked for.
        """
        missing = [patch for patch in patches if not self._store.holds(patch)]
        for start in range(0, len(missing), AT_A_TIME):
            group = missing[start : start + AT_A_TIME]
            results = await asyncio.gather(
                *(self.fetch(patch, requester) for patch in group), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def renew(self, database: str, requester: Requester) -> None:
        """Fetch the origin's CVD if it is newer than the cached one, and wait until it is published.

        Raises:
            OriginTrouble: it isn't available now.
        """
        await self._running.run(_renewal(database), partial(self._renew, database, requester))

    async def refetch(self, object_id: ObjectId, requester: Requester) -> None:
        """Fetch an object that was dropped, or a newer version of a CVD, because a person asks for it.

        The growing pauses between the gateway's own requests are skipped, but their number is still
        limited.

        Raises:
            OriginTrouble: it isn't available now, or was asked for too often within the last hour.
        """
        is_cvd = object_id.kind is Kind.CVD
        used = self._budget.used(object_id.upstream_path)
        if used + (_COST_OF_RENEWAL if is_cvd else 1) > PER_FILE:
            raise OriginError(FailureKind.LOCAL, f"it was asked for {used} times within the last hour")
        if not is_cvd:
            with suppress(NotFoundError):
                await self.fetch(object_id, requester)
            return
        await self.renew(object_id.database, requester)
        if (self._store.newest_version(object_id.database) or 0) < object_id.version:
            raise OriginError(FailureKind.LOCAL, "the origin has only an older version")

    def asked_at(self, database: str, first: int, last: int) -> float | None:
        """`Transfers.asked_at` for the patches of these versions, both included."""
        return self._transfers.asked_at(patches_between(database, first, last))

    def may_fetch(self, object_id: ObjectId) -> bool:
        """Whether the gateway may ask for a patch or signature on its own, or is fetching it already."""
        return self._transfers.is_running(object_id) or self._budget.allows(object_id.upstream_path)

    def may_renew(self, database: str) -> bool:
        """Whether the gateway may ask for a CVD on its own: for its header, then for the whole file."""
        path = Latest(database, Kind.CVD).upstream_path
        return self._budget.allows(path, cost=_COST_OF_RENEWAL)

    def renew_soon(self, database: str, requester: Requester) -> None:
        """Like `renew`, but in the background and only if the budget allows it; errors are logged."""
        if _renewal(database) not in self._running and self.may_renew(database):
            _ = self._running.start(_renewal(database), partial(self._renew, database, requester))

    async def _renew(self, database: str, requester: Requester) -> None:
        cached, proven = self._store.newest_version(database) or 0, self._store.newest_proven.of(database)
        await self._heads.probe(database, requester, cached, cached)
        head = self._heads.get(database)
        offered = head.header.version if head is not None else 0
        if cached < offered < proven:
            raise OriginError(FailureKind.LOCAL, "the origin has only an older version")
        if offered > cached:
            object_id = ObjectId(database, offered, Kind.CVD)
            await self.fetch(object_id, requester, max(cached + 1, proven))
            logger.info("%s is the new base of %s.", object_id.file_name, database)

    def stop(self) -> None:
        """Cancel all tasks; what has arrived stays on disk."""
        self._running.stop()


def patches_between(database: str, first: int, last: int) -> list[ObjectId]:
    """The cdiffs of these versions, both included."""
    return [ObjectId(database, version, Kind.CDIFF) for version in range(first, last + 1)]


def _renewal(database: str) -> str:
    return f"renewal of {database}"


def _log_failure(what: str, error: BaseException) -> None:
    if isinstance(error, ORIGIN_TROUBLE):
        logger.debug("%s: not now: %s", what, error)
    else:
        logger.error("Fetching %s failed.", what, exc_info=error)
