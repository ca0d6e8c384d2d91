"""The origin's side: what is known of the origin, and the way to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import FIRST_PAUSE, Budget
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.header_probes import HeaderProbes
from clamproxy.origin.resolver import make_resolver
from clamproxy.origin.upstream import Upstream
from clamproxy.origin.versions import AdvertisedVersions

type Save = Callable[[str, Any], None]
"""Is given a key and a JSON value (None: gone) to keep over a restart."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The parts that those share who serve and those who fetch ahead. Event loop only."""

    upstream: Upstream
    versions: AdvertisedVersions
    heads: HeaderProbes
    cooldowns: Cooldowns
    agents: Agents
    budget: Budget

    @classmethod
    def open(
        cls, settings: Settings, via: str, saver: Callable[[str], Save], count: Callable[[int, int], None]
    ) -> Origin:
        """Prepare all of it; nothing is asked yet.

        Args:
            settings: the configuration.
            via: this gateway in the Via of its requests.
            saver: gives the function that keeps what is below a prefix.
            count: told of requests, and of bytes of content that have come.
        """
        upstream, versions = settings.upstream, settings.versions
        cooldowns = Cooldowns(saver("cooldown/"))
        budget = Budget(saver("budget/"), first_pause=min(FIRST_PAUSE, versions.refresh))
        way = Upstream(
            upstream.url,
            proxy=upstream.proxy,
            ca_bundle=upstream.ca_bundle,
            connect_timeout=upstream.connect_timeout,
            read_timeout=upstream.read_timeout,
            via=via,
            count=count,
            note=budget.note,
            offline=upstream.offline,
        )
        return cls(
            upstream=way,
            versions=AdvertisedVersions(
                versions.domain,
                make_resolver(settings),
                versions.refresh,
                saver("advertised/"),
                saver("record/"),
            ),
            heads=HeaderProbes(way, cooldowns, saver("head/")),
            cooldowns=cooldowns,
            agents=Agents(upstream.user_agent, saver("agent/")),
            budget=budget,
        )

    def restore(self, store: Store, *, offline: bool) -> None:
        """Take over what an earlier process knew.

        Args:
            store: where it noted that.
            offline: whether nobody is asked, so that nothing has to be held back.
        """
        if not offline:
            self.cooldowns.restore(store.notes("cooldown/"))
            self.cooldowns.forgive_proxy()  # who starts anew may have corrected the password
        self.budget.restore(store.notes("budget/"))
        self.agents.restore(store.notes("agent/"))
        self.versions.restore(store.notes("advertised/"), store.notes("record/"))
        self.heads.restore(store.notes("head/"))

    def stop(self) -> None:
        """Cancel what is under way, and close the connections."""
        self.heads.stop()
        self.versions.stop()
        self.upstream.close()
