"""What the pages show comes from functions that the service provides."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.fleet.biography import Biography
from clamproxy.fleet.machine import Machine
from clamproxy.history import Past
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldown
from clamproxy.peers.peers import PeerState
from clamproxy.site_files import Catalog


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client reaches the gateway."""

    host: str | None
    """A name or an address; None if unknown."""
    port: int | None
    """The proxy's port; None if unknown."""


async def _no_record(client: str) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the pages get their figures from; whoever makes it owns what it refers to.

    Unless noted otherwise, a function is called on the event loop and takes microseconds.
    """

    settings: Callable[[], Settings]
    """The configuration in force; a reload changes it."""
    store: Store
    """The cache; read only in the pages' own threads."""
    started_at: float
    """When the gateway was started, in Unix seconds."""
    under_way: Callable[[], Sequence[tuple[ObjectId, int, int]]] = lambda: ()
    """The transfers that are running, from `Transfers.under_way`."""
    processes: Callable[[], Sequence[int]] = lambda: (os.getpid(),)
    """The pids of the gateway's processes."""
    cooldowns: Callable[[], Mapping[str, Cooldown]] = dict
    """The cool-downs in force, from `Cooldowns.in_force`."""
    past: Callable[[], Past] = Past
    """The last day, from `History.past`."""
    fleet: Callable[[], Sequence[Machine]] | None = None
    """All machines, from `read_fleet`. Blocks. None if no table is kept."""
    trend: Callable[[], Mapping[str, Any] | None] = lambda: None
    """The trend as in status.json, from `read_trend`. Blocks. None if it can't be read."""
    biography: Callable[[str], Biography | None] = lambda _: None
    """The story of the machine with a UUID, from `read_biography`. Blocks."""
    feeds: Callable[[], Mapping[str, Any]] | None = None
    """The feeds as in status.json, from `Feeds.figures`. None if there are none."""
    files: Callable[[], Catalog] = Catalog
    """The site's own files, from `SiteFiles.catalog`."""
    authority: Callable[[], bytes | None] = lambda: None
    """The certificates that clients have to trust, as PEM; None if there is no authority. Blocks."""
    client_config: Callable[[str, Place], str] | None = None
    """The lines for freshclam.conf, by mode and by the place of the gateway. Blocks. Raises ValueError with
    the reason if the mode is unknown or unavailable."""
    notices: Callable[[], Mapping[str, Any]] = lambda: {"targets": [], "alerts": []}
    """What is known about notices, from `read_report`. Blocks."""
    peers: Callable[[], Sequence[PeerState]] = lambda: ()
    """The other gateways, from `Peers.states` and `SiteExchange.gateways`."""
    site_problem: Callable[[], str | None] = lambda: None
    """What may be wrong because other gateways of the site can't be heard, in one line."""
    rates: Callable[[], Mapping[str, Any]] = dict
    """The limits of rates that are in force, and the present rates, as in status.json."""
    fleet_store: Callable[[], Mapping[str, Any] | None] = lambda: None
    """The object store as in status.json, without its counters; None if there is none."""
    record: Callable[[str], Awaitable[str | None]] = _no_record
    """The primary version record for the client with this address, from `Announcer.primary`."""
