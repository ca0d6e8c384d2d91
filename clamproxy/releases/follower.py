"""The follower: fetches what a release brings before clients ask for it.

It watches the advertised versions of the databases in use. It fetches new patches and their signatures as
they appear, on behalf of a freshclam that came by. Where patches don't lead on, or have become too many,
it fetches a new CVD.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from itertools import takewhile

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.dates import elapsed
from clamproxy.leases.duties import on_duty
from clamproxy.leases.leases import ALONE, Leases
from clamproxy.messages import Requester
from clamproxy.objects import STANDARD_DATABASES, Kind, ObjectId
from clamproxy.origin.cooldown import ORIGIN, PROXY, FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError, TransferError
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfers import ORIGIN_TROUBLE, CooldownError
from clamproxy.releases.builder import CldBuilder
from clamproxy.releases.delta import Renewal, renewal
from clamproxy.releases.lineage import Lineages
from clamproxy.releases.prefetcher import Prefetcher, patches_between
from clamproxy.releases.quiet import QuietHour
from clamproxy.releases.signs import Signs
from clamproxy.releases.stuck import StuckPatches

logger = logging.getLogger(__name__)

LATEST_START = 10.0
"""The longest time from the start to the first look, in seconds."""
SHORTEST_PROBE_INTERVAL = 900.0
"""Seconds between probes for the header of a CVD, where DNS doesn't tell the version."""
LONGEST_TRUST = 86400.0
"""Seconds for which DNS alone is believed when it says that there is nothing newer."""
LONGEST_WAIT = 86400.0
"""Seconds after which a signature that the origin lacks is no longer expected."""
LONGEST_SLEEP = 600.0
LONGEST_INTEREST = 86400.0
"""Seconds for which a database without a cached file is watched after a client asked for it."""
LONGEST_LAG = 3600.0
"""Seconds after which a patch that the origin lacks is no longer expected."""


