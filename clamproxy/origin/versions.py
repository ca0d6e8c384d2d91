"""Advertised versions: what DNS says is current (protocol.md section 3)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clamproxy.announcement import FIELDS, RECORD_TIME_FIELD
from clamproxy.objects import MAX_VERSION
from clamproxy.origin.resolver import Resolver

logger = logging.getLogger(__name__)

OLDEST_RECORD = 12 * 3600
"""Seconds after which freshclam, and so the gateway, takes a record for stale."""
PATIENCE = 1.0
"""Seconds for which a look-up is waited for if an older answer is known, or none is needed."""
_RETRY = 30.0


@dataclass(frozen=True, slots=True)
class Advertised:
    """A version as DNS gave it."""

    version: int
    fresh: bool
    """Whether the answer still counts; else it is the last good one."""


class AdvertisedVersions:
    """Asks DNS, at most once in a refresh interval for each record. Event loop only."""

    def __init__(
        self,
        domain: str,
        resolver: Resolver | None,
        refresh: float,
        save: Callable[[str, Any], None],
        save_record: Callable[[str, Any], None],
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            domain: of the primary record, ``current.cvd.clamav.net``.
            resolver: who is asked; None: nobody ever is. It is closed with this object.
            refresh: seconds for which an answer counts.
            save: is given each database and its answer, if it is good, to keep over a restart.
            save_record: likewise, the domain and the text of the primary record.
        """
        self._domain = domain
        self._resolver = resolver
        self._refresh = refresh
        self._save = save
        self._save_record = save_record
        self._record: str | None = None
        self._known: dict[str, tuple[int, float]] = {}
        self._next_look: dict[str, float] = {}
        self._looking: dict[str, tuple[asyncio.Task[None], float]] = {}
        """The look-ups that are under way, and the loop time at which each began."""

    def restore(self, saved: dict[str, Any], records: dict[str, Any]) -> None:
        """Take over the answers and the primary record of an earlier process."""
        if isinstance(record := records.get(self._domain), str):
            self._record = record
        now = time.time()
        for database, value in saved.items():
            match value:
                case [int(version), int() | float() as learnt_at] if 0 < version <= MAX_VERSION:
                    # A time in the future was noted by a clock that was wrong: it doesn't count.
                    is_past = learnt_at <= now
                    self._known[database] = (version, learnt_at if is_past else now - self._refresh)

    @property
    def last_record(self) -> str | None:
        """The last good primary record as it stood, however old."""
        return self._record

    def last_known(self, database: str) -> Advertised | None:
        """The last good answer, without asking; None as well when it is as old as no record may be."""
        version, learnt_at = self._known.get(database, (0, 0.0))
        age = time.time() - learnt_at
        return Advertised(version, 0 <= age < self._refresh) if age < OLDEST_RECORD else None

    async def get(
        self, database: str, patience: float | None = PATIENCE, *, is_needed: bool = True
    ) -> Advertised | None:
        """The advertised version, after asking DNS if the last answer counts no more.

        Args:
            database: whose.
            patience: seconds that a look-up may take, whoever began it; None: until it ends.
            is_needed: whether to wait until the look-up ends if no older answer is known.

        Returns:
            The last good answer where DNS gives none; None if there was none for half a day.
        """
        known, resolver = self.last_known(database), self._resolver
        if resolver is not None and (known is None or not known.fresh):
            name = record_name(database, self._domain)
            if name not in self._looking and time.monotonic() >= self._next_look.get(name, 0.0):
                task = asyncio.create_task(self._look_up(resolver, name, database), name=f"look-up {name}")
                self._looking[name] = task, asyncio.get_running_loop().time()
                task.add_done_callback(lambda _: self._looking.pop(name, None))
            if name in self._looking:
                # The look-up is no client's: it goes on when this one leaves or stops waiting.
                task, asked_at = self._looking[name]
                limit = None
                if patience is not None and (known is not None or not is_needed):
                    limit = max(0.0, asked_at + patience - asyncio.get_running_loop().time())
                await asyncio.wait({task}, timeout=limit)
        return self.last_known(database)

    def stop(self) -> None:
        """Cancel what is under way."""
        for task, _ in list(self._looking.values()):
            task.cancel()
        if self._resolver is not None:
            self._resolver.close()

    async def _look_up(self, resolver: Resolver, name: str, database: str) -> None:
        self._next_look[name] = time.monotonic() + min(self._refresh, _RETRY)
        try:
            text = await resolver.txt(name)
            versions = (
                parse_primary(text, time.time())
                if database in FIELDS
                else {database: parse_single(text, time.time())}
            )
        except Exception as error:  # whatever it is, the last good answer goes on counting
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger.warning("No advertised versions from DNS (%s): %s", name, reason)
            return
        if database in versions:
            del self._next_look[name]
        if database in FIELDS and text != self._record:
            self._record = text
            self._save_record(self._domain, text)
        for found, version in versions.items():
            if self._known.get(found, (0, 0.0))[0] != version:
                logger.info("DNS advertises %s version %d.", found, version)
            self._known[found] = (version, time.time())
            self._save(found, [version, self._known[found][1]])


def record_name(database: str, domain: str) -> str:
    """Where a database's version is announced, if the primary record is at ``domain``."""
    return domain if database in FIELDS else single_name(database, domain)


def single_name(database: str, domain: str) -> str:
    """The name of one database's own record: freshclam asks ``<db>.cvd.clamav.net`` for it."""
    return f"{database}.{domain.partition('.')[2]}"


def parse_primary(text: str, now: float) -> dict[str, int]:
    """Versions in a record like ``1.4.3:62:27780:1759500000:1:90:49192:339``.

    Raises:
        ValueError: too old, or not such a record. A single field that is no version is left out,
            as freshclam does.
    """
    fields = text.split(":")
    if len(fields) < 8:
        raise ValueError(f"not a version record: {text[:80]!r}")
    _check_record_time(fields[RECORD_TIME_FIELD], now)
    versions = {name: _version(fields[position]) for name, position in FIELDS.items()}
    return {name: version for name, version in versions.items() if version is not None}


def parse_single(text: str, now: float) -> int:
    """The version in a record of one database: ``version:recordtime[:…]``.

    Raises:
        ValueError: too old, or not such a record.
    """
    fields = text.split(":")
    version = _version(fields[0])
    if len(fields) < 2 or version is None:
        raise ValueError(f"not a version record: {text[:80]!r}")
    _check_record_time(fields[1], now)
    return version


def _version(field: str) -> int | None:
    if not (field.isascii() and field.isdecimal()) or len(field) > 10:
        return None
    version = int(field)
    return version if 0 < version <= MAX_VERSION else None


def _check_record_time(field: str, now: float) -> None:
    if not (field.isascii() and field.isdecimal()):
        raise ValueError(f"not a record time: {field[:40]!r}")
    if now - int(field) > OLDEST_RECORD:
        raise ValueError("the record is older than 12 hours")
