"""What one process has learnt, another one knows before it decides: every part that keeps notes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.index import LOOK_EVERY
from clamproxy.cache.store import Store
from clamproxy.config.settings import ReleasesSection
from clamproxy.feeds.feed_cooldowns import FeedCooldowns
from clamproxy.negative_cache import NegativeCache
from clamproxy.notes import Notes, site_key
from clamproxy.objects import ObjectId
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import PER_FILE, Budget
from clamproxy.origin.cooldown import PROXY, TRIAL, Cooldowns, FailureKind
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.releases.builder import CldBuilder
from clamproxy.releases.ceilings import Ceilings
from clamproxy.releases.first_seen import SeenVersions
from clamproxy.releases.stuck import ENOUGH_FAILURES, LEAST_TIME, StuckPatches
from tests.support.clock import Clock
from tests.support.dns_server import PRIMARY
from tests.support.fixtures import MakeCvd
from tests.support.stored import AGENT, cdiff, put_cvd

PATH = "/daily-7.cdiff"
VERSION = "ClamAV/1.4.6"


@dataclass(frozen=True, slots=True)
class Process:
    """The parts of one process."""

    store: Store
    clock: Clock
    state: Path

    def notes(self, topic: str) -> Notes:
        return Notes(self.store.noted, None, topic, shared=self.store.noted)

    def cooldowns(self) -> Cooldowns:
        return Cooldowns(self.notes("cooldown"), self.clock)

    def feed_cooldowns(self) -> FeedCooldowns:
        return FeedCooldowns(self.notes("feed/cooldown"), self.clock)

    def budget(self) -> Budget:
        return Budget(self.notes("budget"), self.clock)

    def agents(self) -> Agents:
        return Agents(None, self.notes("agent"), self.clock)

    def stuck(self) -> StuckPatches:
        return StuckPatches(self.store, self.notes("stuck"), self.clock)

    def missing(self) -> NegativeCache[ObjectId]:
        name: Callable[[ObjectId], str] = lambda one: one.file_name  # noqa: E731
        return NegativeCache(self.clock, self.notes("missing"), name, self.clock)

    def builder(self) -> CldBuilder:
        nothing: Any = None
        return CldBuilder(self.store, nothing, nothing, self.notes("cld"), clock=self.clock)

    def versions(self) -> AdvertisedVersions:
        return AdvertisedVersions(
            PRIMARY, None, 300.0, self.notes("advertised"), self.notes("record"), clock=self.clock
        )

    def ceilings(self) -> Ceilings:
        settings = ReleasesSection.model_validate({"delay": {"daily": "4h"}})
        notes = Notes(self.store.records, None, "first-seen")
        seen = SeenVersions(notes, self.clock, self.notes("first-seen"))
        return Ceilings(settings, self.store, self.state, seen, self.clock)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    clock, state = Clock(), tmp_path / "state"
    state.mkdir()
    stores = Store(tmp_path / "cache"), Store(tmp_path / "cache")
    yield Process(stores[0], clock, state), Process(stores[1], clock, state)
    for store in stores:
        store.close()


def seen() -> None:
    """Let what another process has written be seen."""
    time.sleep(2 * LOOK_EVERY)


def test_cooldowns(processes: tuple[Process, Process]) -> None:
    first, second = (process.cooldowns() for process in processes)
    first.failed(FailureKind.RATE_LIMITED, PATH, VERSION, "why")
    seen()
    assert second.check(PATH, VERSION) == first.check(PATH, VERSION) is not None
    second.succeeded(PATH, VERSION)
    seen()
    assert first.in_force() == {}


def test_failures_are_counted_together(processes: tuple[Process, Process]) -> None:
    both = [process.cooldowns() for process in processes]
    for cooldowns, failures in zip(both * 2, (1, 2, 3, 4), strict=True):
        cooldown = cooldowns.failed(FailureKind.SERVER_ERROR, PATH, VERSION, "why")
        assert cooldown.failures == failures
        processes[0].clock.now = cooldown.until


def test_what_fails_at_two_gateways_at_once_holds_back_for_the_longer_time(
    processes: tuple[Process, Process],
) -> None:
    """Each may have noted its own failure before it heard of the other's."""
    first, _ = processes
    long = first.cooldowns().failed(FailureKind.RATE_LIMITED, PATH, VERSION, "why", 14400.0)
    first.clock.now += 1
    short = replace(
        long, until=first.clock.now + 1, failure=FailureKind.SERVER_ERROR, noted_at=first.clock.now
    )
    first.store.noted.set_note(site_key("other", "cooldown", PATH), asdict(short))
    assert first.cooldowns().check(PATH, VERSION) == long


