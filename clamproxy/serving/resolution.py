"""What is current: the facts about one database at this moment, from DNS, the cache and the origin."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Self

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.messages import Requester
from clamproxy.objects import Kind, Latest, ObjectId
from clamproxy.origin.errors import NotFoundError
from clamproxy.origin.origin import Origin
from clamproxy.origin.transfers import ORIGIN_TROUBLE, OriginTrouble
from clamproxy.policy import Known, must_probe
from clamproxy.releases.lineage import Lineages, ProvenLineage
from clamproxy.releases.object_exchange import ObjectExchange
from clamproxy.releases.prefetcher import Prefetcher

PATIENCE = 25.0
"""Seconds after which a client that waits for the origin gets a 503. freshclam's ReceiveTimeout is 60 s by
default, its ConnectTimeout 30 s (docs/protocol.md 1.1)."""
PATIENCE_WITH_STALE = 2.0
"""Seconds after which such a client gets an older version instead, if there is one."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one client waits for the origin, in total for everything that its request needs."""

    ends_at: float
    """When the client's patience ends, in loop time."""
    is_short: bool
    """Whether an older version can be served instead."""

    @classmethod
    def begin(cls, *, has_copy: bool) -> Self:
        """The patience of a client that has just come.

        Args:
            has_copy: whether an older version can be served instead.
        """
        seconds = PATIENCE_WITH_STALE if has_copy else PATIENCE
        return cls(asyncio.get_running_loop().time() + seconds, has_copy)

    def until(self, asked_at: float | None) -> float:
        """Loop time at which to stop waiting for one response of the origin.

        A herd must not wait for a silent origin one client after the other. A request that has had no
        response for `PATIENCE_WITH_STALE` goes on, but clients that can get an older version don't wait
        for it.

        Args:
            asked_at: loop time at which the origin was asked; None if it hasn't been yet.
        """
        if asked_at is None or not self.is_short:
            return self.ends_at
        return min(self.ends_at, asked_at + PATIENCE_WITH_STALE)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What was found out for one request."""

    known: Known
    proven: ProvenLineage | None
    """What the cached patches lead to; None if they were not considered."""
    patience: Patience
    """How long the client still waits for the origin."""
    ceiling: int | None = None
    """The highest version that the client is shown; None if that isn't limited."""
    was_origin_asked: bool = False
    trouble: OriginTrouble | None = None
    """Why the origin didn't respond; None if it did or wasn't asked."""


