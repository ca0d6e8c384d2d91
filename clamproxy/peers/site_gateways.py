"""The other gateways of the site: what each reports about itself and its machines, by the object store.

They are shown like the peers, which are asked instead.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.files import Stamp
from clamproxy.fleet.machine import Machine
from clamproxy.peers.answers import AnswerError, StatusAnswer, parse_machines, parse_status
from clamproxy.peers.asking import PER_PAGE, PeerAnswer
from clamproxy.peers.merging import ALL
from clamproxy.peers.peers import PeerState
from clamproxy.readable import one_line, shown_span
from clamproxy.sharing import site_notes
from clamproxy.sharing.reports import Reports
from clamproxy.sharing.site_notes import About
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between looks for new reports, which another process of the machine may have brought."""
SILENT_AFTER = 150.0
"""Seconds after which a gateway counts as silent: two signs of life are missing."""


@dataclass(frozen=True, slots=True)
class ReadReport:
    """A report as it was read."""

    stamp: Stamp | None = None
    """Of its file; None if there was none."""
    answer: PeerAnswer | None = None
    """None if it can't be used."""
    damage: str = ""
    """What is wrong with it."""

    @property
    def came_at(self) -> float | None:
        """When it came, in Unix seconds."""
        return None if self.stamp is None or self.answer is None else self.stamp[1] / 1e9


class SiteGateways:
    """Keeps what the other gateways of the site last reported. Owns its task. Event loop only.

    Args:
        most: how many machines of each are kept, at most.
        clock: gives Unix seconds.
    """

    def __init__(self, store: Store, most: int, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._most = most
        self._clock = clock
        self._reports = Reports(store.directory)
        self._read: dict[str, ReadReport] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def states(self) -> Sequence[PeerState]:
        """In the order of their names. Takes some 100 µs."""
        return states(site_notes.gateways(self._store), self._read, self._clock())

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="reports of the site")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def look(self) -> None:
        """Read the reports that have changed."""
        known = site_notes.gateways(self._store)
        for gateway, about in known.items():
            before = self._read.get(gateway)
            if before is None or self._reports.stamp(gateway) != before.stamp:
                read = partial(read_report, self._reports, gateway, about, self._most, self._clock())
                self._read[gateway] = after = await in_thread("clamproxy-reports", read)
                if after.damage and (before is None or not before.damage):
                    logger.warning("The report of gateway %s can't be used: %s.", gateway, after.damage)
        self._read = {gateway: read for gateway, read in self._read.items() if gateway in known}

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # the next look may work
                logger.exception("The reports of other gateways can't be read.")
            await asyncio.sleep(LOOK_EVERY)


def compose(values: Mapping[str, Any], machines: Sequence[Machine]) -> Iterator[bytes]:
    """The lines of this gateway's report: what it would answer as a peer, except the time of day.

    So they are the same as long as nothing has happened.

    Args:
        values: as in status.json.
        machines: worst first.
    """
    gateway = {**values["gateway"], "now": 0.0}
    yield StatusAnswer.model_validate({**values, "gateway": gateway}).model_dump_json().encode()
    for offset in range(0, len(machines), PER_PAGE):
        page = [machine.to_json() for machine in machines[offset : offset + PER_PAGE]]
        yield json.dumps({"machines": page}, separators=(",", ":")).encode()


def read_now(store: Store, most: int, now: float) -> Sequence[PeerState]:
    """What all other gateways of the site last reported, for commands. Blocks."""
    reports, known = Reports(store.directory), site_notes.gateways(store)
    read = {gateway: read_report(reports, gateway, about, most, now) for gateway, about in known.items()}
    return states(known, read, now)


def read_report(reports: Reports, gateway: str, about: About, most: int, now: float) -> ReadReport:
    """Read a report, which anybody may have written. Blocks for some 100 ms with ten thousand machines."""
    stamp = reports.stamp(gateway)
    try:
        lines = reports.lines(gateway)
        status = parse_status(next(lines, b""))
        machines: list[Machine] = []
        for line in lines:
            machines += parse_machines(line, now, about.difference).machines
            if len(machines) >= most:
                break
    except OSError:
        return ReadReport(stamp)
    except (AnswerError, ValueError) as error:
        return ReadReport(stamp, damage=str(error))
    return ReadReport(stamp, PeerAnswer(status, tuple(machines[:most])))


def states(known: Mapping[str, About], read: Mapping[str, ReadReport], now: float) -> Sequence[PeerState]:
    """The gateways as they are shown: each under a name that no other has."""
    names = {gateway: one_line(about.name, 100).strip() for gateway, about in known.items()}
    often = Counter(names.values())
    found = []
    for gateway, about in known.items():
        name, report = names[gateway], read.get(gateway, ReadReport())
        if often[name] > 1 or name in ("", ALL):
            name = f"{name} {gateway[:8]}".strip()
        silent = now - about.heard_at
        reason = f"nothing was heard of it for {shown_span(silent)}" if silent > SILENT_AFTER else ""
        is_up = False if reason else report.answer is not None or None
        found.append(PeerState(name, None, is_up, reason, report.came_at, report.answer))
    return sorted(found, key=lambda state: state.name)