def test_one_process_alone_tries_a_parent_proxy_again(processes: tuple[Process, Process]) -> None:
    """Each try with a wrong password counts at the proxy."""
    clock = processes[0].clock
    both = [process.cooldowns() for process in processes]
    both[0].failed(FailureKind.PROXY_AUTHENTICATION, PATH, VERSION, "407")
    seen()
    for _ in range(2):
        clock.now += 4 * 3600
        assert [one.check(PATH, VERSION) for one in both] == [None, None]
        assert [one.admit(PATH, VERSION) is None for one in (*both, *both)].count(True) == 1
        seen()
        assert all(one.check(PATH, VERSION) for one in both)
        clock.now += TRIAL  # what became of that request is not known
    assert both[1].admit(PATH, VERSION) is None
    both[1].failed(FailureKind.PROXY_AUTHENTICATION, PATH, VERSION, "407")
    seen()
    assert both[0].in_force()[PROXY].failures == 2
    clock.now += 4 * 3600
    assert both[0].admit(PATH, VERSION) is None
    both[0].succeeded(PATH, VERSION)
    seen()
    assert [one.admit(PATH, VERSION) for one in both] == [None, None]


def test_feed_cooldowns(processes: tuple[Process, Process]) -> None:
    first, second = (process.feed_cooldowns() for process in processes)
    first.failed("feed.example", "key", FailureKind.FORBIDDEN, "why", None)
    seen()
    assert second.check("feed.example", "key") is not None
    second.succeeded("feed.example", "key", processes[1].clock.now)
    seen()
    assert first.check("feed.example", "key") is None


def test_budget(processes: tuple[Process, Process]) -> None:
    both = [process.budget() for process in processes]
    for count in range(PER_FILE):
        both[count % 2].note(PATH)
        processes[0].clock.now += 10
    seen()
    assert [one.used(PATH) for one in both] == [PER_FILE] * 2
    assert not any(one.allows(PATH, 0.0) for one in both)


def test_the_budget_is_that_of_the_site(processes: tuple[Process, Process]) -> None:
    first, second = processes
    budgets = first.budget(), second.budget()
    now = first.clock.now
    first.store.noted.set_note(site_key("other", "budget", PATH), [now - 20, now - 10])
    seen()
    budgets[0].note(PATH)
    seen()
    assert [one.used(PATH) for one in budgets] == [3, 3]
    assert second.store.note(f"budget/{PATH}") == [now], "what came from others is not this gateway's own"
    first.store.noted.set_note(site_key("other", "budget", PATH), None)
    seen()
    assert [one.used(PATH) for one in budgets] == [1, 1]


def test_agents(processes: tuple[Process, Process]) -> None:
    first, second = (process.agents() for process in processes)
    first.see(AGENT)
    seen()
    requester = second.requester()
    assert requester is not None
    assert requester.user_agent == AGENT


def test_stuck_patches(processes: tuple[Process, Process]) -> None:
    both = [process.stuck() for process in processes]
    for count in range(ENOUGH_FAILURES):
        both[count % 2].note(cdiff(7))
        seen()
    processes[0].clock.now += LEAST_TIME
    assert [one.is_stuck(cdiff(7)) for one in both] == [True, True]


def test_missing_objects(processes: tuple[Process, Process]) -> None:
    first, second = (process.missing() for process in processes)
    first.add(cdiff(7), 60)
    seen()
    assert cdiff(7) in second
    assert cdiff(7) in processes[1].missing()
    second.discard(cdiff(7))
    seen()
    assert cdiff(7) not in first
    first.add(cdiff(8), 60)
    seen()
    assert cdiff(8) in second
    processes[0].clock.now += 60
    assert cdiff(8) not in second
    second.add(cdiff(9), 60)
    assert set(processes[0].store.notes("missing/")) == {cdiff(9).file_name}, "they don't pile up"


def test_demand(processes: tuple[Process, Process]) -> None:
    first, second = (process.builder() for process in processes)
    first.note_demand("daily")
    seen()
    assert second.is_in_demand("daily")


def test_advertised_versions(processes: tuple[Process, Process]) -> None:
    first, second = processes
    versions = second.versions()
    text = f"1.4.3:62:27800:{int(first.clock.now)}:1:90:49192:339"
    first.notes("advertised").save("daily", [27800, first.clock.now])
    first.notes("record").save(PRIMARY, text)
    seen()
    known = versions.last_known("daily")
    assert known is not None
    assert (known.version, known.fresh) == (27800, True)
    assert versions.last_record == text
    # Of the site, the highest fresh one counts.
    now = first.clock.now
    for gateway, noted in (
        ("lagging", [27799, now]),
        ("ahead", [27801, now - 100]),
        ("old", [27900, now - 900]),
    ):
        first.store.noted.set_note(site_key(gateway, "advertised", "daily"), noted)
    seen()
    known = versions.last_known("daily")
    assert known is not None
    assert known.version == 27801


def test_a_delay_ends_for_all_at_the_same_time(processes: tuple[Process, Process], make_cvd: MakeCvd) -> None:
    first, second = processes
    for version in (3, 4):
        put_cvd(first.store, version, make_cvd(version))
    both = first.ceilings(), second.ceilings()
    both[0].seen.learn("daily", 3)
    seen()
    both[1].seen.learn("daily", 3)
    first.clock.now += 3600
    both[0].seen.learn("daily", 4)
    seen()
    first.clock.now += 5
    both[1].seen.learn("daily", 4)
    assert [one.of("daily") for one in both] == [3, 3]
    first.clock.now += 4 * 3600 - 6
    assert [one.of("daily") for one in both] == [3, 3]
    first.clock.now += 1
    assert [one.of("daily") for one in both] == [4, 4]
