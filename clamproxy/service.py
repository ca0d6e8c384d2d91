"""The service: the parts of the gateway put together, started and stopped."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

from clamproxy.cache.partial import sweep
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.gateway import Gateway, Parts
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import Cooldowns, Failure
from clamproxy.origin.heads import Heads
from clamproxy.origin.transfer import Resources
from clamproxy.origin.transfers import Transfers
from clamproxy.origin.upstream import Upstream
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.policy import negative_ttl
from clamproxy.stats import Stats
from clamproxy.threads import Writer

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""To the origin, for transfers, at the same time; further ones wait."""
STALL_WINDOW = 5.0
"""Seconds over which the speed of a connection to the origin is watched."""


class Service:
    """Everything that runs for the gateway in one process. Made and stopped on the event loop."""

    def __init__(self, settings: Settings, keys: TrustedKeys) -> None:
        """Open the cache and prepare all parts. Blocks for some milliseconds.

        Args:
            settings: the configuration.
            keys: the public keys that objects must be signed with.

        Raises:
            OSError: the cache directory can't be used.
        """
        self.settings = settings
        self.store = Store(settings.cache.directory)
        self.writer = Writer()
        self._tidy_pending = False
        self.stats = Stats(self.store, self.writer)
        pseudonym = f"clamproxy-{secrets.token_hex(4)}"
        self._cooldowns = Cooldowns(self._saver("cooldown/"))
        self._versions = AdvertisedVersions(
            settings.versions.domain,
            settings.versions.nameservers,
            settings.versions.refresh,
            self._saver("advertised/"),
        )
        self._upstream = self._connect(pseudonym)
        self._heads = Heads(self._upstream, self._cooldowns, self._saver("head/"))
        self._transfers = self._make_transfers(keys)
        self._cooldowns.restore(self.store.notes("cooldown/"))
        self._versions.restore(self.store.notes("advertised/"))
        self._heads.restore(self.store.notes("head/"))
        self.gateway = Gateway(
            Parts(
                settings,
                self.store,
                self._versions,
                self._heads,
                self._transfers,
                self._cooldowns,
                pseudonym,
            )
        )

    def start(self) -> None:
        """Tidy up the cache in the background."""
        self._tidy_soon()

    def stop(self) -> None:
        """Stop all; takes milliseconds. Interrupted transfers stay on disk and are resumed."""
        self._transfers.stop()
        self._heads.stop()
        self._versions.stop()
        self.stats.flush()
        self.writer.submit(self.store.disconnect)
        self.writer.close()
        self._upstream.close()
        self.store.close()

    def _connect(self, pseudonym: str) -> Upstream:
        upstream = self.settings.upstream
        return Upstream(
            upstream.url,
            proxy=upstream.proxy,
            ca_bundle=upstream.ca_bundle,
            connect_timeout=upstream.connect_timeout,
            read_timeout=upstream.read_timeout,
            via=f"1.1 {pseudonym}",
            count=self.stats.count_upstream,
        )

    def _make_transfers(self, keys: TrustedKeys) -> Transfers:
        window = min(STALL_WINDOW, self.settings.upstream.read_timeout)
        slots = asyncio.Semaphore(MAX_CONNECTIONS)
        resources = Resources(self._upstream, self.store, self.writer, keys, window, slots)
        return Transfers(resources, self._cooldowns, self._negative_ttl, self._tidy_soon, self._after_failure)

    def _negative_ttl(self, object_id: ObjectId) -> float:
        advertised = self._versions.last_known(object_id.database)
        return negative_ttl(object_id, advertised.version if advertised else None)

    def _after_failure(self, object_id: ObjectId, failure: Failure) -> None:
        """A file that is not what its head announced makes the head worthless."""
        if object_id.kind is Kind.CVD and failure in (Failure.BAD_CONTENT, Failure.CHANGED):
            self._heads.forget(object_id.database)

    def _tidy_soon(self) -> None:
        """Once for all that is published until the writer gets to it: it looks at every object."""
        if not self._tidy_pending:
            self._tidy_pending = True
            self.writer.submit(self._tidy)

    def _tidy(self) -> None:
        self._tidy_pending = False
        cache = self.settings.cache
        for object_id in self.store.collect_garbage(cache.keep_cdiffs, cache.size_limit):
            logger.info("Dropped %s from the cache.", object_id.file_name)
        sweep(self.store.partials)

    def _saver(self, prefix: str) -> Callable[[str, Any], None]:
        def save(key: str, value: Any) -> None:
            self.writer.submit(lambda: self.store.set_note(prefix + key, value))

        return save
