"""kill -9 at 200 moments: nothing false is served or kept, fetched twice, or left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import Fault
from tests.support.processes import children
from tests.support.site import LOCALHOST, eventually
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds
from tests.torture.killed import Command, World, is_alive, open_world

FILLER = 900_000
"""Bytes in the CVD, of which three quarters are left after compression."""
RATE = 1_500_000
"""Bytes per second of the origin: a CVD takes half a second."""
WHOLE: dict[str, Any] = {"delta": {"enabled": False}, "cache": {"size_limit": "1MiB"}}
"""Each release costs a whole CVD, and the one before has to go."""
PATCHES: dict[str, Any] = {"delta": {"max_share": "100%", "renew_after": 1000}}
"""Each release costs its patch."""
FEED = "/feed.ndb"
STEPS_OF_A_HOLD = 12
"""Steps in which `clamproxy hold` and `release` change files, roughly."""

pytestmark = pytest.mark.timeout(rounds(300, 5400))

MOMENTS: list[Callable[[World], None]] = [
    World.at_random,
    World.after_bytes,
    World.at_a_step_of_the_cvd,
    World.at_a_step,
    World.when_published,
]


def test_cold_herds_and_evictions(tmp_path: Path, figures: Figures) -> None:
    """Clients ask for a new version, which takes the place of the old one in a full cache."""
    count, resumed = rounds(3, 70), 0
    with open_world(tmp_path, SEED, filler=FILLER, **WHOLE) as world:
        world.site.origin.rate = RATE
        for number in range(count):
            stalls = number == 0  # one kill meets a transfer for certain
            world.release(stalls=stalls)
            with world.clients(*["/daily.cvd"] * 4, f"/{world.cvd_name}.sign"):
                moment = World.in_the_middle if stalls else MOMENTS[(number + SEED) % len(MOMENTS)]
                moment(world)
                world.site.gateway.kill()
            world.site.origin.heal()
            resumed += check_the_next_start(world)
        end(world)
        assert resumed, "no kill has met a transfer"
        tell(figures, "cold herds and evictions", count, world, transfers_resumed=resumed)


def check_the_next_start(world: World) -> bool:
    """What was there is served without the origin, and only the rest is fetched.

    Returns:
        Whether a transfer was resumed.
    """
    world.assert_nothing_false()
    is_published, missing = world.holds_cvd(), len(world.cvd) - world.arrived()
    world.site.origin.forget()
    cut_off = world.random.random() < 0.5
    if cut_off:
        world.site.origin.refuse()
    world.site.gateway.start(at_same_ports=True)
    if cut_off and world.tally.floor:
        answer = world.ask("/daily.cvd")  # whether it is older than what clients have had is compared there
        assert (answer.status, answer.complete) == (200, True), world.told
    world.site.origin.accept()
    world.assert_newest_is_served()
    world.assert_tidy()
    assert world.fetched() == (0 if is_published else missing), world.told
    return not is_published and 0 < missing < len(world.cvd)


def test_releases_and_purges(tmp_path: Path, figures: Figures) -> None:
    """Patches, signatures and CLDs, while an administrator deletes patches; both are killed."""
    count = rounds(2, 50)
    with open_world(tmp_path, SEED + 1, filler=50_000, **PATCHES) as world:
        world.assert_served("/daily.cvd")
        for number in range(count):
            world.release()
            patch = f"/daily-{world.version}.cdiff"
            paths = patch, f"{patch}.sign", "/daily.cvd", "/daily.cld"
            with world.clients(*paths):
                purge = Command(world, "purge", "--yes", *(["--kind", "cdiff"] * (number % 2)))
                MOMENTS[(number + SEED) % len(MOMENTS)](world)
                world.site.gateway.kill()
                purge.kill()
            world.assert_nothing_false()
            world.site.gateway.start(at_same_ports=True)
            world.assert_served(*paths[:3])
            world.assert_tidy()
        end(world)
        tell(figures, "releases and purges", count, world)


def test_imports(tmp_path: Path, figures: Figures) -> None:
    """A bundle is brought in beside a gateway that serves; either is killed, or both."""
    count = rounds(2, 30)
    with open_world(tmp_path, SEED + 2, filler=FILLER, upstream={"offline": True}, **PATCHES) as world:
        for number in range(count):
            world.release()
            whole = number % 2 == 0
            bundle = world.bundle(whole=whole)
            with world.clients("/daily.cvd", "/daily.cld", f"/daily-{world.version}.cdiff"):
                step = world.random.choice([None, world.random.randrange(40)])
                importing = Command(world, "import", str(bundle), step=step)
                world.at_random()
                if number % 3:
                    world.site.gateway.kill()
                if number % 3 != 1:
                    importing.kill()
                importing.wait()
            if number % 3:
                world.assert_nothing_false()
                world.site.gateway.start(at_same_ports=True)
            assert Command(world, "import", str(bundle)).wait() == 0, world.told
            if whole:
                world.assert_newest_is_served()
            else:
                world.assert_served("/daily.cvd", f"/daily-{world.version}.cdiff")
            world.assert_tidy()
        end(world)
        tell(figures, "imports", count, world)


def test_holds(tmp_path: Path, figures: Figures) -> None:
    """Holds are set and lifted while versions are released; the gateway is killed, and the commands."""
    count = rounds(2, 30)
    with open_world(tmp_path, SEED + 5, filler=50_000, **PATCHES) as world:
        world.assert_served("/daily.cvd")
        for number in range(count):
            held = world.version
            assert Command(world, "hold", "daily", str(held)).wait() == 0, world.told
            world.ceiling = held
            world.release()
            newer = f"/daily-{world.version}.cdiff"
            with world.clients("/daily.cvd", "/daily.cld", newer):
                # Held anew at the same version, or lifted, which clients may notice at any moment.
                lifts = number % 2 == 1
                world.ceiling = None if lifts else held
                arguments = ["release", "daily"] if lifts else ["hold", "daily", str(held)]
                command = Command(world, *arguments, step=world.random.randrange(STEPS_OF_A_HOLD))
                MOMENTS[(number + SEED) % len(MOMENTS)](world)
                world.site.gateway.kill()
                command.kill()
            world.assert_nothing_false()
            world.ceiling = held if is_held(world) else None
            assert lifts or world.ceiling == held, world.told
            world.site.gateway.start(at_same_ports=True)
            world.assert_served("/daily.cvd")
            assert world.ask(newer).status == 404 or world.ceiling is None, world.told
            world.ceiling = None
            assert Command(world, "release", "daily").wait() == 0 or lifts, world.told
            assert not is_held(world)
            world.assert_served(newer)
            world.assert_tidy()
        end(world)
        tell(figures, "holds", count, world)


def is_held(world: World) -> bool:
    """Whether the command line tool lists a hold, with or without a gateway."""
    listed = world.site.gateway.tool("hold", "--json")
    assert listed.returncode == 0, listed.stderr
    return bool(json.loads(listed.stdout))


def test_delays(tmp_path: Path, figures: Figures) -> None:
    """All but the first version are delayed for longer than the test takes."""
    count, delay = rounds(1, 20), {"delay": {"daily": "7d"}}
    with open_world(tmp_path, SEED + 6, filler=50_000, releases=delay, **PATCHES) as world:
        world.assert_served("/daily.cvd")
        world.ceiling = world.version
        for number in range(count):
            world.release()
            newer = f"/daily-{world.version}.cdiff"
            with world.clients("/daily.cvd", "/daily.cld", newer):
                MOMENTS[(number + SEED) % len(MOMENTS)](world)
                world.site.gateway.kill()
            world.assert_nothing_false()
            world.site.gateway.start(at_same_ports=True)
            world.assert_served("/daily.cvd")
            assert eventually(lambda: world.ask(newer).status == 404), world.told  # noqa: B023
            world.assert_tidy()
        end(world)
        tell(figures, "delays", count, world)


def kill_one(world: World) -> None:
    """A worker, which is replaced, and whose transfer the other one goes on with."""
    gateway = world.site.gateway
    before = children(gateway.pid)
    os.kill(world.random.choice(before), signal.SIGKILL)
    assert eventually(lambda: len(children(gateway.pid)) == 2 and children(gateway.pid) != before)


def kill_parent(world: World) -> None:
    """The workers end with it."""
    workers = children(world.site.gateway.pid)
    os.kill(world.site.gateway.pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(is_alive, workers)))
    world.site.gateway.kill()


def kill_workers(world: World) -> None:
    """Clients wait until others are there."""
    before = children(world.site.gateway.pid)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: len(set(children(world.site.gateway.pid)) - set(before)) == 2)


def kill_all(world: World) -> None:
    workers = children(world.site.gateway.pid)
    world.site.gateway.kill()
    assert eventually(lambda: not any(map(is_alive, workers)))


MOMENTS_OF_WORKERS = [World.in_the_middle, World.at_random, World.after_bytes, World.when_published]
ENDS = [kill_one, kill_parent, kill_workers, kill_all]


def test_workers(tmp_path: Path, figures: Figures) -> None:
    count = rounds(1, 32)
    with open_world(tmp_path, SEED + 3, filler=FILLER, workers=2, **WHOLE) as world:
        world.site.origin.rate = RATE
        for number in range(count):
            world.site.origin.forget()
            moment = MOMENTS_OF_WORKERS[number % len(MOMENTS_OF_WORKERS)]
            world.release(stalls=moment is World.in_the_middle)
            kill = ENDS[(number + SEED) % len(ENDS)]
            with world.clients(*["/daily.cvd"] * 4):
                moment(world)
                arrived, begun = world.arrived(), len(world.offsets())
                kill(world)
                world.site.origin.heal()
            if kill in (kill_parent, kill_all):
                world.assert_nothing_false()
                world.site.gateway.start(at_same_ports=True)
            world.assert_newest_is_served()
            assert_only_the_rest_is_fetched(world, arrived, begun)
            world.assert_tidy()
        end(world)
        tell(figures, "workers", count, world)


def assert_only_the_rest_is_fetched(world: World, arrived: int, begun: int) -> None:
    """After a kill, one process goes on from what had arrived by then, to the end.

    Args:
        arrived: how many bytes, just before the kill.
        begun: how many transfers the origin had seen then.
    """
    later = world.offsets()[begun:]
    assert all(offset >= arrived for offset in later), world.told
    # If there was none yet, the killed process may have begun one at that moment. What it left unread of it
    # can't be told, so its bytes are not counted.
    assert len(later) <= (1 if begun else 2), (later, world.told)
    assert world.fetched(since=max(begun, len(world.offsets()) - 1)) <= len(world.cvd) - arrived, world.told


def test_feeds(tmp_path: Path, figures: Figures) -> None:
    """A feed that changes, and that the origin lets be stored."""
    count = rounds(1, 18)
    feeds: dict[str, Any] = {"feeds": {"hosts": [LOCALHOST]}}
    with open_world(tmp_path, SEED + 4, **feeds) as world:
        world.site.origin.rate = RATE
        world.site.origin.rule(FEED, Fault(headers={"Cache-Control": "max-age=0"}))
        for _ in range(count):
            world.change_feed(FEED)
            with world.clients(*[FEED] * 4):
                world.at_random()
                world.site.gateway.kill()
            world.site.gateway.start(at_same_ports=True)
            world.assert_served(FEED)
            world.assert_tidy()
        end(world)
        tell(figures, "feeds", count, world)


def end(world: World) -> None:
    """It still ends well, and lets go of all that it held."""
    assert world.site.gateway.stop() == 0
    world.assert_no_stale_locks()
    assert world.tally.wrong == []
    assert world.tally.complete


def tell(figures: Figures, what: str, moments: int, world: World, **more: int) -> None:
    tally = world.tally
    figures(
        f"kill -9, {what}",
        moments=moments,
        complete_files=tally.complete,
        broken_off=tally.broken,
        wrong_files=len(tally.wrong),
        **more,
    )
