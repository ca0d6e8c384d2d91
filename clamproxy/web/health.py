"""Whether clients should be sent to this gateway: the real reasons not to, and what else is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.config.units import MIB
from clamproxy.releases.limits_in_force import Limit, hold_problem, read_limits
from clamproxy.releases.stuck import stuck_patches
from clamproxy.site_files import Catalog
from clamproxy.storage.condition import Condition, free_bytes, look
from clamproxy.web.sources import Sources

LEAST_SPACE = 64 * MIB
"""Bytes that must be free on the disk: about one daily.cvd."""
RECENT = 600
"""How long a failed attempt counts as a sign that the origin can't be reached, in seconds."""
EARLIEST = 1_767_225_600
"""Start of the year 2026 in Unix seconds: no correct clock shows an earlier time."""
FUTURE = 86_400
"""If a database was built more than this many seconds in the future, the clock must be wrong."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong, one line for each problem."""

    reasons: tuple[str, ...] = ()
    """Reasons not to send clients here."""
    warnings: tuple[str, ...] = ()
    """Lesser problems: clients still get what they need."""


def prepare_check(sources: Sources) -> Callable[[], Health]:
    """A check of the gateway's present state, which makes no request but reads the disk.

    Returns:
        The function that carries it out; it blocks.
    """
    store, settings = sources.store, sources.settings()
    files, fleet_store, site_problem = sources.files(), sources.fleet_store(), sources.site_problem()

    def check() -> Health:
        now = time.time()
        with reading(store):
            limits = read_limits(store, settings.releases, now)
            offline = settings.upstream.offline
            return find_problems(
                store,
                offline=offline,
                now=now,
                files=files,
                limits=limits,
                fleet_store=fleet_store,
                site_problem=site_problem,
            )

    return check


def find_problems(
    store: Store,
    *,
    offline: bool,
    now: float,
    files: Catalog | None = None,
    limits: Sequence[Limit] = (),
    fleet_store: Mapping[str, Any] | None = None,
    site_problem: str | None = None,
) -> Health:
    """Look at the disk, the clock and the cache. Blocks.

    Args:
        offline: whether the origin is never asked.
        now: Unix seconds.
        files: the site's own files.
        limits: the holds and delays in force.
        fleet_store: the object store, as in status.json; None if there is none.
        site_problem: see `Sources`.
    """
    built = {name: built_at(store, name) for name in sorted(store.databases())}
    stuck = stuck_patches(store, now)
    unreachable = None if offline else _unreachable(store.note("cooldown/origin"), now)
    reasons = _clock_problems(built, now)
    is_empty = not any(store.newest_version(name) for name in built)
    # With something in the cache, a disk that can't be written to is only a warning: cached objects are
    # served all the same, and small files are passed on.
    warnings = _shown_state(store.records.condition)
    (reasons if is_empty else warnings).extend(_disk_problems(store))
    if is_empty and offline:
        reasons.append(
            "upstream.offline is true and no database has been imported, so there is nothing to serve"
        )
    elif is_empty and unreachable:
        reasons.append(f"no database is cached, and the origin can't be reached: {unreachable}")
    elif unreachable:
        warnings.append(f"the origin can't be reached, so clients get what is cached: {unreachable}")
    warnings += [
        f"{name} failed verification {trouble.failures} times, so machines are told to take the whole CVD"
        for name, trouble in stuck.items()
    ]
    warnings += files.problems() if files is not None else []
    warnings += _hold_problems(store, limits, now)
    if fleet_store is not None and fleet_store["failure"] is not None:
        since = f"degraded since {_shown(fleet_store['since'])}"
        warnings.append(
            f"{since}: the object store can't be used, so this gateway works alone: {fleet_store['failure']}"
        )
    warnings += [f"degraded: {site_problem}"] if site_problem is not None else []
    return Health(tuple(reasons), tuple(warnings))


def _hold_problems(store: Store, limits: Sequence[Limit], now: float) -> list[str]:
    problems = [problem] if (problem := hold_problem(store)) else []
    for limit in limits:
        problems += [forgotten] if (forgotten := limit.warning(now)) else []
        if store.newest_version(limit.database, limit.version) is None:
            problems.append(
                f"{limit.database} is held at version {limit.version}, of which nothing is cached any more, "
                "so new machines get none"
            )
    return [f"degraded: {problem}" for problem in problems]


def built_at(store: Store, database: str) -> int | None:
    """When the newest cached CVD of a database was built, in Unix seconds. Blocks."""
    newest = store.open_newest(database)
    if newest is None:
        return None
    with newest:
        return newest.metadata.built_at


@contextmanager
def reading(store: Store) -> Iterator[None]:
    """Release this thread's connection to the cache's index afterwards."""
    try:
        yield
    finally:
        store.disconnect()


def _disk_problems(store: Store) -> list[str]:
    problems = _shown_state(store.condition)
    if store.index_damage is not None:
        problems.append(f"degraded: the index of the cache is damaged: {store.index_damage}")
    if store.condition.state is not None:
        return problems
    directory = store.directory
    try:
        look(store.partials)
        free = free_bytes(directory)
        if free < LEAST_SPACE:
            problems.append(f"degraded: the disk is nearly full: {free // MIB} MiB left at {directory}")
    except OSError as error:
        problems.append(f"degraded: {directory} can't be written to: {error.strerror or error}")
    return problems


def _shown_state(condition: Condition) -> list[str]:
    state = condition.state
    return [] if state is None else [f"degraded since {_shown(state.since)}: {state.reason}"]


def _shown(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def _clock_problems(built: dict[str, int | None], now: float) -> list[str]:
    shown = _shown(now)
    if now < EARLIEST:
        return [f"the clock is wrong, so certificates and version records can't be checked: {shown}"]
    late = [name for name, at in built.items() if at is not None and at > now + FUTURE]
    if late:
        return [f"the clock is wrong: it shows {shown}, but {late[0]} was built after that"]
    return []


def _unreachable(cooldown: Any, now: float) -> str | None:
    """Why the origin could not be reached, if that is the latest that is known about it."""
    match cooldown:
        case {"failure": "unreachable", "reason": str(reason), "until": int() | float() as until}:
            return reason if abs(now - until) < RECENT else None
    return None
