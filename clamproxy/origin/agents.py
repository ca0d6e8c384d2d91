"""Agents: the freshclams that came by, on whose behalf the gateway asks for what no client asked for yet.

The CDN admits freshclam by its User-Agent and refuses versions that ClamAV no longer supports
(docs/protocol.md 9.4). So the gateway's own requests carry the User-Agent of the newest version.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clamproxy.dates import as_past_time
from clamproxy.messages import PLAIN_FIELD, Requester
from clamproxy.notes import Merge, Notes, best

OLDEST_SUPPORTED = (1, 0)
"""By ClamAV's end-of-life policy: 0.103, the last long-term release before 1.0, ended in 2023."""
LONGEST_REMEMBERED = 90 * 86400.0
"""Seconds after which a version that no longer comes by is forgotten."""
MOST_VERSIONS = 16
_NOTED_EVERY = 6 * 3600.0

_VERSION = re.compile(r"ClamAV/(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?![\d.])", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Agent:
    user_agent: str
    seen_at: float


type _Release = tuple[int, int, int]


class Agents:
    """For each version of freshclam, the User-Agent of one client. Event loop only.

    Args:
        configured: the User-Agent to use while no other can be used, if any.
        notes: where the User-Agents are kept over a restart, by version.
        clock: gives Unix seconds.
    """

    def __init__(
        self,
        configured: str | None,
        notes: Notes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._configured = configured
        self._notes = notes
        self._clock = clock
        self._seen = dict(notes.load(self._parse, _seen_last).values())

    def see(self, user_agent: str | None) -> None:
        """Note the User-Agent of a client. Quick."""
        release = _release(user_agent.partition(" ")[0]) if user_agent else None
        if release is None or user_agent is None:
            return
        self._take_in()
        now, known = self._clock(), self._seen.get(release)
        if known is not None and 0 <= now - known.seen_at < _NOTED_EVERY:
            return
        if PLAIN_FIELD.fullmatch(user_agent) is None:
            return
        self._seen[release] = _Agent(user_agent, now)
        self._notes.save(_key(release), {"user_agent": user_agent, "seen_at": now})
        self._forget_old(now)

    def requester(self, is_admitted: Callable[[str], bool] = lambda _: True) -> Requester | None:
        """On whose behalf the gateway asks: the newest supported freshclam that the CDN admits.

        Args:
            is_admitted: whether a client version (see `Requester.version`) may ask at the moment.

        Returns:
            None if no freshclam was seen and none is configured, or if all are held back.
        """
        self._take_in()
        agents = [self._seen[release].user_agent for release in sorted(self._seen, reverse=True)]
        if self._configured is not None:
            agents.append(self._configured)
        requesters = map(Requester, agents)
        return next((one for one in requesters if is_admitted(one.version)), None)

    def _take_in(self) -> None:
        for news in self._notes.news(self._parse, _seen_last).values():
            if news is not None:
                release, agent = news
                self._seen[release] = agent

    def _parse(self, saved: Any) -> tuple[_Release, _Agent]:
        return _parse(saved, self._clock())

    def _forget_old(self, now: float) -> None:
        oldest_first = sorted(self._seen, key=lambda release: self._seen[release].seen_at)
        surplus = len(self._seen) - MOST_VERSIONS
        for position, release in enumerate(oldest_first):
            if position < surplus or now - self._seen[release].seen_at > LONGEST_REMEMBERED:
                del self._seen[release]
                self._notes.forget(_key(release))


def _supported_release(user_agent: str | None) -> _Release | None:
    """The version in a freshclam's User-Agent; None if it isn't freshclam's or isn't supported."""
    if not user_agent or not PLAIN_FIELD.fullmatch(user_agent):
        return None
    return _release(user_agent.partition(" ")[0])


@lru_cache(MOST_VERSIONS)
def _release(product: str) -> _Release | None:
    """The version in the first word of a User-Agent; whether the rest is sound is not checked."""
    match = _VERSION.match(product)
    release = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)
    return release if release >= OLDEST_SUPPORTED else None


def _parse(saved: Any, now: float) -> tuple[_Release, _Agent]:
    agent = _Agent(saved["user_agent"], as_past_time(saved["seen_at"], now))
    release = _supported_release(agent.user_agent)
    if release is None:
        raise ValueError("no User-Agent of a supported freshclam")
    return release, agent


_seen_last: Merge[tuple[_Release, _Agent]] = best(lambda noted: noted[1].seen_at)


def _key(release: _Release) -> str:
    return ".".join(map(str, release))
