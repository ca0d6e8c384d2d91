"""Catching up with the site: what other gateways have put into the object store, before anybody asks for it.

A gateway with an empty disk takes the newest CVDs and patches from there before it answers its first client.
Later it looks for news in the background, so that all gateways know the same versions, and gives what the
object store lacks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from clamproxy.bucket.bucket import Listed
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.cache.retention import SPARED
from clamproxy.cache.soundness import check
from clamproxy.cache.store import Store
from clamproxy.config.settings import CacheSection
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.leases.duties import on_duty
from clamproxy.negative_cache import NegativeCache
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.transfers import Transfers
from clamproxy.sharing.give_and_take import surplus, to_give, to_take
from clamproxy.sharing.shared_objects import SharedObjects
from clamproxy.single_flight import SingleFlight
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

LOOK_EVERY = 15.0
"""Seconds between two looks at what the object store has."""
LATEST_START = 2.0
"""The longest time from the start to the first look, in seconds."""
LONGEST_BRING = 10.0
"""Seconds that a client waits for a whole database from the object store. Then the origin is asked which
version is current, and the client reads along."""
NOTHING_FOR = 2.0
"""Seconds for which it is believed that the object store has nothing of a database."""
AT_A_TIME = 8
"""How many patches are taken in parallel."""
MOST_BAD = 3
"""Objects that are something else than their name says, after which a look at a database is over."""

type _Site = dict[ObjectId, Listed]


class ObjectExchange:
    """Takes from the object store, and gives to it. Owns its tasks. Event loop only.

    Args:
        databases: the names of the databases that are served.
        limits: how much the object store keeps, as well as this cache.
        ceilings: gives the highest version of a database that clients are shown, where that is limited.
    """

    def __init__(
        self,
        shared: SharedObjects,
        transfers: Transfers,
        store: Store,
        keys: TrustedKeys,
        databases: Collection[str],
        limits: CacheSection,
        ceilings: Callable[[], Mapping[str, int]],
    ) -> None:
        self._shared = shared
        self._transfers = transfers
        self._store = store
        self._keys = keys
        self._databases = databases
        self._limits = limits
        self._ceilings = ceilings
        self._nothing = NegativeCache[str](time.monotonic)
        self._bringing = SingleFlight[str, None]("bring", _log_failure)
        self._begun_at: dict[str, float] = {}
        """When a database was last begun to be brought, in monotonic seconds."""
        self._had: set[ObjectId] = set()
        """What was here at earlier looks. If it is dropped or purged, it is only taken again when needed."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(
            on_duty(self._shared.leases, "catch up", self._look, random.uniform(0, LATEST_START)),  # noqa: S311
            name="catch up with the site",
        )

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._bringing.stop()

    async def bring(self, database: str, ceiling: int | None = None) -> None:
        """Bring what the site has of a database of which nothing is here; returns at once otherwise.

        A client waits, but no longer than `LONGEST_BRING` since that was begun. It goes on regardless.
        """
        if (
            self._store.newest_version(database, ceiling) is not None
            or not self._shared.is_usable
            or database in self._nothing
        ):
            return
        now = time.monotonic()
        if database not in self._bringing:
            self._begun_at[database] = now
        bringing = self._bringing.start(database, partial(self._bring, database))
        left = self._begun_at[database] + LONGEST_BRING - now
        await asyncio.wait({bringing}, timeout=max(0.0, left))

    async def _bring(self, database: str) -> None:
        site = await self._shared.list()
        if not any(one.database == database and one.kind is Kind.CVD for one in site):
            self._nothing.add(database, NOTHING_FOR)
            return
        await self._take(database, site, frozenset())

    async def _look(self) -> float:
        """Take what is new, and give what is missing; returns seconds until the next look."""
        if self._shared.is_usable:
            try:
                await self._exchange()
            except BucketError as error:
                logger.debug("The object store was not looked at: %s", error)
            except Exception:
                logger.exception("Catching up with the site failed.")
        # Gateways that were started together should not look together.
        return LOOK_EVERY * random.uniform(1.0, 1.25)  # noqa: S311

    async def _exchange(self) -> None:
        site = await self._shared.list()
        is_right = True
        for database in sorted({one.database for one in site} & set(self._databases)):
            is_right &= await self._take(database, site, self._had)
        self._had = {*self._had, *self._store.object_ids()} & site.keys()
        if is_right:
            await self._tend(site)

    async def _take(self, database: str, site: _Site, spared: Collection[ObjectId]) -> bool:
        """Take what is missing here of a database.

        Args:
            spared: what isn't taken again.

        Returns:
            Whether everything was what its name says.
        """
        failed: set[ObjectId] = set()
        while self._shared.is_usable:
            own = {*self._store.object_ids(), *spared}
            ceiling, proven = self._ceilings().get(database), self._store.newest_proven.of(database)
            wanted = to_take(site.keys() - failed, own, database, ceiling, proven)
            if not wanted:
                break
            # A CVD first, alone: what else is of use depends on it.
            group = wanted[: 1 if wanted[0].kind is Kind.CVD else AT_A_TIME]
            taken = await asyncio.gather(*map(self._transfers.take_shared, group))
            failed.update(one for one, is_here in zip(group, taken, strict=True) if not is_here)
            if sum(map(self._shared.is_bad, failed)) >= MOST_BAD:
                break
        return not any(map(self._shared.is_bad, failed))

    async def _tend(self, site: _Site) -> None:
        """Give what is missing there, and drop what is superseded, unless another gateway is doing it."""
        limits = self._limits
        present = {one: listed.size for one, listed in site.items()}
        own = {one: size for one, size in self._store.sizes().items() if one.database in self._databases}
        giving = [
            one
            for one in to_give(own, present, limits.keep_cdiffs, limits.size_limit)
            if not self._shared.was_given(one)
        ]
        # By the clock of the store alone.
        newest = max((listed.modified for listed in site.values()), default=0.0)
        recent = {one for one, listed in site.items() if newest - listed.modified < SPARED}
        dropping = surplus(present, limits.keep_cdiffs, limits.size_limit, recent, self._ceilings())
        if not giving and not dropping:
            return
        lease = await self._shared.leases.take("tend")
        if lease is None:
            return
        try:
            for object_id in giving:
                if await self._is_sound(object_id) and await self._shared.upload(object_id):
                    logger.info("%s was put into the object store.", object_id.file_name)
            for object_id in dropping:
                await self._shared.drop(object_id)
                logger.info("Dropped %s from the object store.", object_id.file_name)
        finally:
            lease.release()

    async def _is_sound(self, object_id: ObjectId) -> bool:
        """Whether an object is as it was when it was verified."""

        def look() -> bool:
            try:
                return check(self._store, object_id, self._keys) is not None
            finally:
                self._store.disconnect()

        return await in_thread("clamproxy-check", look)


def _log_failure(database: str, error: BaseException) -> None:
    if isinstance(error, BucketError):
        logger.debug("%s was not brought from the object store: %s", database, error)
    else:
        logger.error("Bringing %s from the object store failed.", database, exc_info=error)
