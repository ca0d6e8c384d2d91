"""One life of a gateway under soak: the world goes on by steps until the gateway is killed or stopped."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import ssl
from collections.abc import Callable
from typing import Any

from clamproxy.waiting import wait_while
from tests.harness.soak.faults import (
    DISK_FULL,
    LONGEST_STEP,
    ORIGIN_DOWN,
    TRIED_AGAIN_WITHIN,
    Faults,
)
from tests.harness.soak.machines import Freshclam, Kind, Machine
from tests.harness.soak.measures import sample
from tests.harness.soak.origin import SoakOrigin
from tests.harness.soak.plan import DAY, HOUR, QUIET, SIGN, Plan, Release
from tests.harness.soak.world import World, make_machine
from tests.support.disk import Disk
from tests.support.dns_server import Zone
from tests.support.simulated_time import STEP, Timeline

COUNTED = (
    "requests",
    "hits",
    "misses",
    "collapsed",
    "stale",
    "negative",
    "refused",
    "errors",
    "bytes_served",
    "upstream_requests",
    "upstream_bytes",
)
WRITTEN_WITHIN = 0.3
"""Simulated seconds after which what was counted must be on the disk: FLUSH_DELAY, and some room."""
VISITS_WRITTEN_WITHIN = 1.5
"""The same for what machines did."""
SEEN_WITHIN = 2 * LONGEST_STEP
"""Seconds by which the table may differ about when a machine was last seen, as the clock may be wrong."""
GRACE = 1.5 * HOUR
"""Seconds after a release or a fault in which a machine may be behind after its check."""
KEPT_BY_ORIGIN = 90
"""Patches of each database that the CDN keeps."""
_FAULTS_EVERY = 9 * HOUR
_LATEST_KILL = 12 * HOUR
"""Seconds for which a kill waits for an answer of the origin."""


class Soak:
    """Lets the world go on.

    Args:
        stop: ends the gateway in an orderly way.
    """

    def __init__(
        self, plan: Plan, world: World, timeline: Timeline, disk: Disk | None, stop: Callable[[], None]
    ) -> None:
        self._plan, self._world, self._timeline, self._stop = plan, world, timeline, stop
        self._zone = Zone()
        self._zone.versions = world.advertised
        self._origin = SoakOrigin(plan, timeline, self._zone)
        self._origin.names = world.names
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        self._freshclam = Freshclam(plan, timeline, self._zone, tls)
        self._freshclam.wrongs, self._freshclam.shown = world.wrongs, world.shown
        self._faults = Faults(world.chance, self._origin, self._zone, timeline, disk)
        self._fault_ends_at = 0.0
        self._troubled_at = world.now
        """When there was last a fault, a release or a start."""
        self._checks: set[asyncio.Task[None]] = set()
        self._baseline: dict[str, int] = {}
        self._was_down = False
        """Whether the origin has been down since the books were last compared."""

    async def run(self) -> None:
        """Go on until the end of this life."""
        plan, world = self._plan, self._world
        await self._origin.start()
        await self._begin_books()
        end = plan.ends[world.life]
        is_last = world.life == len(plan.ends) - 1
        while world.now < end:
            await asyncio.sleep(STEP - self._timeline.monotonic() % STEP)
            before, world.now = world.now, self._timeline.monotonic() - plan.started_at
            self._release(before)
            await self._trouble()
            self._let_check(before)
            if world.now // plan.look_every > before // plan.look_every:
                await self._look()
        if not is_last:
            await self._die()
        await self._finish()

    # What happens outside

    def _release(self, before: float) -> None:
        for release in self._plan.releases:
            acts = (
                (release.at, self._publish),
                (release.signed_at, self._sign),
                (release.told_at, self._advertise),
            )
            for at, act in acts:
                if before < at <= self._world.now or before == at == 0:
                    act(release)
                    self._troubled_at = self._world.now

    def _publish(self, release: Release) -> None:
        names, database = self._origin.names, release.database
        names[f"{database}.cvd"] = f"{release.name}.cvd"
        if release.version > 1:
            names[f"{release.name}.cdiff"] = f"{release.name}.cdiff"
        old = f"{database}-{release.version - KEPT_BY_ORIGIN}.cdiff"
        for file in (old, old + SIGN):
            names.pop(file, None)

    def _sign(self, release: Release) -> None:
        for kind in ("cvd", "cdiff") if release.version > 1 else ("cvd",):
            name = f"{release.name}.{kind}{SIGN}"
            self._origin.names[name] = name

    def _advertise(self, release: Release) -> None:
        self._zone.versions[release.database] = release.version

    async def _trouble(self) -> None:
        world = self._world
        if self._faults.current is not None:
            self._troubled_at = world.now
            if world.now >= self._fault_ends_at:
                await self._faults.end()
        elif world.now >= world.fault_at and world.now < (self._plan.days - QUIET) * DAY:
            name, lasts = self._faults.choose()
            self._faults.begin(name)
            self._troubled_at = world.now
            self._was_down |= name == ORIGIN_DOWN
            world.faults[name] += 1
            self._fault_ends_at = world.now + lasts
            world.fault_at = self._fault_ends_at + world.chance.uniform(0.3, 1.7) * _FAULTS_EVERY

    def _let_check(self, before: float) -> None:
        world = self._world
        for machine in world.machines:
            if machine.check_at <= world.now:
                machine.check_at += machine.period
                self._begin(machine)
        due = int(world.now / (self._plan.days * DAY) * self._plan.visitors)
        while world.visitors < min(due, self._plan.visitors):
            world.visitors += 1
            visitor = make_machine(world.chance, 100_000 + world.visitors)
            visitor.kind = Kind.DNS
            visitor.versions = {
                name: max(1, version - (name == "daily")) for name, version in world.advertised.items()
            }
            self._begin(visitor)

    def _begin(self, machine: Machine) -> None:
        task = asyncio.create_task(self._check(machine))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _check(self, machine: Machine) -> None:
        begun = self._world.now
        try:
            await self._freshclam.check(machine)
        except Exception as error:
            self._world.complaints.append(f"the model failed: {error!r}")
        if machine.versions == self._zone.versions:
            machine.current_at = begun
        elif begun - self._troubled_at > GRACE:
            self._complain(f"{machine.kind} {machine.way} has {machine.versions}, not {self._zone.versions}")

    # Books

    async def _begin_books(self) -> None:
        """Compare what the gateway has kept with what it had counted when it was killed."""
        with self._timeline.guest():
            await self._settle(WRITTEN_WITHIN)
            counters = (await self._read("/status.json"))["stats"]
        mine = self._counted()
        self._baseline = {name: counters[name] - mine.get(name, 0) for name in COUNTED}
        expected = self._world.counters
        if self._world.life:
            lost = expected["requests"] - counters["requests"]
            if not 0 <= lost <= self._world.unwritten:
                self._complain(f"lost {lost} requests; {self._world.unwritten} were still to be written")

    async def _look(self) -> None:
        """Measure, and compare books, once nothing is under way."""
        world = self._world
        while self._checks:
            await asyncio.wait(set(self._checks))
        with self._timeline.guest():
            await self._settle(TRIED_AGAIN_WITHIN)
            status, fleet = await self._read("/status.json"), await self._read("/fleet.json")
        if self._faults.current != DISK_FULL:  # then the gateway keeps for itself what it can't write
            self._compare(status)
            self._compare_fleet(fleet["machines"], status["stats"]["databases"])
        found = sample(self._plan.gateway, world.now / DAY, world.life)
        found.append_to(self._plan.samples)
        answers = world.answered["requests"] + self._freshclam.books.counts["requests"]
        line = f"day {found.day:.2f}: {answers} answers, {found.rss >> 20} MiB, {len(world.complaints)} wrong"
        with self._plan.progress.open("a") as progress:
            progress.write(line + "\n")

    async def _settle(self, seconds: float) -> None:
        """Let so much time pass, and what the gateway does by itself come to an end."""
        await asyncio.sleep(seconds)
        await wait_while(lambda: not self._origin.is_quiet(WRITTEN_WITHIN), HOUR, WRITTEN_WITHIN)

    def _counted(self) -> dict[str, int]:
        """What the gateway should have counted since the origin was started."""
        origin, clients = self._origin.books, self._freshclam.books.counts
        return {**clients, "upstream_requests": origin.requests, "upstream_bytes": origin.bytes}

    def _expected(self) -> dict[str, int]:
        mine = self._counted()
        return {name: self._baseline[name] + mine.get(name, 0) for name in COUNTED}

    def _compare(self, status: dict[str, Any]) -> None:
        counted, expected = status["stats"], self._expected()
        if self._was_down:  # nobody else can count requests for which there was no connection
            expected["upstream_requests"] = max(expected["upstream_requests"], counted["upstream_requests"])
        self._was_down = self._faults.current == ORIGIN_DOWN
        # Nor can they know how much of an answer came through a connection before it was reset.
        clients, origin = self._freshclam.books, self._origin.books
        for name, less, more in (
            ("bytes_served", 0, clients.uncertain),
            ("upstream_bytes", origin.unread, 0),
        ):
            if -less <= counted[name] - expected[name] <= more:
                expected[name] = counted[name]
        clients.uncertain = origin.unread = 0
        wrong = {name: (counted[name], expected[name]) for name in COUNTED if counted[name] != expected[name]}
        broken = self._freshclam.books.broken
        if wrong:
            self._complain(f"counted, and true: {wrong}; {broken} answers were cut off")
        # Each difference is told once.
        mine = self._expected()
        self._baseline = {name: self._baseline[name] + counted[name] - mine[name] for name in COUNTED}

    def _compare_fleet(self, kept: list[dict[str, Any]], known: dict[str, dict[str, Any]]) -> None:
        """What the fleet's table says of each machine, and what is true.

        Args:
            known: what the gateway says about each database.
        """
        world = self._world
        if len(kept) > self._plan.most_machines:
            self._complain(f"{len(kept)} machines are kept")
        told = {machine["uuid"]: machine for machine in kept}
        for machine in world.machines:
            if machine.asked_at is None or machine.asked_at < self._timeline.time() - DAY:
                continue  # it may have been pushed out by machines that came later
            if world.unsure.get(machine.uuid, 0) > world.now:
                continue
            row = told.get(machine.uuid)
            if row is None:
                self._complain(f"{machine.uuid} isn't in the fleet's table")
                continue
            versions = {name: held["version"] for name, held in row["databases"].items()}
            if versions == machine.versions:
                world.unsure_versions.pop(machine.uuid, None)
            maybe = world.unsure_versions.get(machine.uuid, {})
            held = {name: versions.get(name, 0) for name in machine.versions}  # the table has no row for none
            if not all(
                held[name] == have or held[name] < have == maybe.get(name)
                for name, have in machine.versions.items()
            ):
                self._complain(f"{machine.kind} has {machine.versions}; the table says {versions}")
            for name, held in row["databases"].items():
                self._compare_lag(name, held, known[name]["advertised"])
            if abs(row["last_seen"] - machine.asked_at) > SEEN_WITHIN:
                self._complain(f"{machine.uuid} asked at {machine.asked_at}, not {row['last_seen']}")

    def _compare_lag(self, database: str, held: dict[str, Any], advertised: int) -> None:
        """How many releases a machine is behind, and since when."""
        # A while after a release or a fault, the gateway must know what is advertised, and when it was built.
        # Until then, it can only be held against what it knows.
        is_settled = self._world.now - self._troubled_at > GRACE
        newest = self._zone.versions[database] if is_settled else advertised
        behind, since = held["behind"], held["behind_since"]
        if behind != max(0, newest - held["version"]):
            self._complain(f"{database} {held} is called {behind} behind {newest}")
        came_out = self._plan.stimes.get(f"{database}-{held['version'] + 1}.cvd") if behind else None
        is_known = since == came_out or (came_out and not is_settled and came_out <= (since or 0))
        if not is_known:
            self._complain(f"{database} {held} is called behind since {since}, not {came_out}")

    def _complain(self, line: str) -> None:
        self._world.complaints.append(f"day {self._world.now / DAY:.2f}, {self._faults.current}: {line}")

    async def _read(self, page: str) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._plan.ports[0])
        try:
            writer.write(f"GET {page} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.transport.abort()
        assert b" 200 " in head, head
        values: dict[str, Any] = json.loads(body)
        return values

    # The end

    async def _die(self) -> None:
        """Be killed, at any moment or in the middle of an answer of the origin."""
        if self._world.chance.random() < 0.3:
            await asyncio.sleep(self._world.chance.uniform(0, STEP))
            self._kill()
        self._origin.when_asked = self._kill
        while True:
            await asyncio.sleep(STEP)
            before, self._world.now = self._world.now, self._timeline.monotonic() - self._plan.started_at
            self._release(before)
            await self._trouble()
            self._let_check(before)
            if self._world.now > self._plan.ends[self._world.life] + _LATEST_KILL:
                self._kill()

    def _kill(self) -> None:
        books, world = self._freshclam.books, self._world
        world.counters.clear()
        world.counters.update(self._expected())
        since = self._faults.unwritten_since(WRITTEN_WITHIN)
        world.unwritten = sum(at >= since for at in books.ended)
        self._note_lost_visits()
        self._close_books()
        world.life += 1
        self._timeline.save(self._plan.marks)
        world.save(self._plan)
        os.kill(os.getpid(), signal.SIGKILL)

    def _note_lost_visits(self) -> None:
        """What machines did in the last second is lost, or while the disk was full (docs/operations.md)."""
        timeline, world = self._timeline, self._world
        lost = timeline.monotonic() - self._faults.unwritten_since(VISITS_WRITTEN_WITHIN)
        for machine in world.machines:
            if machine.asked_at is not None and timeline.time() - machine.asked_at < lost:
                world.unsure[machine.uuid] = world.now + DAY
                world.unsure_versions[machine.uuid] = dict(machine.versions)

    async def _finish(self) -> None:
        await self._look()
        self._close_books()
        self._plan.report.write_bytes(pickle.dumps(self._world))
        self._stop()

    def _close_books(self) -> None:
        world = self._world
        world.fetched.update(self._origin.books.whole)
        world.answered.update(self._freshclam.books.counts)
        world.answered["broken"] += self._freshclam.books.broken
