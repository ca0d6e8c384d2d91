"""The origin's side: what is known about the origin, and how to reach it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from clamproxy.clock import Clock
from clamproxy.config.settings import Settings, UpstreamSection
from clamproxy.notes import UNKEPT, Notes
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import FIRST_PAUSE, Budget
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.origin.header_probes import HeaderProbes
from clamproxy.origin.link import Link
from clamproxy.origin.probe_turns import ProbeTurns
from clamproxy.origin.proxy_auth import admission_to
from clamproxy.origin.resolver import make_resolver
from clamproxy.origin.upstream import Upstream
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.sharing.site import Site


@dataclass(frozen=True, slots=True)
class Origin:
    """The parts shared by serving and by fetching ahead. Event loop only."""

    upstream: Upstream
    versions: AdvertisedVersions
    heads: HeaderProbes
    cooldowns: Cooldowns
    agents: Agents
    budget: Budget
    clock: Clock = time
    """By which all of them tell the time."""

    @classmethod
    def open(
        cls,
        settings: Settings,
        site: Site,
        via: str,
        notes: Callable[[str], Notes],
        count: Callable[[int, int], None],
        clock: Clock,
        link: Link,
        learnt: Callable[[str, int], object],
        sighted: Callable[[str, int], object],
        *,
        forgives_proxy: bool,
    ) -> Origin:
        """Make all parts; nothing is asked yet.

        Args:
            site: gives the leases under which one process looks up a name or probes for a header.
            via: how this gateway names itself in the Via field of its requests.
            notes: gives the notes on a topic.
            count: is told the number of requests and of body bytes, from any thread.
            link: what files are read over.
            learnt: is told a database and its version whenever DNS gives one; without DNS, whenever the
                origin's header does.
            sighted: with DNS, is told a database and its version whenever the origin's header gives one.
            forgives_proxy: whether the password for the parent proxy may have been corrected.
        """
        upstream, versions = settings.upstream, settings.versions
        # While nobody is asked, nothing has to be held back.
        cooldowns = Cooldowns(UNKEPT if upstream.offline else notes("cooldown"), clock.time)
        if forgives_proxy:
            cooldowns.forgive_proxy()
        if upstream.parent_proxy is not None:
            admission_to(upstream.parent_proxy).forgive()
        budget = Budget(notes("budget"), clock.time, first_pause=min(FIRST_PAUSE, versions.refresh))
        way = _upstream(upstream, via, count, budget, link)
        return cls(
            upstream=way,
            versions=AdvertisedVersions(
                versions.domain,
                make_resolver(settings),
                versions.refresh,
                notes("advertised"),
                notes("record"),
                learnt,
                clock,
                notes("unanswered"),
                site.leases,
            ),
            heads=HeaderProbes(
                way,
                cooldowns,
                notes("head"),
                sighted if settings.asks_dns else learnt,
                clock,
                ProbeTurns(site.leases, site.bucket),
                notes("headless"),
            ),
            cooldowns=cooldowns,
            agents=Agents(upstream.user_agent, notes("agent"), clock.time),
            budget=budget,
            clock=clock,
        )

    def stop(self) -> None:
        """Cancel what is under way, and close the connections."""
        self.heads.stop()
        self.versions.stop()
        self.upstream.close()


def _upstream(
    settings: UpstreamSection, via: str, count: Callable[[int, int], None], budget: Budget, link: Link
) -> Upstream:
    return Upstream(
        settings.url,
        proxy=settings.parent_proxy,
        ca_bundle=settings.ca_bundle,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        via=via,
        count=count,
        note=budget.note,
        offline=settings.offline,
        link=link,
        addresses=settings.address,
    )
