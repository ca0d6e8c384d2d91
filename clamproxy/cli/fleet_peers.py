"""The machines of other gateways, for ``clamproxy fleet --all-gateways``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing

from clamproxy.config.settings import Settings
from clamproxy.fleet.machine import Machine
from clamproxy.peers.merging import merged
from clamproxy.peers.peers import PeerState, ask_now, unasked
from clamproxy.peers.site_gateways import read_now
from clamproxy.state import open_store


def with_peers(settings: Settings, own: Sequence[Machine]) -> tuple[list[Machine], list[str]]:
    """Ask the gateways in fleet.peers, and add their machines and those of the site to this gateway's own.

    Returns:
        All machines, worst first, and a line for each gateway that doesn't answer.
    """
    peers = [*asyncio.run(_ask_all(settings)), *_of_site(settings)]
    # A vertical bar would begin the performance data of a plugin.
    silent = [f"{one.name} doesn't answer ({one.reason.replace('|', '/')})" for one in peers if not one.up]
    return list(merged(own, peers)), silent


async def _ask_all(settings: Settings) -> list[PeerState]:
    return await asyncio.gather(*(ask_now(peer, settings, unasked(peer)) for peer in settings.fleet.peers))


def _of_site(settings: Settings) -> Sequence[PeerState]:
    """The other gateways of the site, as a running proxy has last heard of them."""
    with closing(open_store(settings)) as store:
        return read_now(store, settings.fleet.max_clients, time.time())
