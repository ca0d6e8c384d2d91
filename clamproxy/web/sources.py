"""What the pages are made of: functions that the service fills in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.fleet.machine import Machine
from clamproxy.history import Past
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldown


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client reaches the gateway."""

    host: str | None
    """A name or an address; None: unknown."""
    port: int | None
    """Of the proxy; None: unknown."""


async def _no_record() -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the pages get their figures from; who makes it owns what is behind it.

    What isn't said to block is called on the event loop and takes microseconds.
    """

    settings: Callable[[], Settings]
    """The configuration in force; a reload changes it."""
    store: Store
    """Read in threads of the site's own."""
    started_at: float
    """When the gateway was started, Unix seconds."""
    under_way: Callable[[], Sequence[tuple[ObjectId, int, int]]] = lambda: ()
    """See `Transfers.under_way`."""
    cooldowns: Callable[[], Mapping[str, Cooldown]] = dict
    """See `Cooldowns.in_force`."""
    past: Callable[[], Past] = Past
    """The last day, see `History.past`."""
    fleet: Callable[[], Sequence[Machine]] | None = None
    """All machines, see `read_fleet`. Blocks. None: no table is kept."""
    feeds: Callable[[], Mapping[str, Any]] | None = None
    """The feeds as status.json has them, see `Feeds.figures`. None: there are none."""
    authority: Callable[[], bytes | None] = lambda: None
    """The certificates that clients have to trust, PEM. Blocks. None: there is no authority."""
    client_config: Callable[[str, Place], str] | None = None
    """The lines of freshclam.conf: mode and place of the gateway. Blocks. ValueError: there is no such
    mode, or it can't be had; the text says why."""
    record: Callable[[], Awaitable[str | None]] = _no_record
    """The primary version record, see `Announcer.primary`."""
