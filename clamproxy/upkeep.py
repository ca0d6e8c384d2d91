"""Upkeep of the cache: removes surplus objects, finds damage, and uses a disk again when it recovers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from clamproxy.bundle import sweep_staging
from clamproxy.cache.partial import sweep
from clamproxy.cache.retention import SPARED
from clamproxy.cache.soundness import Soundness
from clamproxy.cache.store import Store
from clamproxy.config.settings import CacheSection
from clamproxy.releases.builder import CldBuilder
from clamproxy.releases.lineage import Lineages
from clamproxy.releases.signs import Signs
from clamproxy.threads import Writer

logger = logging.getLogger(__name__)

MEND_EVERY = 2.0
"""Seconds between checks whether the disk accepts what waits in memory."""


class Upkeep:
    """Tidies, checks and mends the cache in the background. Owns its tasks. Event loop only."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        settings: CacheSection,
        soundness: Soundness,
        lineages: Lineages,
        signs: Signs,
        builder: CldBuilder,
        ceilings: Callable[[], Mapping[str, int]],
    ) -> None:
        self._store = store
        self._writer = writer
        self._settings = settings
        self._soundness = soundness
        self._lineages = lineages
        self._signs = signs
        self._builder = builder
        self._ceilings = ceilings
        self._tidy_pending = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Tidy up and check everything once, and keep mending from now on."""
        self.tidy_soon()
        self._tasks = [
            asyncio.create_task(self.check(), name="check what is cached"),
            asyncio.create_task(self._mend(), name="mend the cache"),
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def tidy_soon(self) -> None:
        """To be called when the cache has grown. Tidies once for all objects published in the meantime."""
        # Tidying looks at every object.
        if not self._tidy_pending:
            self._tidy_pending = True
            ceilings = self._ceilings()
            self._writer.submit(lambda: self._tidy(ceilings))

    def _tidy(self, ceilings: Mapping[str, int]) -> None:
        self._tidy_pending = False
        limits = self._settings
        dropped = self._store.collect_garbage(
            limits.keep_cdiffs, limits.size_limit, spare_for=SPARED, ceilings=ceilings
        )
        for object_id in dropped:
            logger.info("Dropped %s from the cache.", object_id.file_name)
        sweep(self._store.partials, self._store.has)
        self._builder.sweep()
        sweep_staging(self._store.directory)

    async def check(self) -> None:
        """Find what was damaged on the disk while no process watched it: it must not be served."""
        await self._soundness.ensure_all()
        for database in sorted(self._store.databases()):
            await self._lineages.get(database)
        await self._signs.examine_all()

    async def _mend(self) -> None:
        """Notice that the disk accepts writes again, or that the index was damaged or deleted."""
        while True:
            await asyncio.sleep(MEND_EVERY)
            try:
                await self._writer.run(self._store.mend)
            except Exception:  # whatever it is, the next trouble with the disk must end by itself
                logger.exception("The cache can't be mended.")
