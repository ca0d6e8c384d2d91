"""The notifier: looks at the figures again and again, and tells the targets what they don't know yet."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable

from clamproxy.config.settings import Settings
from clamproxy.leases.duties import Duty
from clamproxy.leases.leases import ALONE, Leases
from clamproxy.notices.episodes import Chronicle, Due, Pace
from clamproxy.notices.notice import Notice
from clamproxy.notices.report import KEY, gateway_name, read_chronicle
from clamproxy.notices.rules import RULE_OF, Figures, find_alerts, find_unknown
from clamproxy.notices.targets import DeliveryError, NoticeTarget, deliver, targets_of
from clamproxy.origin.cooldown import Backoff
from clamproxy.storage.records import Records
from clamproxy.threads import Writer, in_thread

logger = logging.getLogger(__name__)

LONGEST_INTERVAL, SHORTEST_INTERVAL = 60.0, 1.0
"""Seconds between two looks: a tenth of notify.after, within these limits."""
RETRIES = Backoff(60.0, 3600.0)
"""When to try again if a target doesn't take a notice."""


class Notifier:
    """A background task. Event loop only.

    Of the processes that share a cache, one looks and sends.

    Args:
        figures: gives the values of status.json.
        records: where the state is kept, over restarts and for other processes.
        clock: gives Unix seconds.
        leases: let one process look and send.
    """

    def __init__(
        self,
        settings: Settings,
        figures: Callable[[], Awaitable[Figures]],
        records: Records,
        writer: Writer,
        clock: Callable[[], float] = time.time,
        leases: Leases = ALONE,
    ) -> None:
        self._ignored = settings.notify.ignore
        self._pace = Pace(settings.notify.after, settings.notify.repeat)
        self._targets = {target.id: target for target in targets_of(settings)}
        self._figures = figures
        self._records = records
        self._writer = writer
        self._clock = clock
        self._chronicle: Chronicle | None = None
        """None until it has been read, and while another process is in charge."""
        self._retry_at: dict[str, float] = {}
        """By target, in Unix seconds. A restart tries at once: perhaps what was wrong is corrected."""
        self._duty = Duty(leases, "notices")
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False

    def start(self) -> None:
        unknown = [name for name in self._ignored if name not in RULE_OF]
        if unknown:
            names = ", ".join(unknown)
            logger.warning(
                "notify.ignore: there are no notices %s; `clamproxy notify` prints the names.", names
            )
        self._task = asyncio.create_task(self._run(), name="notices")

    def stop(self) -> None:
        """End the task and whatever is being sent, and leave the looking to another process."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._duty.leave()

    async def look(self) -> None:
        """Look at the figures now, and send what is due.

        Raises:
            Exception: the figures can't be had.
        """
        if not await self._duty.is_ours():
            self._chronicle = None
            return
        if self._chronicle is None:
            self._chronicle = await in_thread("clamproxy-notices", self._read)
        figures = await self._figures()
        alerts, unknown = find_alerts(figures, self._ignored), find_unknown(figures, self._ignored)
        before = self._chronicle
        self._chronicle = before.only_for(self._targets).seen(alerts, self._pace, self._clock(), unknown)
        await self._save(before)
        await asyncio.gather(*map(self._tell, self._targets.values()))

    async def _run(self) -> None:
        interval = min(max(self._pace.after / 10, SHORTEST_INTERVAL), LONGEST_INTERVAL)
        while True:
            await asyncio.sleep(interval)
            try:
                await self.look()
                self._is_failing = False
            except Exception:  # the next look may work
                if not self._is_failing:
                    logger.exception("Can't find out what there should be notices about.")
                self._is_failing = True

    async def _tell(self, target: NoticeTarget) -> None:
        """Send a target what it doesn't know yet, unless it has to wait after a failure."""
        now, chronicle = self._clock(), self._chronicle
        due = chronicle.due(target.id, self._pace, now) if chronicle is not None else []
        if not due or 0 < self._retry_at.get(target.id, 0.0) - now <= RETRIES.longest:
            return
        failure, remark = None, None
        try:
            remark = await deliver(target, Notice(gateway_name(), now, due))
        except DeliveryError as error:
            failure = str(error)
        await self._note(target, due, failure, remark)

    async def _note(
        self, target: NoticeTarget, due: list[Due], failure: str | None, remark: str | None
    ) -> None:
        now, before = self._clock(), self._chronicle
        if before is None:
            return
        after = before.after_attempt(target.id, failure, now, remark)
        failures = after.deliveries[target.id].failures
        if failure is None:
            after = after.after_telling(target.id, due, now)
            self._retry_at.pop(target.id, None)
            if remark is not None:
                logger.warning("Notice sent, %s, but: %s", target.name, remark)
            else:
                logger.info("Notice sent, %s.", target.name)
        else:
            self._retry_at[target.id] = now + RETRIES.delay(failures)
            if failures == 1:
                logger.warning("A notice can't be sent, %s: %s", target.name, failure)
        self._chronicle = after
        await self._save(before)

    def _read(self) -> Chronicle:
        return read_chronicle(self._records, self._clock())

    async def _save(self, before: Chronicle) -> None:
        chronicle = self._chronicle
        if chronicle is None or chronicle == before:
            return
        try:
            await self._writer.run(lambda: self._records.set_note(KEY, chronicle.saved()))
        except (OSError, sqlite3.Error) as error:
            # It must not hold back the notice: perhaps that is about the disk.
            logger.debug("The state of notices can't be saved: %s", error)