class CurrentVersions:
    """Finds out what is current, and asks no more than necessary."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        origin: Origin,
        lineages: Lineages,
        prefetcher: Prefetcher,
        object_exchange: ObjectExchange | None = None,
    ) -> None:
        self._settings = settings
        self._site = object_exchange
        self._store = store
        self._versions = origin.versions
        self._heads = origin.heads
        self._cooldowns = origin.cooldowns
        self._agents = origin.agents
        self._clock = origin.clock
        self._lineages = lineages
        self._prefetcher = prefetcher

    async def ask_dns(self, latest: Latest, requester: Requester) -> Known:
        """Consult DNS, unless that was done recently, and return what is known."""
        await self._look_at_dns(latest, None)
        return self.known(latest, requester)

    async def _look_at_dns(self, latest: Latest, ceiling: int | None) -> None:
        if self._settings.asks_dns:
            has_copy = self._store.newest_version(latest.database, ceiling) is not None
            await self._versions.get(latest.database, is_needed=not has_copy)

    def _with(self, known: Known, proven: ProvenLineage | None) -> Known:
        # The base may have been published or renewed between the two lookups.
        if proven is not None and proven.lineage.base == known.cached:
            known = replace(known, patched=proven.lineage.reached)
        if self._settings.upstream.offline:
            known = replace(known, advertised=max(known.held, known.advertised or 0) or None)
        return known

    async def find_out(
        self,
        latest: Latest,
        requester: Requester,
        *,
        with_patches: bool,
        needs_patches: bool = False,
        patience: Patience | None = None,
        ceiling: int | None = None,
    ) -> Resolution:
        """Find out what is current: from DNS, then from the patches that lead there, then from the origin.

        Args:
            with_patches: whether a version that patches lead to is as good as a whole file.
            needs_patches: whether the response depends on the patches. If not, they are fetched only
                where patches are fetched ahead of clients anyway.
            patience: what is left of the client's patience; by default, that of a client that has just
                come.
            ceiling: the highest version that the client is shown.
        """
        patience = patience or self._patience(latest, ceiling)
        await self.bring(latest.database, ceiling)
        await self._look_at_dns(latest, ceiling)
        proven = await self._lineages.get(latest.database, ceiling) if with_patches else None
        known = self._with(self.known(latest, requester, ceiling), proven)
        finding = Resolution(known, proven, patience, ceiling)
        may_fetch = needs_patches or self._settings.serving.prefetch != "none"
        if may_fetch and finding.known.held < finding.known.newest:
            finding = await self._catch_up(finding, latest, requester, finding.known.newest)
        # An origin that is silent isn't asked for something else as well.
        if isinstance(finding.trouble, TimeoutError) or not must_probe(finding.known):
            return finding
        finding = await self._probe(finding, latest, requester)
        if may_fetch and finding.known.held < finding.known.offered:
            finding = await self._catch_up(finding, latest, requester, finding.known.offered, is_news=True)
        return finding

    async def bring(self, database: str, ceiling: int | None) -> None:
        """Bring a database of which nothing is here from the site's object store, if that has it."""
        if self._site is not None:
            await self._site.bring(database, ceiling)

    def _patience(self, latest: Latest, ceiling: int | None) -> Patience:
        return Patience.begin(has_copy=self._store.newest_version(latest.database, ceiling) is not None)

    async def look(self, database: str, ceiling: int | None = None) -> None:
        """Refresh what `announced` goes by."""
        # Another process may have fetched what leads on; and neither has to wait for the other.
        await asyncio.gather(self._versions.get(database), self._lineages.get(database, ceiling))

    def announced(self, database: str, ceiling: int | None = None) -> int | None:
        """The version to announce to clients by DNS: one that they can get here. Quick.

        A client that hears of a version asks for its cdiff at once. So a version is announced once its
        patch is here. If nothing is fetched ahead, only the clients' own requests bring it here, so the
        advertised version is announced.
        """
        advertised = self._versions.last_known(database) if self._settings.asks_dns else None
        last = advertised.version if advertised else None
        if last is not None and ceiling is not None:
            last = min(last, ceiling)
        is_ahead = self._settings.serving.prefetch != "none" and self._agents.requester() is not None
        if not is_ahead and not self._settings.upstream.offline:
            return last
        proven = self._lineages.last(database, ceiling)
        held = proven.lineage.reached if proven else self._store.newest_version(database, ceiling)
        return held or self._newest_patch(database, last) or last

    def _newest_patch(self, database: str, advertised: int | None) -> int | None:
        """The newest cached patch, for a database whose CVD was never asked for."""
        versions = range(advertised or 0, max(0, (advertised or 0) - self._settings.delta.max_patches), -1)
        return next((n for n in versions if self._store.has(ObjectId(database, n, Kind.CDIFF))), None)

    async def _catch_up(
        self, finding: Resolution, latest: Latest, requester: Requester, to: int, *, is_news: bool = False
    ) -> Resolution:
        """Fetch the missing patches, if delta serving can continue with them.

        Args:
            to: the version that the patches should lead to.
            is_news: whether that version was just seen at the origin, so that its patch should be there.
        """
        if finding.proven is None or finding.proven.lineage.is_blocked:
            return finding
        lineage = finding.proven.lineage
        following = ObjectId(latest.database, lineage.reached + 1, Kind.CDIFF)
        if to - lineage.base > self._settings.delta.max_patches:
            return finding
        if not is_news and not self._prefetcher.may_fetch(following):
            return finding
        trouble: OriginTrouble | None = None
        asked_at = self._prefetcher.asked_at(latest.database, following.version, to)
        try:
            async with asyncio.timeout_at(finding.patience.until(asked_at)):
                await self._prefetcher.catch_up(latest.database, to, requester, finding.ceiling)
        except NotFoundError:
            pass  # the patch comes late or never; the CVD's header will tell
        except ORIGIN_TROUBLE as error:
            trouble = error
        proven = await self._lineages.get(latest.database, finding.ceiling)
        known = self._with(self.known(latest, requester, finding.ceiling), proven)
        return replace(finding, known=known, proven=proven, trouble=trouble)

    async def _probe(self, finding: Resolution, latest: Latest, requester: Requester) -> Resolution:
        known, trouble = finding.known, None
        try:
            async with asyncio.timeout_at(finding.patience.until(self._heads.asked_at(latest.database))):
                await self._heads.probe(latest.database, requester, known.advertised or 0, known.wanted)
        except ORIGIN_TROUBLE as error:
            trouble = error
        known = self._with(self.known(latest, requester, finding.ceiling), finding.proven)
        return replace(finding, known=known, was_origin_asked=True, trouble=trouble)

    def known(self, latest: Latest, requester: Requester, ceiling: int | None = None) -> Known:
        """What is known without asking DNS or the origin."""
        database = latest.database
        offline = self._settings.upstream.offline
        told = self._versions.last_known(database) if self._settings.asks_dns else None
        head, sighting = self._heads.get(database), self._heads.sighting(database)
        known = Known(
            now=self._clock.time(),
            refresh=self._settings.versions.refresh,
            # Offline, nothing is newer than what was imported.
            advertised=self.announced(database) if offline else told.version if told else None,
            advertised_is_fresh=offline or (told is not None and told.fresh),
            hears_dns=told is not None and told.fresh,
            demanded=latest.demanded,
            cached=self._store.newest_version(database, ceiling),
            seen=head.header.version if head and not offline else None,
            proven=0 if offline else self._store.newest_proven.of(database),
            seen_at=sighting.at,
            probed_advertised=sighting.advertised,
            probed_for=sighting.wanted,
            fruitless=sighting.fruitless,
            can_fetch=self._cooldowns.check(latest.upstream_path, requester.version) is None,
        )
        return known.under(ceiling)