class Follower:
    """The background task that fetches ahead. Event loop only.

    Args:
        leases: of the processes that share them, one fetches ahead.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        origin: Origin,
        lineages: Lineages,
        prefetcher: Prefetcher,
        builder: CldBuilder,
        quiet_hour: QuietHour,
        signs: Signs,
        stuck: StuckPatches,
        leases: Leases = ALONE,
    ) -> None:
        self._settings = settings
        self._store = store
        self._versions = origin.versions
        self._heads = origin.heads
        self._cooldowns = origin.cooldowns
        self._agents = origin.agents
        self._lineages = lineages
        self._prefetcher = prefetcher
        self._builder = builder
        self._quiet_hour = quiet_hour
        self._signs = signs
        self._stuck = stuck
        self._clock = origin.clock
        self._in_use: dict[str, float] = {}
        """When a client last asked for each database, in Unix seconds."""
        self._leases = leases
        self._settled: set[ObjectId] = set()
        """Signatures that are cached, or no longer expected."""
        self._missing_since: dict[ObjectId, float] = {}
        self._gaps: dict[str, tuple[int, float]] = {}
        """By database: the patch that the origin lacks, and since when, in Unix seconds."""
        self._made_at = self._clock.time()
        self._task: asyncio.Task[None] | None = None

    def see(self, database: str) -> None:
        """Note that a client asks for files of this database."""
        self._in_use[database] = self._clock.time()

    def start(self) -> None:
        """Start following, unless nothing is to be fetched ahead of clients."""
        if self._settings.serving.prefetch != "none" and not self._settings.upstream.offline:
            self._task = asyncio.create_task(self._run(), name="follow releases")

    def stop(self) -> None:
        """Cancel the task; what has arrived stays on disk."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        await asyncio.sleep(random.uniform(0, min(self._settings.versions.refresh, LATEST_START)))  # noqa: S311
        await on_duty(self._leases, "follow", self._look_at_all, is_able=self._reaches_origin)

    def _reaches_origin(self) -> bool:
        """Whether the origin could be reached, as far as known. Another gateway may have another link."""
        return not {ORIGIN, PROXY} & self._cooldowns.in_force().keys()

    async def _look_at_all(self) -> float:
        """Look at all databases; returns seconds until the next look."""
        try:
            for database in self._databases():
                await self._look(database)
        except Exception:
            logger.exception("Following releases failed.")
        # Gateways that were started together should not ask together.
        return min(self._settings.versions.refresh, LONGEST_SLEEP) * random.uniform(1.0, 1.25)  # noqa: S311

    async def _look(self, database: str) -> None:
        try:
            await self.follow(database)
        except ORIGIN_TROUBLE as error:
            logger.debug("%s: not now: %s", database, error)
        except Exception:
            logger.exception("Following the releases of %s failed.", database)

    def _databases(self) -> list[str]:
        now = self._clock.time()
        wanted = {database for database, at in self._in_use.items() if now - at < LONGEST_INTEREST}
        wanted |= self._store.databases()
        if self._settings.serving.prefetch == "all":
            wanted |= set(STANDARD_DATABASES)
        return sorted(wanted & set(self._settings.serving.databases))

    async def follow(self, database: str) -> None:
        """Look once, and fetch what is missing.

        Raises:
            OriginTrouble: something isn't available now; the next look is soon.
        """
        requester = self._requester()
        advertised = await self._advertised(database, requester)
        if advertised is None or requester is None:
            return
        with suppress(*ORIGIN_TROUBLE):
            await self._fetch_patches(database, advertised, requester)
        with suppress(*ORIGIN_TROUBLE):
            await self._renew_if_due(database, advertised, requester)
        with suppress(*ORIGIN_TROUBLE):
            await self._fetch_signatures(database, advertised, requester)
        await self._look_past_dns(database, requester)
        proven = await self._lineages.get(database)
        if proven is not None and proven.lineage.patches and self._builder.is_in_demand(database):
            self._builder.start(database, proven)

    def _requester(self) -> Requester | None:
        """On whose behalf to ask; prefers a version that the origin hasn't refused lately."""
        cooldowns = self._cooldowns
        # No path is given: a refusal of one file doesn't concern the others.
        return self._agents.requester(
            lambda agent: not cooldowns.was_refused(agent) and cooldowns.check("", agent) is None
        ) or self._agents.requester(lambda agent: cooldowns.check("", agent) is None)

    async def refetch(self, object_id: ObjectId) -> None:
        """Fetch an object again; see `Prefetcher.refetch`.

        Raises:
            OriginTrouble: it isn't available now, or there is no client on whose behalf to ask.
        """
        await self._prefetcher.refetch(object_id, self._require_requester())

    def _require_requester(self) -> Requester:
        requester = self._requester() or self._agents.requester()
        if requester is None:
            raise OriginError(
                FailureKind.LOCAL, "no freshclam has used the gateway yet, and upstream.user_agent is not set"
            )
        return requester

    async def fetch_release(self, database: str) -> None:
        """Fetch everything of the advertised version: patches, the whole CVD, and the signatures.

        Raises:
            OriginTrouble: some of it isn't available now.
        """
        requester = self._require_requester()
        told = await self._versions.get(database, patience=None) if self._settings.asks_dns else None
        if told is None or not told.fresh:
            await self._heads.probe(database, requester, 0, 0)
        head, cached = self._heads.get(database), self._store.newest_version(database)
        advertised = told.version if told and told.fresh else head.header.version if head else 0
        # The last two patches in any case, for clients that are slightly behind, but not every patch
        # there ever was.
        first = min(advertised - 1, advertised if cached is None else cached + 1)
        first = max(1, first, advertised - self._settings.cache.keep_cdiffs + 1)
        with suppress(NotFoundError):
            await self._prefetcher.fetch_patches(patches_between(database, first, advertised), requester)
        if cached is None or cached < advertised:
            await self._prefetcher.renew(database, requester)
        await self._fetch_signatures(database, advertised, requester, insists=True)

    async def _advertised(self, database: str, requester: Requester | None) -> int | None:
        """The version advertised by DNS, or else by the header of the origin's CVD."""
        if self._settings.asks_dns:
            advertised = await self._versions.get(database)
            if advertised is not None and advertised.fresh:
                return max(advertised.version, self._seen(database))
        age = elapsed(self._heads.sighting(database).at, self._clock.time())
        longest = max(self._settings.versions.refresh, SHORTEST_PROBE_INTERVAL)
        if requester is not None and age >= longest and self._prefetcher.may_renew(database):
            await self._heads.probe(database, requester, 0, 0)
        return self._seen(database) or None

    def _seen(self, database: str) -> int:
        """The version in the header of the origin's CVD; 0 if it was never seen."""
        head = self._heads.get(database)
        return head.header.version if head else 0

    async def _look_past_dns(self, database: str, requester: Requester) -> None:
        """Probe the origin once a day even if DNS has no news, because DNS may be wrong."""
        age = elapsed(max(self._heads.sighting(database).at, self._made_at), self._clock.time())
        if self._settings.asks_dns and age >= LONGEST_TRUST and self._prefetcher.may_renew(database):
            with suppress(*ORIGIN_TROUBLE):
                await self._heads.probe(database, requester, 0, 0)

    async def _fetch_patches(self, database: str, advertised: int, requester: Requester) -> None:
        """Fetch the patches that follow the cached ones, up to the advertised version."""
        wanted = patches_between(database, await self._first_missing(database, advertised), advertised)
        # In order: no patch is of any use before its predecessors are here.
        asked = list(takewhile(lambda one: self._store.has(one) or self._prefetcher.may_fetch(one), wanted))
        try:
            await self._prefetcher.fetch_patches(asked, requester)
        except NotFoundError:
            gap = next((one.version for one in asked if not self._store.has(one)), 0)
            since = self._gaps.get(database, (0, 0.0))
            self._gaps[database] = since if since[0] == gap else (gap, self._clock.time())
            raise
        if asked or not wanted:
            self._gaps.pop(database, None)

    async def _first_missing(self, database: str, advertised: int) -> int:
        oldest = advertised - self._settings.delta.max_patches + 1
        proven = await self._lineages.get(database)
        if proven is not None and not proven.lineage.is_blocked and proven.lineage.reached >= oldest - 1:
            return proven.lineage.reached + 1
        # Even without a base here, the patches serve clients that have one.
        for version in range(advertised, max(oldest, 1), -1):
            if self._store.has(ObjectId(database, version, Kind.CDIFF)):
                return version + 1
        return advertised + 1 if proven is None else advertised

    async def _renew_if_due(self, database: str, advertised: int, requester: Requester) -> None:
        """Fetch a new CVD if patches are not enough."""
        due = await self._renewal(database, advertised)
        if due is Renewal.IN_A_QUIET_HOUR and not self._quiet_hour.is_now():
            return
        if due is not Renewal.NOT_NEEDED:
            # In the background, so that the patches of other databases don't have to wait.
            self._prefetcher.renew_soon(database, requester)

    async def _renewal(self, database: str, advertised: int) -> Renewal:
        proven = await self._lineages.get(database)
        if self._settings.serving.prefetch == "all" and (proven is None or proven.lineage.base < advertised):
            return Renewal.AT_ONCE
        gap, since = self._gaps.get(database, (0, 0.0))
        # An edge of the CDN may lag behind, and the newest patch may be published late.
        patience = 2 * self._settings.versions.refresh if gap < advertised else LONGEST_LAG
        is_gone = gap > 0 and elapsed(since, self._clock.time()) >= patience
        if proven is None:
            return Renewal.AT_ONCE if is_gone else Renewal.NOT_NEEDED
        following = ObjectId(database, proven.lineage.reached + 1, Kind.CDIFF)
        is_gone &= gap == following.version
        is_gone |= following.version <= advertised and self._stuck.is_stuck(following)
        # So many patches are not fetched; see `_first_missing`.
        is_gone |= advertised - proven.lineage.reached > self._settings.delta.max_patches
        return renewal(proven.lineage, self._settings.delta, next_is_gone=is_gone)

    async def _fetch_signatures(
        self, database: str, advertised: int, requester: Requester, *, insists: bool = False
    ) -> None:
        """Fetch the signatures of the base and of the cached patches.

        Args:
            insists: whether a person is waiting. Then the budget doesn't count, and trouble is raised.
        """
        proven = await self._lineages.get(database)
        oldest = max(1, advertised - self._settings.delta.max_patches + 1)
        wanted = [ObjectId(database, version, Kind.CDIFF) for version in range(oldest, advertised + 1)]
        if proven is not None:
            wanted.insert(0, ObjectId(database, proven.lineage.base, Kind.CVD))
        self._forget_signatures(database)
        for signed in wanted:
            signature = signed.signature
            if signature in self._settled or not self._store.has(signed):
                continue
            await self._signs.examine(signature)
            if self._store.has(signature):
                self._settled.add(signature)
            elif insists:
                with suppress(NotFoundError):
                    await self._prefetcher.fetch(signature, requester)
            elif self._prefetcher.may_fetch(signature):
                await self._fetch_signature(signature, advertised, requester)

    def _forget_signatures(self, database: str) -> None:
        """Forget what is known about the signatures of files that are gone."""
        for signature in {*self._settled, *self._missing_since}:
            if signature.database != database or self._store.has(signature.signed):
                continue
            self._settled.discard(signature)
            self._missing_since.pop(signature, None)

    async def _fetch_signature(self, signature: ObjectId, advertised: int, requester: Requester) -> None:
        try:
            await self._prefetcher.fetch(signature, requester)
        except NotFoundError:
            # A signature may be published after its object, but no longer for an older version.
            since = self._missing_since.setdefault(signature, self._clock.time())
            if signature.version < advertised - 1 or elapsed(since, self._clock.time()) >= LONGEST_WAIT:
                self._settled.add(signature)
        except (TransferError, CooldownError) as error:
            if error.failure is FailureKind.FORBIDDEN:
                raise  # this concerns all the others as well
            logger.debug("%s: not now: %s", signature.file_name, error)
