"""The figures of status.json from what is stored, for commands: whether or not the proxy is running."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from clamproxy.authority import Authority, AuthorityError
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.fleet import UnreadableFleetError, advertised_to_clients, read_fleet
from clamproxy.fleet.machine import Machine
from clamproxy.history import read_past
from clamproxy.notes import Notes
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.site_files import Catalog
from clamproxy.site_files.publisher import read_catalog
from clamproxy.web.sources import Sources
from clamproxy.web.status import take_status


def stored_figures(store: Store, settings: Settings) -> Mapping[str, Any]:
    """The values of status.json, without what only the running gateway knows: transfers and peers. Blocks.

    Args:
        store: the cache with its records.
    """

    def machines() -> list[Machine]:
        try:
            advertised = advertised_to_clients(store, settings)
            return read_fleet(store.records.directory, advertised, time.time())
        except UnreadableFleetError:
            return []

    def authority() -> bytes | None:
        try:
            found = Authority.load(settings.tls.directory)
        except (AuthorityError, OSError):
            return None
        return found.bundle() if found is not None else None

    def files() -> Catalog:
        try:
            return read_catalog(store.records.directory) if settings.files.directory else Catalog()
        except OSError:
            return Catalog()

    sources = Sources(
        settings=lambda: settings,
        store=store,
        started_at=0.0,
        cooldowns=Cooldowns(Notes(store, None, "cooldown", read_only=True)).in_force,
        past=lambda: read_past(Notes(store.records, None, "history", read_only=True)),
        fleet=machines if settings.fleet.enabled else None,
        authority=authority,
        files=files,
    )
    return take_status(sources)().values
