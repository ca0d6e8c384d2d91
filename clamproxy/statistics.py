"""Statistics: exact counters that survive a restart, and the figures about the whole gateway."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from clamproxy.bucket.bucket import KINDS
from clamproxy.cache.store import Store
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.messages import FROM_CACHE, Result
from clamproxy.objects import Kind
from clamproxy.origin.budget import PER_FILE, WINDOW
from clamproxy.releases.holds import HoldsError, read_holds
from clamproxy.releases.stuck import stuck_patches
from clamproxy.sharing.site import CONDITION, TOPIC
from clamproxy.threads import Writer

FLUSH_DELAY = 0.1
"""Seconds until a change is on disk, where `clamproxy stats` reads it."""
FLUSH_DELAY_AFTER_ERROR = 10.0
"""Seconds until the next attempt while writing fails, for example because the disk is full."""

LONGEST_SILENCE = 86400.0
"""For this many seconds, what DNS has said counts more than the origin's own header."""

COUNTER_OF_RESULT = {
    Result.HIT: "hits",
    Result.MISS: "misses",
    Result.COLLAPSED: "collapsed",
    Result.STALE: "stale",
    Result.NEGATIVE: "negative",
    Result.REFUSED: "refused",
    Result.PASSED: "passed",
    Result.ERROR: "errors",
}
FEED_COUNTERS = (
    "feed_requests",
    "feed_hits",
    "feed_errors",
    "feed_bytes_served",
    "feed_upstream_requests",
    "feed_upstream_bytes",
)
_STORE_REQUESTS, _STORE_FAILURES = "fleet_store_requests/{}", "fleet_store_failures/{}"
_STORE_NOTE = f"{TOPIC}/{CONDITION}"
FILE_COUNTERS = ("file_requests", "file_downloads", "file_bytes_served")
"""For the site's own files."""
COUNTERS = ("requests", *COUNTER_OF_RESULT.values(), "bytes_served", "upstream_requests", "upstream_bytes")


class Stats:
    """Counts, from any thread, and writes the amounts to the store soon after."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pending: defaultdict[str, int] = defaultdict(int)
        self._delay = FLUSH_DELAY

    def count_request(self, result: Result, length: int) -> None:
        """Count a request that was answered with `length` bytes of content."""
        self._add(("requests", 1), (COUNTER_OF_RESULT[result], 1), ("bytes_served", length))

    def count_feed_request(self, result: Result, length: int) -> None:
        """Count a request to another feed's host; these are counted separately."""
        is_hit, is_error = result in FROM_CACHE, result is Result.ERROR
        outcome = ("feed_hits", is_hit), ("feed_errors", is_error)
        self._add(("feed_requests", 1), *outcome, ("feed_bytes_served", length))

    def count_file_request(self, length: int) -> None:
        """Count a request for one of the site's own files, answered with `length` bytes of content."""
        self._add(("file_requests", 1), ("file_downloads", length > 0), ("file_bytes_served", length))

    def count_upstream(self, requests: int, length: int) -> None:
        """Count requests to the origin, or bytes of content from it."""
        self._add(("upstream_requests", requests), ("upstream_bytes", length))

    def count_fleet_store(self, kind: str, is_failure: bool) -> None:
        """Count a call to the object store, of one of its kinds."""
        self._add((_STORE_REQUESTS.format(kind), 1), (_STORE_FAILURES.format(kind), is_failure))

    def count_feed_upstream(self, requests: int, length: int) -> None:
        """Count requests to a feed, or bytes from it."""
        self._add(("feed_upstream_requests", requests), ("feed_upstream_bytes", length))

    def flush(self) -> None:
        """Hand what has been counted to the writer."""
        with self._lock:
            amounts = {key: n for key, n in self._pending.items() if n}
            self._pending.clear()
        if amounts:
            self._writer.submit(lambda: self._write(amounts))

    def _write(self, amounts: dict[str, int]) -> None:
        is_written = False
        try:
            is_written = self._store.add_to_counters(amounts)
        finally:
            self._delay = FLUSH_DELAY if is_written else FLUSH_DELAY_AFTER_ERROR
            if not is_written:
                self._add(*amounts.items())

    def _add(self, *amounts: tuple[str, int]) -> None:
        pending = self._pending
        with self._lock:
            first = not pending
            for name, amount in amounts:
                pending[name] += amount
        if first and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.call_later, self._delay, self.flush)


