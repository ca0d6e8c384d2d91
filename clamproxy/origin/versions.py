"""Advertised versions: what DNS says is current (protocol.md section 3)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver

from clamproxy.objects import MAX_VERSION

logger = logging.getLogger(__name__)

FIELDS = {"main": 1, "daily": 2, "safebrowsing": 6, "bytecode": 7}
"""Where the primary record has each database's version."""
RECORD_TIME_FIELD = 3
OLDEST_RECORD = 12 * 3600
"""Seconds after which freshclam, and so the gateway, takes a record for stale."""
TIMEOUT = 2.0
"""Seconds for one name server."""
LIFETIME = 4.0
"""Seconds for one look-up with all name servers."""
PATIENCE = 1.0
"""Seconds for which a request waits for DNS where an older answer is known."""
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
        nameservers: Sequence[tuple[str, int]],
        refresh: float,
        save: Callable[[str, Any], None],
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            domain: of the primary record, ``current.cvd.clamav.net``.
            nameservers: address and port; none: those of the system.
            refresh: seconds for which an answer counts.
            save: is given each good answer, to keep over a restart.
        """
        self._domain = domain
        self._nameservers = nameservers
        self._refresh = refresh
        self._save = save
        self._known: dict[str, tuple[int, float]] = {}
        self._next_look: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over the answers of an earlier process."""
        for database, value in saved.items():
            match value:
                case [int(version), int() | float() as learnt_at]:
                    self._known[database] = (version, learnt_at)

    def last_known(self, database: str) -> Advertised | None:
        """The last good answer, without asking."""
        if database not in self._known:
            return None
        version, learnt_at = self._known[database]
        # A time in the future was noted by a clock that was wrong.
        return Advertised(version, 0 <= time.time() - learnt_at < self._refresh)

    async def get(self, database: str) -> Advertised | None:
        """The advertised version, after asking DNS if the last answer counts no more.

        Returns:
            The last good answer where DNS gives none; None if there never was one.
        """
        known = self.last_known(database)
        if known is None or not known.fresh:
            name = self._record_name(database)
            if name not in self._looking and time.monotonic() >= self._next_look.get(name, 0.0):
                task = asyncio.create_task(self._look_up(name, database), name=f"look-up {name}")
                self._looking[name] = task
                task.add_done_callback(lambda _: self._looking.pop(name, None))
            if name in self._looking:
                # The look-up is no client's: it goes on when this one leaves or stops waiting.
                await asyncio.wait({self._looking[name]}, timeout=PATIENCE if known else None)
        return self.last_known(database)

    def stop(self) -> None:
        """Cancel what is under way."""
        for task in list(self._looking.values()):
            task.cancel()

    def _record_name(self, database: str) -> str:
        if database in FIELDS:
            return self._domain
        # freshclam asks <db>.cvd.clamav.net for databases that the primary record has not.
        return f"{database}.{self._domain.partition('.')[2]}"

    async def _look_up(self, name: str, database: str) -> None:
        self._next_look[name] = time.monotonic() + min(self._refresh, _RETRY)
        try:
            text = await self._query(name)
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
        for found, version in versions.items():
            if self._known.get(found, (0, 0.0))[0] != version:
                logger.info("DNS advertises %s version %d.", found, version)
            self._known[found] = (version, time.time())
            self._save(found, [version, self._known[found][1]])

    async def _query(self, name: str) -> str:
        """The first character-string of the first TXT record: all that freshclam looks at."""
        resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(address, port) for address, port in self._nameservers
            ]
        resolver.timeout = TIMEOUT
        answer = await resolver.resolve(f"{name}.", dns.rdatatype.TXT, lifetime=LIFETIME, search=False)
        for record in answer:
            return str(record.strings[0].decode("ascii"))
        raise ValueError("an answer without a record")


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
