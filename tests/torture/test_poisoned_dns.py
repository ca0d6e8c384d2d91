"""Whatever DNS says: no version goes backwards, the origin isn't flooded, and new versions still arrive.

A day passes by a clock of the test, with a client and the gateway's own look every five minutes. In the
middle, there is a release that DNS says nothing true about. docs/behaviour.md gives the figures.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.transfers import ORIGIN_TROUBLE
from tests.harness.service import RELEASES, ServiceHarness
from tests.support.clock import ClockAhead
from tests.support.origin import OriginServer
from tests.support.poisoned_dns import POISONS, Poison, PoisonedDns
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

HELD, RELEASED, LATER = 3, 4, 5
STEP = 301
"""Seconds: just after an answer from DNS is no longer fresh."""
HOUR = 3600
LONGEST = 26 * HOUR
"""Seconds after which a release must be there although DNS hides it: the header is looked at once a day."""
MOST_PER_FILE = 10
"""Requests per hour for one file: more than that, and the CDN answers with 429."""
MOST_PER_HOUR = 40
"""Requests per hour for all files together."""
RECOVERY = 1800
"""Seconds after which everything must be right again once DNS is."""


@dataclass
class Watch:
    """A gateway and a client over a day."""

    harness: ServiceHarness
    dns: PoisonedDns
    asked: list[tuple[float, str]] = field(default_factory=list)
    shown: int = 0

    async def step(self) -> int:
        """Five minutes; returns the version that a client is shown."""
        harness = self.harness
        harness.clock.ahead += STEP
        with suppress(*ORIGIN_TROUBLE):
            await harness.service.clamav._follower.follow("daily")
        await harness.settle()
        await harness.ask(f"/daily-{max(2, self.shown)}.cdiff")
        shown = await harness.shown()
        assert shown >= self.shown, "versions never go backwards"
        assert shown <= LATER
        self.shown = shown
        now = harness.clock.time()
        self.asked += [(now, seen.path) for seen in harness.origin.requests()]
        harness.origin.forget()
        return shown

    async def until(self, version: int, longest: float) -> float:
        """Seconds until clients are shown a version."""
        for passed in range(STEP, int(longest) + STEP, STEP):
            if await self.step() >= version:
                return passed
        raise AssertionError(f"version {version} is not shown after {longest / HOUR} hours")

    def most_within_an_hour(self, path: str | None = None) -> int:
        times = [at for at, asked in self.asked if path in (None, asked)]
        return max((sum(at <= one < at + HOUR for one in times) for at in times), default=0)


@asynccontextmanager
async def open_watch(directory: Path) -> AsyncIterator[Watch]:
    clock = ClockAhead()
    with OriginServer() as origin, PoisonedDns() as dns:
        dns.clock = clock
        harness = ServiceHarness(directory, origin, dns, clock)
        await harness.hold(1, HELD)
        watch = Watch(harness, dns)
        await watch.step()
        assert watch.shown == HELD
        yield watch
        await harness.settle()
        harness.service.stop()


async def live_with(poison: Poison, directory: Path) -> dict[str, float]:
    """A day with a poison, and then without."""
    async with open_watch(directory) as watch:
        watch.dns.poison, watch.dns.asked = poison, 0
        for _ in range(rounds(usual=8, full=144)):
            await watch.step()
        RELEASES.publish(watch.harness.origin, RELEASED)
        found_after = await watch.until(RELEASED, LONGEST)
        for path in {path for _, path in watch.asked}:
            assert watch.most_within_an_hour(path) <= MOST_PER_FILE, (poison.name, path)
        most = watch.most_within_an_hour()
        assert most <= MOST_PER_HOUR, poison.name
        # A patch that machines need is there, whatever DNS says.
        store = watch.harness.service.store
        store.drop(ObjectId("daily", HELD, Kind.CDIFF))
        response, content = await watch.harness.ask(f"/daily-{HELD}.cdiff")
        assert (response.status, content) == (200, RELEASES.cdiff(HELD))
        assert watch.dns.asked, "nothing asks this server"
        watch.dns.poison = None
        RELEASES.publish(watch.harness.origin, LATER)
        watch.dns.versions["daily"] = LATER
        right_after = await watch.until(LATER, RECOVERY)
    return {"most": most, "found_after": found_after, "right_after": right_after}


def some() -> list[Poison]:
    """All of them at full length; a few, other ones in each run, in `make test`."""
    return random.Random(SEED).sample(POISONS, rounds(usual=4, full=len(POISONS)))


@pytest.mark.parametrize("poison", some(), ids=lambda poison: poison.name)
async def test_poisoned_dns(poison: Poison, tmp_path: Path, figures: Figures) -> None:
    seen = await live_with(poison, tmp_path / "cache")
    figures(
        f"poisoned DNS, {poison.name}",
        requests_per_hour_at_most=seen["most"],
        hours_until_a_release_was_found=round(seen["found_after"] / HOUR, 1),
        minutes_until_all_was_right=round(seen["right_after"] / 60),
    )