def snapshot(store: Store) -> dict[str, Any]:
    """The statistics in the store, whether or not the proxy is running. Blocks.

    Returns:
        The values that `clamproxy stats --json` prints. Times are in Unix seconds, sizes in bytes.
    """
    counters = store.counters()
    sizes = store.sizes()
    advertised = advertised_versions(store)
    cached = {object_id.database for object_id in sizes if object_id.kind is Kind.CVD}
    cooldowns = {
        key: value for key, value in store.notes("cooldown/").items() if _ends_after(value, time.time())
    }
    return {
        **{name: counters.get(name, 0) for name in (*COUNTERS, *FEED_COUNTERS, *FILE_COUNTERS)},
        **_ratios(counters),
        "objects": len(sizes),
        "cache_bytes": sum(sizes.values()),
        "quarantined": len(store.quarantined()),
        "storage": _storage(store),
        "databases": {
            database: {
                "advertised": advertised.get(database),
                "cached": store.newest_version(database),
                "reached": store.reached_version(database),
            }
            for database in sorted(cached | set(advertised))
        },
        "cooldown_until": max((value["until"] for value in cooldowns.values()), default=None),
        "cooldowns": cooldowns,
        "stuck_patches": {
            name: asdict(trouble) for name, trouble in stuck_patches(store, time.time()).items()
        },
        "budget": _budget(store),
        "holds": _holds(store),
        "fleet_store": _fleet_store(store, counters),
    }


def _fleet_store(store: Store, counters: Mapping[str, int]) -> dict[str, Any]:
    """Calls to the object store, and its condition as the gateway last noted it; nulls if there is none."""
    noted = store.note(_STORE_NOTE)
    known = noted if isinstance(noted, dict) else {}
    return {
        **{key: known.get(key) for key in ("url", "failure", "since")},
        "requests": {kind: counters.get(_STORE_REQUESTS.format(kind), 0) for kind in KINDS},
        "failures": {kind: counters.get(_STORE_FAILURES.format(kind), 0) for kind in KINDS},
    }


def _holds(store: Store) -> dict[str, Any]:
    """The holds in force, by database; see `clamproxy.releases.holds.Hold`."""
    try:
        return {name: asdict(one) for name, one in read_holds(store.records.directory).in_force.items()}
    except HoldsError:
        return {}  # the gateway logs that, and /readyz says so


def _storage(store: Store) -> dict[str, Any]:
    """What is wrong with each disk; None if nothing is."""
    cache, records = store.condition.state, store.records.condition.state
    return {
        "cache": None if cache is None else {"state": str(cache.trouble), "reason": cache.reason},
        "records": None if records is None else {"state": str(records.trouble), "reason": records.reason},
        "index": store.index_damage,
    }


def _ratios(counters: Mapping[str, int]) -> dict[str, float | None]:
    """Hit ratios from 0 to 1; None while there is nothing to divide by.

    By requests: responses that cost the origin nothing, divided by these plus misses and errors. Requests
    in which the cache has no say, refused or passed through, are left out. By bytes: the share of the
    bytes served that was not fetched for it; 0 if more was fetched, in advance of the machines.
    """
    free = sum(counters.get(name, 0) for name in map(COUNTER_OF_RESULT.__getitem__, FROM_CACHE))
    asked = free + counters.get("misses", 0) + counters.get("errors", 0)
    served, fetched = counters.get("bytes_served", 0), counters.get("upstream_bytes", 0)
    return {
        "hit_ratio": free / asked if asked else None,
        "byte_hit_ratio": max(0.0, 1 - fetched / served) if served else None,
    }


def advertised_versions(store: Store) -> dict[str, int]:
    """The version of each database that is known to be advertised. Blocks.

    By DNS; if DNS isn't asked or has been silent for a day, by the header of the CVD at the origin.
    """
    versions = {database: _probed_version(note) for database, note in store.notes("head/").items()}
    for database, note in store.notes("advertised/").items():
        match note:
            case [int(version), int() | float() as learnt_at]:
                is_news = abs(time.time() - learnt_at) < LONGEST_SILENCE
                versions[database] = version if is_news else max(version, versions.get(database) or 0)
    return {database: version for database, version in versions.items() if version}


def _probed_version(note: Any) -> int | None:
    try:
        return CvdHeader.parse(note["header"].encode("ascii")).version
    except (AttributeError, InvalidObject, KeyError, TypeError, ValueError):
        return None


def _ends_after(cooldown: Any, now: float) -> bool:
    match cooldown:
        case {"until": int() | float() as until}:
            return until > now
    return False


def _budget(store: Store) -> dict[str, Any]:
    """How often the origin was asked for each file within the last hour, by path."""
    now = time.time()
    used = {
        path: sum(1 for at in times if isinstance(at, int | float) and now - at < WINDOW)
        for path, times in store.notes("budget/").items()
        if isinstance(times, list)
    }
    return {path: {"used": n, "limit": PER_FILE} for path, n in sorted(used.items()) if n}
