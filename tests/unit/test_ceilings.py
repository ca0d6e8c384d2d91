"""Which versions each client is shown, as holds come and go and delays end."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.settings import ReleasesSection
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.notes import Notes, site_key
from clamproxy.releases import holds
from clamproxy.releases.ceiling import Cause, Ceiling
from clamproxy.releases.ceilings import LOOK_EVERY, Ceilings
from clamproxy.releases.first_seen import TOPIC, SeenVersions
from clamproxy.releases.holds import FILE_NAME, Hold, Holds, HoldsError
from clamproxy.releases.limits_in_force import Limit, ceilings_of, read_limits
from clamproxy.storage.records import FILE_NAME as COUNTERS
from tests.support.clock import Clock
from tests.support.fixtures import MakeCvd
from tests.support.stored import put_cvd, until

CANARY = "10.0.0.7"
HOUR = 3600.0
DELAY = {"delay": {"daily": "4h"}}


class Around:
    """A store with CVD 3 of daily, and the settings of a delay."""

    def __init__(self, store: Store) -> None:
        self.store, self.directory, self.clock = store, store.records.directory, Clock()

    def make(self, **releases: Any) -> Ceilings:
        return self.make_after(None, **releases)

    @staticmethod
    def settings(**releases: Any) -> ReleasesSection:
        return ReleasesSection.model_validate(releases)

    def make_after(self, known: Holds | None, **releases: Any) -> Ceilings:
        """The same after a reload, with what was held before."""
        settings = self.settings(**releases)
        notes = Notes(self.store.records, None, TOPIC)
        workers = Notes(self.store, None, TOPIC, shared=self.store.noted)
        leases = DirectoryLeases(self.directory)
        seen = SeenVersions(notes, self.clock, workers)
        return Ceilings(settings, self.store, self.directory, seen, self.clock, known, leases)

    def limits(self, **releases: Any) -> list[Limit]:
        """The same as commands and pages see it."""
        return read_limits(self.store, self.settings(**releases), self.clock.now)


@pytest.fixture
def around(store: Store, make_cvd: MakeCvd) -> Around:
    put_cvd(store, 3, make_cvd(3))
    return Around(store)


@asynccontextmanager
async def running(ceilings: Ceilings) -> AsyncIterator[None]:
    ceilings.start()
    yield
    ceilings.stop()


async def test_every_process_notices_a_hold_and_its_end(
    around: Around, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second = around.make(), around.make()
    assert first.of("daily") is None
    async with running(first), running(second):
        holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice", "false positives"))
        await until(lambda: first.of("daily") == second.of("daily") == 5)
        assert first.of("daily", CANARY) == 5
        assert first.of("main") is None
        await until(lambda: "daily is held at version 5, by alice: false positives." in caplog.messages)
        holds.release(around.directory, "daily", "bob", around.clock.now)
        await until(lambda: first.of("daily") is second.of("daily") is None)
        await until(lambda: "daily is no longer held, by bob." in caplog.messages)
        await asyncio.sleep(2 * LOOK_EVERY)
    assert len(caplog.messages) == 2, "one process tells"


def damage(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize("loss", [Path.unlink, damage])
async def test_a_hold_outlives_its_file(
    around: Around, caplog: pytest.LogCaptureFixture, loss: Callable[[Path], object]
) -> None:
    """It is an emergency brake: a failing disk doesn't release it."""
    holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))
    ceilings = around.make()
    async with running(ceilings):
        loss(around.directory / FILE_NAME)
        await until(lambda: any("stays held" in message for message in caplog.messages))
        assert ceilings.of("daily") == 5
        # Commands must know of it, too.
        await until((around.directory / FILE_NAME).exists)
        assert holds.read_holds(around.directory) == ceilings.holds
        holds.hold(around.directory, "daily", Hold(4, around.clock.now, "alice"))
        await until(lambda: ceilings.of("daily") == 4)


