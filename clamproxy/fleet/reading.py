"""Reads the fleet for commands and pages, whether or not the proxy is running. Blocks."""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.config.labels import NO_LABELS, Labels
from clamproxy.config.settings import Settings
from clamproxy.fleet import trend
from clamproxy.fleet.machine import Database, Machine, worst_first
from clamproxy.fleet.observer import Holding
from clamproxy.fleet.story import Story
from clamproxy.fleet.support import is_end_of_life
from clamproxy.fleet.table import FILE_NAME, MachineRow, Release, Rows, reading
from clamproxy.releases.limits_in_force import read_limits
from clamproxy.statistics import advertised_versions


class UnreadableFleetError(OSError):
    """The table of clients exists but can't be read; the text is one line."""


def has_table(directory: Path) -> bool:
    """Whether the table was ever created in this state directory."""
    return (directory / FILE_NAME).exists()


def read_fleet(
    directory: Path, advertised: Mapping[str, int], now: float, labels: Labels = NO_LABELS
) -> list[Machine]:
    """Every machine in the table, worst first; none if there is no table. Blocks for some 100 ms.

    Args:
        directory: the state directory.
        advertised: the current version of each database, from `advertised_to_clients`.
        now: Unix seconds.
        labels: names and groups of machines.

    Raises:
        UnreadableFleetError: the table can't be read.
    """
    with _reading(directory) as rows:
        if rows is None:
            return []
        history = ReleaseHistory(rows.releases(), advertised, now)
        names, clones = rows.names.known(), rows.stories.clones(now)
        return worst_first(_machine(row, history, now, labels, names, clones) for row in rows.all())


def read_machine(
    directory: Path, uuid: str, advertised: Mapping[str, int], now: float, labels: Labels = NO_LABELS
) -> tuple[list[Machine], list[Story], ReleaseHistory]:
    """The machine with a UUID and its stories at each of its addresses, and when each version came out.

    Args:
        directory, advertised, now, labels: as for `read_fleet`.

    Raises:
        UnreadableFleetError: the table can't be read.
    """
    with _reading(directory) as rows:
        if rows is None:
            return [], [], ReleaseHistory((), advertised, now)
        history = ReleaseHistory(rows.releases(), advertised, now)
        names, clones = rows.names.known(), rows.stories.clones(now)
        machines = [_machine(row, history, now, labels, names, clones) for row in rows.of(uuid)]
        return machines, rows.stories.of(uuid), history


def read_trend(directory: Path, now: float) -> dict[str, Any]:
    """The share of machines that were up to date, as in status.json. Blocks.

    Raises:
        UnreadableFleetError: the table can't be read.
    """
    with _reading(directory) as rows:
        return trend.to_json([] if rows is None else rows.shares.until(trend.hour_of(now)), now)


@contextmanager
def _reading(directory: Path) -> Iterator[Rows | None]:
    try:
        with reading(directory) as rows:
            yield rows
    except (sqlite3.Error, ValueError) as error:
        raise UnreadableFleetError(f"{FILE_NAME}: {error}") from error


def advertised_to_clients(store: Store, settings: Settings) -> dict[str, int]:
    """The version of each database that clients can be expected to have. Takes milliseconds.

    That is the version that DNS advertises. Offline it is what has been imported, as no client can have
    anything newer. While a database is held, or its releases are delayed, it is the version shown to them.

    Args:
        store: the cache, with its records.
    """
    versions = advertised_versions(store)
    if settings.upstream.offline:
        reached = {name: store.reached_version(name) for name in store.databases()}
        versions = {name: version for name, version in reached.items() if version is not None}
    limits = read_limits(store, settings.releases, time.time())
    ceilings = {limit.database: limit.version for limit in limits}
    return {name: min(version, ceilings.get(name, version)) for name, version in versions.items()}


class ReleaseHistory:
    """When each version of each database came out.

    That is its build time: a machine is behind since the release, not since the gateway heard of it. If
    the build time is unknown, it is the time when the version was first seen advertised.

    Args:
        releases: all known releases, oldest version first.
        advertised: the current version of each database.
        now: Unix seconds; later times come from a wrong clock and are replaced by it.
    """

    def __init__(self, releases: Iterable[Release], advertised: Mapping[str, int], now: float) -> None:
        self._advertised = advertised
        self._versions: dict[str, list[int]] = {}
        self._came_out: dict[str, list[float]] = {}
        for release in releases:
            times = [at for at in (release.built_at, release.first_seen) if at is not None]
            if times:
                self._versions.setdefault(release.database, []).append(release.version)
                self._came_out.setdefault(release.database, []).append(min(*times, now))

    def came_out(self, database: str, version: int) -> float | None:
        """When a version came out, in Unix seconds; None if that is unknown."""
        versions = self._versions.get(database, [])
        place = bisect_left(versions, version)
        return self._came_out[database][place] if versions[place : place + 1] == [version] else None

    def compare(self, database: str, holding: Holding) -> Database:
        """How up to date a machine's version is."""
        current = self._advertised.get(database)
        behind = None if current is None else max(0, current - holding.version)
        since = self._newer_since(database, holding.version) if behind else None
        return Database(holding.version, behind, since, holding.seen_at)

    def _newer_since(self, database: str, version: int) -> float | None:
        """When the first known version above this one came out."""
        versions = self._versions.get(database, [])
        following = bisect_right(versions, version)
        return self._came_out[database][following] if following < len(versions) else None


def _machine(
    row: MachineRow,
    history: ReleaseHistory,
    now: float,
    labels: Labels,
    names: Mapping[str, str],
    clones: Set[str],
) -> Machine:
    agent, known, label = row.agent, row.known, labels.of(row.agent.uuid, row.address)
    return Machine(
        uuid=agent.uuid,
        address=row.address,
        freshclam=agent.freshclam,
        os=agent.os,
        arch=agent.arch,
        first_seen=min(row.first_seen, now),
        last_seen=min(row.last_seen, now),
        end_of_life=is_end_of_life(agent.freshclam, now),
        databases={name: history.compare(name, holding) for name, holding in known.holdings.items()},
        last_error=known.last_error,
        name=label.name or names.get(row.address),
        group=label.group,
        cloned=agent.uuid in clones,
    )
