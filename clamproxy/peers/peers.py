"""The peers: other gateways, asked again and again in the background."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clamproxy.config.servers import Peer
from clamproxy.config.settings import Settings
from clamproxy.origin.errors import reason_of
from clamproxy.origin.scope import in_scope
from clamproxy.peers.asking import DEADLINE, PeerAnswer, ask

logger = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between two questions to the same gateway."""
LATEST_START = 5.0
"""Seconds until the first question, at most: gateways that start together shouldn't ask together."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """What is known about another gateway."""

    name: str
    """Its URL without the scheme, or its host name."""
    url: str | None
    """None for a gateway of the same site, which is heard of by the object store."""
    up: bool | None = None
    """Whether it answered the last question; None if it hasn't been asked yet."""
    reason: str = ""
    """Why it did not answer, in one line."""
    answered_at: float | None = None
    """When it last answered, in Unix seconds."""
    answer: PeerAnswer | None = None
    """Its last answer, however old."""

    def to_json(self) -> dict[str, Any]:
        """For status.json; without its machines. What it never said is None."""
        status = self.answer.status if self.answer is not None else None
        return {
            "name": self.name,
            "url": self.url,
            "site": self.url is None,
            "up": self.up,
            "reason": self.reason or None,
            "answered_at": self.answered_at,
            "version": status.gateway.version if status else None,
            "ready": status.ready if status else None,
            "problems": status.lines() if status else [],
            "databases": [one.model_dump() for one in status.databases] if status else [],
            "fleet": status.fleet.model_dump() if status else None,
        }


def unasked(peer: Peer) -> PeerState:
    """What is known about a gateway that hasn't been asked yet."""
    return PeerState(peer.name, peer.url)


async def ask_now(
    peer: Peer, settings: Settings, former: PeerState, clock: Callable[[], float] = time.time
) -> PeerState:
    """Ask a gateway, in a thread.

    Args:
        former: what was known about it before; its answer stays if there is no new one.
        clock: gives Unix seconds.
    """
    bundle, most = settings.upstream.ca_bundle, settings.fleet.max_clients
    try:
        answer = await in_scope("clamproxy-peer", DEADLINE, lambda _: ask(peer, bundle, most, clock()))
    except Exception as error:
        reason = "it takes too long to answer" if isinstance(error, TimeoutError) else reason_of(error)
        return replace(former, up=False, reason=reason)
    return PeerState(peer.name, peer.url, True, "", clock(), answer)


class Peers:
    """Keeps what each gateway in fleet.peers last said. Event loop only.

    Args:
        clock: gives Unix seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._states = {peer.name: unasked(peer) for peer in settings.fleet.peers}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def states(self) -> Sequence[PeerState]:
        """In the order of the configuration."""
        return tuple(self._states.values())

    def start(self) -> None:
        """Start to ask, one task for each gateway."""
        self._tasks = [
            asyncio.create_task(self._run(peer), name=f"peer {peer.name}")
            for peer in self._settings.fleet.peers
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def look(self, peer: Peer) -> None:
        """Ask one gateway now, and note its answer or why there is none."""
        former = self._states[peer.name]
        state = await ask_now(peer, self._settings, former, self._clock)
        if state.up is False and former.up is not False:
            logger.warning("The gateway %s in fleet.peers doesn't answer: %s", peer.name, state.reason)
        elif state.up and former.up is False:
            logger.info("The gateway %s in fleet.peers answers again.", peer.name)
        self._states[peer.name] = state

    async def _run(self, peer: Peer) -> None:
        await asyncio.sleep(random.uniform(0, LATEST_START))  # noqa: S311
        while True:
            try:
                await self.look(peer)
            except Exception:  # the next question may work
                logger.exception("Can't ask the gateway %s.", peer.name)
            await asyncio.sleep(INTERVAL * random.uniform(0.8, 1.2))  # noqa: S311