async def test_a_hold_that_is_lost_at_once(around: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the task has looked at its file, or while it does so."""
    ceilings, path = around.make(), around.directory / FILE_NAME
    holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))
    assert ceilings.of("daily") == 5
    path.unlink()
    await ceilings.look()
    assert (ceilings.of("daily"), path.exists()) == (5, True)

    async def in_thread_too_late[T](_name: str, function: Callable[[], T]) -> T:
        path.unlink()
        return function()

    holds.hold(around.directory, "daily", Hold(4, around.clock.now, "alice"))
    monkeypatch.setattr("clamproxy.releases.ceilings.in_thread", in_thread_too_late)
    await ceilings.look()
    assert (ceilings.of("daily"), path.exists()) == (5, True)


async def test_a_hold_that_comes_while_an_earlier_one_is_read(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceilings = around.make()

    async def in_thread_too_slowly[T](_name: str, function: Callable[[], T]) -> T:
        read = function()
        holds.hold(around.directory, "daily", Hold(4, around.clock.now, "alice"))
        await until(lambda: ceilings.of("daily") == 4)
        return read

    holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))
    monkeypatch.setattr("clamproxy.releases.ceilings.in_thread", in_thread_too_slowly)
    await ceilings.look()
    assert ceilings.explain("daily") == Ceiling(4, Cause.HOLD), "as it is without another look"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_two_looks_at_the_same_time(
    around: Around, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    """What the later one finds counts, whichever ends first."""
    ceilings, reads, may_end = around.make(), list[object](), (asyncio.Event(), asyncio.Event())

    async def in_thread_in_order[T](_name: str, function: Callable[[], T]) -> T:
        reads.append(read := function())
        await may_end[len(reads) - 1].wait()
        return read

    monkeypatch.setattr("clamproxy.releases.ceilings.in_thread", in_thread_in_order)
    looks = []
    for number, database in enumerate(("daily", "main")):
        holds.hold(around.directory, database, Hold(5, around.clock.now, "alice"))
        looks.append(asyncio.create_task(ceilings.look()))
        await until(lambda: len(reads) > number)  # noqa: B023
    for number in order:
        may_end[number].set()
        await looks[number]
    assert set(ceilings.holds.in_force) == {"daily", "main"}


@pytest.mark.parametrize("loss", [Path.unlink, damage])
async def test_a_reload_hands_the_holds_on(around: Around, loss: Callable[[Path], object]) -> None:
    holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))
    former = around.make()
    loss(around.directory / FILE_NAME)
    assert around.make_after(former.holds).of("daily") == 5
    assert around.make().of("daily") == 5


async def test_a_file_that_cannot_be_written_anew_yet(
    around: Around, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))
    ceilings = around.make()

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(ceilings):
        with monkeypatch.context() as full:
            full.setattr(holds, "replacing", fails)
            damage(around.directory / FILE_NAME)
            await until(lambda: any("can't be written: " in message for message in caplog.messages))
            await asyncio.sleep(2 * LOOK_EVERY)
            assert ceilings.of("daily") == 5
        await until(lambda: any("was written anew" in message for message in caplog.messages))
    assert sum("can't be written: " in message for message in caplog.messages) == 1
    assert around.make().of("daily") == 5


async def test_a_start_without_knowing_what_is_held(around: Around) -> None:
    damage(around.directory / FILE_NAME)
    with pytest.raises(HoldsError, match="is damaged; `clamproxy hold DATABASE VERSION` writes"):
        around.make()
    holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))
    assert around.make().of("daily") == 5


async def test_after_a_reload_only_the_successor_tells(
    around: Around, caplog: pytest.LogCaptureFixture
) -> None:
    """What began under the earlier configuration sees a new hold all the same."""
    former, successor = around.make(), around.make()
    async with running(former), running(successor):
        former.retire()
        holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))
        await until(lambda: former.of("daily") == successor.of("daily") == 5)
        await until(lambda: caplog.messages)
    assert caplog.messages == ["daily is held at version 5, by alice."]


async def test_a_forgotten_hold_is_told_once_a_day(around: Around, caplog: pytest.LogCaptureFixture) -> None:
    holds.hold(around.directory, "daily", Hold(5, around.clock.now, "alice"))

    def told() -> int:
        return sum("has been held at version 5 for" in message for message in caplog.messages)

    async with running(around.make(longest_hold="2d")):
        await asyncio.sleep(0)
        assert told() == 0
        around.clock.now += 2 * 86400
        await until(lambda: told() == 1)
        around.clock.now += 86399
        holds.hold(around.directory, "main", Hold(1, around.clock.now, "alice"))
        await until(lambda: any("main is held" in message for message in caplog.messages))
        assert told() == 1
        around.clock.now += 1
        await until(lambda: told() == 2)


async def test_a_delay(around: Around, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    delay = {"delay": {"daily": "4h"}, "canaries": ["10.0.0.0/28"]}
    ceilings = around.make(**delay)
    ceilings.seen.learn("daily", 3)
    assert ceilings.of("daily") == 3
    around.clock.now += HOUR
    async with running(ceilings):
        ceilings.seen.learn("daily", 4)
        assert (ceilings.of("daily"), ceilings.of("daily", CANARY), ceilings.of("main")) == (3, None, None)
        assert ceilings.in_force() == {"daily": 3}
        message = "daily version 4 is held back for 4 h (releases.delay): machines get 3."
        await until(lambda: message in caplog.messages)
        (limit,) = around.limits(**delay)
        assert (limit.version, limit.until, limit.hold) == (3, around.clock.now + 4 * HOUR, None)
        around.clock.now += 4 * HOUR - 1
        assert ceilings.of("daily") == 3
        # A restart knows what was seen when.
        assert around.make(**delay).of("daily") == 3
        around.clock.now += 1
        assert ceilings.of("daily") == around.make(**delay).of("daily") == 4
        await until(lambda: any("Machines get daily version 4 from now on" in one for one in caplog.messages))
    assert around.limits(**delay) == []


def seen_in_turn(around: Around) -> Ceilings:
    """A gateway that has known version 3, and sees version 4 now."""
    ceilings = around.make(**DELAY)
    ceilings.seen.learn("daily", 3)
    ceilings.seen.learn("daily", 4)
    return ceilings


def lose_the_cache_s(store: Store) -> None:
    store.set_note(f"{TOPIC}/daily", None)


def lose_the_records(store: Store) -> None:
    (store.records.directory / COUNTERS).unlink()


@pytest.mark.parametrize("lose", [lose_the_cache_s, lose_the_records])
async def test_a_delay_outlives_the_loss_of_one_of_its_notes(
    around: Around, lose: Callable[[Store], None]
) -> None:
    seen_in_turn(around)
    for _ in range(2):  # a start notes anew what was lost
        lose(around.store)
        assert ceilings_of(around.store, around.settings(**DELAY), around.clock.now) == {"daily": 3}
        around.clock.now += HOUR
        ceilings = around.make(**DELAY)
        ceilings.seen.learn("daily", 4)
        assert ceilings.of("daily") == 3
        lose = lose_the_records if lose is lose_the_cache_s else lose_the_cache_s
    around.clock.now += 2 * HOUR
    assert ceilings.of("daily") == around.make(**DELAY).of("daily") == 4


async def test_commands_delay_what_the_records_could_not_be_told(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup may have locked them just when a version came out, of which nobody tells a second time."""
    monkeypatch.setattr("clamproxy.storage.records_file._PATIENCE", 0.05)
    store, settings = around.store, around.settings(**DELAY)
    around.make(**DELAY).seen.learn("daily", 3)
    with closing(sqlite3.connect(around.directory / COUNTERS, isolation_level=None)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        seen_in_turn(around)
        assert ceilings_of(store, settings, around.clock.now) == {"daily": 3}
    store.add_to_counters({"requests": 1})
    lose_the_cache_s(store)
    assert ceilings_of(store, settings, around.clock.now) == {"daily": 3}


async def test_a_first_start_with_a_delay_hides_nothing(around: Around) -> None:
    ceilings = around.make(delay={"daily": "4h", "main": "4h"})
    assert ceilings.of("daily") is None
    ceilings.seen.learn("main", 62)
    around.clock.now += HOUR
    ceilings.seen.learn("main", 63)
    assert ceilings.of("main") is None, "nothing of it is cached"


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_clock_that_was_ahead(around: Around, restarts: bool) -> None:
    """What was seen in a far future counts as released, and stays so: it was shown before the correction."""
    delay = {"delay": {"daily": "4h"}}
    ceilings = around.make(**delay)
    ceilings.seen.learn("daily", 3)
    around.clock.now += 365 * 86400
    ceilings.seen.learn("daily", 4)
    around.clock.now -= 365 * 86400
    (limits, ceilings) = (around.limits(**delay), around.make(**delay) if restarts else ceilings)
    async with running(ceilings):
        await until(lambda: ceilings.of("daily") == 4)
    assert limits == []
    ceilings.seen.learn("daily", 5)
    assert ceilings.of("daily") == 4
    around.clock.now += 4 * HOUR
    assert ceilings.of("daily") == 5


async def test_a_clock_that_is_set_back_a_little_releases_nothing(around: Around) -> None:
    delay = {"delay": {"daily": "4h"}}
    ceilings = around.make(**delay)
    ceilings.seen.learn("daily", 3)
    ceilings.seen.learn("daily", 4)
    around.clock.now -= 5
    assert ceilings.of("daily") == around.make(**delay).of("daily") == 3


async def test_name_servers_that_are_stuck_hide_nothing_for_longer(around: Around) -> None:
    ceilings = around.make(delay={"daily": "4h"})
    ceilings.seen.learn("daily", 3)
    for _ in range(5):
        ceilings.seen.sight("daily", 10)
        ceilings.seen.learn("daily", 3, 10)
        around.clock.now += HOUR
    assert ceilings.of("daily") == 10
    # Nor does a server of the origin that lags.
    ceilings.seen.learn("daily", 20, 10)
    for _ in range(5):
        ceilings.seen.sight("daily", 10)
        ceilings.seen.learn("daily", 20, 10)
        around.clock.now += HOUR
    assert ceilings.of("daily") == 20


async def test_a_delay_ends_for_all_gateways_of_a_site_at_the_same_time(around: Around) -> None:
    """Another gateway has seen version 4 an hour before this one, which is new."""
    others = Notes(None, None, TOPIC, shared=around.store.noted)
    now = around.clock.now
    around.store.set_note(site_key("0" * 16, TOPIC, "daily"), {"3": 0.0, "4": now - HOUR})
    settings = ReleasesSection.model_validate({"delay": {"daily": "4h"}})
    notes = Notes(around.store.records, None, TOPIC)
    seen = SeenVersions(notes, around.clock, others=others)
    ceilings = Ceilings(settings, around.store, around.directory, seen, around.clock)
    ceilings.seen.learn("daily", 4)
    assert ceilings.of("daily") == 3
    [limit] = around.limits(delay={"daily": "4h"})
    assert (limit.version, limit.until) == (3, now + 3 * HOUR)
    around.store.set_note(site_key("1" * 16, TOPIC, "daily"), {"3": 0.0, "4": now - 2 * HOUR})
    await ceilings.look()
    around.clock.now += 2 * HOUR
    assert ceilings.of("daily") == 4
    # It goes on even if the others are gone.
    for gateway in ("0" * 16, "1" * 16):
        around.store.set_note(site_key(gateway, TOPIC, "daily"), None)
    await ceilings.look()
    assert ceilings.of("daily") == 4
