"""The recorder: notes every visit without holding up the event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from clamproxy.config.settings import FleetSection as FleetSettings
from clamproxy.fleet.agent import LONGEST, Agent, parse_agent, shown_address
from clamproxy.fleet.observer import Knowledge, is_later
from clamproxy.fleet.stories import Key
from clamproxy.fleet.story import Addition
from clamproxy.fleet.table import MachineRow, Release, Rows, Table
from clamproxy.fleet.visit import Visit
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import Latest
from clamproxy.storage.records_file import DamagedFileError
from clamproxy.threads import Writer

logger = logging.getLogger(__name__)

FLUSH_DELAY = 1.0
"""Seconds from a visit until it is in the table. A machine often visits twice within a second, for a patch
and its signature; its row is written once for both."""
FLUSH_DELAY_AFTER_ERROR = 10.0
"""Seconds until the next attempt while writing fails, for example because the disk is full."""
ENOUGH = 20_000
"""Visits that are written without delay."""
MOST_PENDING = 40_000
"""Visits, of some 500 bytes each, that may wait to be written. The oldest are dropped first."""
CLOCK_DOUBTED = 600.0
"""Seconds after a start, or after the clock was set, in which no machine is dropped as silent: the clock may
be fast for a moment, by years, and then all but the one that visits seem to be."""
_CLOCK_SET = 60.0
"""Seconds by which a clock that was set differs from the monotonic one, at least."""

REFUSALS = (401, 407)
"""Statuses for clients that are not users of the gateway."""


class Fleet:
    """Notes visits on the event loop, and has them written soon after.

    The writer works out what a visit tells, in one transaction with the row that it changes: the loop
    does next to nothing, nothing is kept in memory, and processes may share the table. At first, the
    writer creates or checks the table.

    Args:
        directory: the state directory.
        settings: how many machines are kept, and how long.
        writer: the thread that writes to the directory.
        clock: gives Unix seconds.
        monotonic: gives seconds that nobody sets.
    """

    def __init__(
        self,
        directory: Path,
        settings: FleetSettings,
        writer: Writer,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._clock = clock
        self._monotonic = monotonic
        self._ahead = math.inf
        """How far the clock was ahead of the monotonic one when it was last set."""
        self._trusted_from = 0.0
        """From which monotonic time on machines may be dropped as silent."""
        self._table = Table(directory)
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._visits: deque[Visit] = deque(maxlen=MOST_PENDING)
        self._releases: deque[Release] = deque(maxlen=MOST_PENDING)
        self._advertised: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_handed_over = False
        """Whether the writer will take the pending visits as soon as it gets to them."""
        self._is_failing = False
        if settings.enabled:
            writer.submit(self._check)

    def see(self, visit: Visit) -> None:
        """Note that a request on a ClamAV host was answered. Quick. Event loop only."""
        agent = visit.user_agent
        is_usable = agent is not None and len(agent) <= LONGEST and not visit.is_relayed
        # Clients that were not let in must not push others out of the table.
        if self._settings.enabled and is_usable and visit.status not in REFUSALS:
            with self._lock:
                self._visits.append(visit)
            if len(self._visits) >= ENOUGH and not self._is_failing:
                self.flush()
            else:
                self._flush_soon()

    def note_advertised(self, database: str, version: int) -> None:
        """Note that a version is advertised. Quick, and free if it is known already. Event loop only."""
        if self._settings.enabled and self._advertised.get(database) != version:
            self._advertised[database] = version
            with self._lock:
                self._releases.append(Release(database, version, first_seen=self._clock()))
            self._flush_soon()

    def note_built(self, database: str, version: int, built_at: int) -> None:
        """Note a version's proven build time, in Unix seconds. Quick. Any thread."""
        if self._settings.enabled and built_at:
            with self._lock:
                self._releases.append(Release(database, version, built_at=built_at, is_proven=True))
            self._hand_over()

    def flush(self) -> None:
        """Hand the pending visits to the writer. Event loop only."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hand_over()

    def _flush_soon(self) -> None:
        if self._timer is None and not self._is_handed_over:
            delay = FLUSH_DELAY_AFTER_ERROR if self._is_failing else FLUSH_DELAY
            self._timer = self._loop.call_later(delay, self.flush)

    def _hand_over(self) -> None:
        """Call the writer unless a call is still pending: this way no more than `MOST_PENDING` wait."""
        with self._lock:
            if self._is_handed_over or not (self._visits or self._releases):
                return
            self._is_handed_over = True
        self._writer.submit(self._write)

    # In the writer's thread

    def _check(self) -> None:
        self._attempt(_check)

    def _write(self) -> None:
        with self._lock:
            self._is_handed_over = False
            visits, releases = list(self._visits), list(self._releases)
            self._visits.clear()
            self._releases.clear()
        if not self._attempt(lambda rows: self._record(rows, visits, releases)):
            with self._lock:
                self._visits = deque([*visits, *self._visits], MOST_PENDING)
                self._releases = deque([*releases, *self._releases], MOST_PENDING)
            with suppress(RuntimeError):  # the loop is closed: the process is ending
                self._loop.call_soon_threadsafe(self._flush_soon)

    def _attempt(self, change: Callable[[Rows], object]) -> bool:
        """Change the table; returns whether that worked. Persistent trouble is logged once."""
        for _ in range(2):
            try:
                with self._table.writing() as rows:
                    change(rows)
            except DamagedFileError:
                continue
            except (sqlite3.Error, OSError) as error:
                if not self._is_failing:
                    logger.warning("The table of machines can't be written: %s", error)
                self._is_failing = True
                return False
            self._is_failing = False
            return True
        return False

    def _record(self, rows: Rows, visits: Iterable[Visit], releases: Iterable[Release]) -> None:
        for release in releases:
            rows.note(release)
        now = self._clock()
        forgotten = rows.forgotten(now)
        machines: dict[Key, list[Visit]] = {}
        agents: dict[Key, Agent] = {}
        headers: set[bytes] = set()
        for visit in visits:
            agent = parse_agent(visit.user_agent or "")
            if agent is None or visit.at <= forgotten.get(agent.uuid, 0.0):
                continue
            if isinstance(visit.target, Latest) and visit.head not in headers:
                headers.add(visit.head)
                _note_header(rows, visit.target.database, visit.head)
            key = agent.uuid, shown_address(visit.address)
            machines.setdefault(key, []).append(visit)
            agents[key] = agent
        additions = {key: Addition() for key in machines}
        rows.put([_after(rows, agents[key], key[1], seen, additions[key]) for key, seen in machines.items()])
        rows.stories.add(additions, now)
        rows.limit(self._settings.max_clients, self._silent_since(now))

    def _silent_since(self, now: float) -> float:
        """The time since which a machine must have been silent to be dropped."""
        monotonic = self._monotonic()
        if abs(now - monotonic - self._ahead) > _CLOCK_SET:
            self._ahead, self._trusted_from = now - monotonic, monotonic + CLOCK_DOUBTED
        return now - self._settings.keep if monotonic >= self._trusted_from else -math.inf


def _check(rows: Rows) -> None:
    rows.check()
    rows.stories.drop_orphans()


def _after(rows: Rows, agent: Agent, address: str, visits: list[Visit], addition: Addition) -> MachineRow:
    """A machine after some visits, with one read and one write for all of them."""
    earlier = rows.get(agent.uuid, address)
    first_seen, last_seen, known = visits[0].at, visits[-1].at, Knowledge()
    if earlier is not None:
        first_seen, known = earlier.first_seen, earlier.known
        last_seen = earlier.last_seen if is_later(earlier.last_seen, last_seen) else last_seen
    addition.meet(agent, None if earlier is None else earlier.agent, visits[0].at)
    for visit in visits:
        first_seen = min(first_seen, visit.at)
        known = addition.note(visit, known, rows.find_build)
    return MachineRow(agent, address, first_seen, last_seen, known)


def _note_header(rows: Rows, database: str, head: bytes) -> None:
    if len(head) < HEADER_SIZE:
        return
    try:
        header = CvdHeader.parse(head)
    except InvalidObject:
        return
    if header.stime:
        rows.note(Release(database, header.version, built_at=header.stime))
