"""Keeps up what is known about machines apart from their requests: labels, names, the trend."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clamproxy.config.settings import Settings
from clamproxy.fleet.live_labels import LiveLabels
from clamproxy.fleet.machine import Machine, MachineState
from clamproxy.fleet.reverse_dns import PER_SECOND, look_up
from clamproxy.fleet.table import Rows, Table, reading
from clamproxy.fleet.trend import STEP, Sample, hour_of
from clamproxy.leases.duties import Work, on_duty
from clamproxy.leases.leases import ALONE, Leases
from clamproxy.storage.records_file import DamagedFileError
from clamproxy.threads import Writer, in_thread

logger = logging.getLogger(__name__)

LABELS_EVERY = 5.0
"""Seconds between looks at the file of labels."""
FIRST_SAMPLE = 30.0
"""Seconds from the start to the first sample of the trend: until then, too little may be known."""
BATCH = 40
"""Addresses to look up before their names are written."""
REST = 60.0
"""Seconds until the next look for addresses when there are none to look up, or after trouble."""
LONG_REST = 300.0
"""The same if no name server answers."""


class FleetUpkeep:
    """Owns its tasks. Event loop only.

    Args:
        directory: the state directory.
        writer: the thread that writes to the directory.
        labels: read again when the file has changed.
        take_sample: counts the machines now; None if there is nothing to count. Blocks.
        leases: let one process do what is written for all: the trend and the names.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        writer: Writer,
        labels: LiveLabels,
        take_sample: Callable[[], Sample | None],
        leases: Leases = ALONE,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._writer = writer
        self._labels = labels
        self._take_sample = take_sample
        self._leases = leases
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def _asks_dns(self) -> bool:
        """Offline, only name servers that are named for this purpose are asked."""
        fleet = self._settings.fleet
        return fleet.reverse_dns and bool(fleet.nameservers or not self._settings.upstream.offline)

    def start(self) -> None:
        fleet = self._settings.fleet
        if not fleet.enabled:
            return
        if not fleet.reverse_dns:
            self._writer.submit(lambda: self._change(lambda rows: rows.names.clear()))
        self._begin("trend", self.sample, self._leases, FIRST_SAMPLE)
        if fleet.labels is not None:
            self._begin("labels", self._look_at_labels, ALONE)  # each process has them in memory
        if self._asks_dns:
            self._begin("names", self.name_some, self._leases)

    def _begin(self, name: str, work: Work, leases: Leases, after: float = 0.0) -> None:
        running = on_duty(leases, f"fleet {name}", partial(_persist, work), after)
        self._tasks.append(asyncio.create_task(running, name=f"fleet {name}"))

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    async def _look_at_labels(self) -> float:
        await in_thread("clamproxy-labels", self._labels.get)
        return LABELS_EVERY

    async def sample(self) -> float:
        """Add a sample to the trend, unless this hour has one; returns the seconds until the next hour."""
        sample = await in_thread("clamproxy-trend", self._take_sample)
        if sample is not None:
            await self._writer.run(lambda: self._change(lambda rows: rows.shares.add(sample)))
        return STEP - time.time() % STEP

    async def name_some(self) -> float:
        """Ask for the names of some machines; returns the seconds to wait before the next ones."""
        now, begun = time.time(), time.monotonic()
        addresses = await in_thread("clamproxy-names", lambda: self._unnamed(now))
        if not addresses:
            return REST
        found = await look_up(addresses, self._settings.fleet.nameservers, now)
        await self._writer.run(lambda: self._change(lambda rows: rows.names.put(found.names)))
        if not found.has_answers:
            return LONG_REST
        return max(0.0, len(addresses) / PER_SECOND - (time.monotonic() - begun))

    def _unnamed(self, now: float) -> list[str]:
        with reading(self._directory) as rows:
            return [] if rows is None else rows.names.wanted(now, BATCH)

    def _change(self, change: Callable[[Rows], None]) -> None:
        """Change the table. The recorder logs it if that can't be done."""
        try:
            with Table(self._directory).writing() as rows:
                change(rows)
        except (DamagedFileError, sqlite3.Error, OSError) as error:
            logger.debug("The table of machines can't be written: %s", error)


async def _persist(work: Work) -> float:
    """Do something even if it may fail; after trouble it may work the next time."""
    try:
        return await work()
    except Exception as error:
        logger.warning("What is known about the machines can't be kept up to date: %s", error)
        return REST


def take_sample(machines: Sequence[Machine], behind_for: float, now: float) -> Sample | None:
    """The machines counted; None if it isn't known of any of them whether it is up to date.

    Args:
        behind_for: seconds after which a machine that is behind counts as overdue.
        now: Unix seconds.
    """
    counts = Counter(machine.state for machine in machines)
    if not counts[MachineState.UP_TO_DATE] + counts[MachineState.BEHIND]:
        return None
    overdue = sum(machine.is_behind(now, seconds=behind_for) for machine in machines)
    return Sample(hour_of(now), len(machines), counts[MachineState.UP_TO_DATE], overdue)
