"""``clamproxy hold`` and ``clamproxy release``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from clamproxy.cache.store import Store
from clamproxy.cli.common import (
    cached_databases,
    config_option,
    fail,
    opened_store,
    require_cache,
    require_known,
    require_owner,
    settings_of,
    shown_trouble,
    tell,
)
from clamproxy.cli.parameters import parsed_by
from clamproxy.config.settings import Settings
from clamproxy.config.units import DATABASE
from clamproxy.fleet import UnreadableFleetError, read_fleet
from clamproxy.fleet.machine import spread
from clamproxy.formats.signatures import CLAMAV_KEYS
from clamproxy.objects import MAX_VERSION
from clamproxy.readable import plain, shown_count, shown_time, shown_user
from clamproxy.releases import holds
from clamproxy.releases.holds import Hold, HoldsError
from clamproxy.releases.limits_in_force import Limit, ceilings_of, hold_problem, read_limits
from clamproxy.releases.lineage import Lineages
from clamproxy.releases.site_holds import synchronize
from clamproxy.state import directory_for_changes, move_choices, state_directory
from clamproxy.statistics import advertised_versions


@click.command()
@config_option
@click.argument("database", metavar="[DATABASE", required=False, callback=parsed_by(DATABASE.parse))
@click.argument("version", metavar="[VERSION]]", required=False, type=click.IntRange(1, MAX_VERSION))
@click.option("--why", metavar="TEXT", default="", help="The reason, for the log and the status page.")
@click.option("--json", "as_json", is_flag=True, help="With no DATABASE: print JSON.")
def hold(config: str | None, database: str | None, version: int | None, why: str, as_json: bool) -> None:
    """Hold a database at a version: the brake for a bad release.

    From then on, no machine gets a newer version, until `clamproxy release` lifts the hold. Machines that
    are behind still get the held version; machines that have a newer one keep it. Without VERSION, the
    database is held at the version that machines get at this moment. Without DATABASE, lists what is
    held or delayed.

    A running proxy notices within a second, and goes on fetching new versions. With fleet_store, all
    gateways of the site hold the database, within seconds.
    """
    settings = settings_of(config)
    now = time.time()
    with opened_store(settings.cache.directory, state=state_directory(settings)) as store:
        holds.wait_for_repair(state_directory(settings))
        problem = hold_problem(store)
        if problem is not None and (database is None or version is None):
            fail(problem)
        if database is None:
            _list(read_limits(store, settings.releases, now), now, as_json=as_json)
            return
        if as_json:
            raise click.UsageError("--json is for the list: give no DATABASE.")
        require_known([database], settings, cached_databases(store))
        chosen = _chosen(store, settings, database, version)
        new = holds.shortened(Hold(chosen, now, _user(), why))
        directory = _records(settings)
        trouble = _synchronize(settings)
        try:
            former = holds.hold(directory, database, new)
        except HoldsError as error:
            fail(str(error))
        if trouble is None or problem is not None:
            trouble = _synchronize(settings)
        if problem is not None and (settings.fleet_store is None or trouble is not None):
            tell(f"Warning: {problem.partition(';')[0]}; whatever else was held no longer is.")
        instead = f" (it was held at {former.version})" if former is not None else ""
        tell(f"{database} is held at version {chosen} from now on{_where(settings, trouble)}{instead}.")
        _tell_of_trouble(trouble)
        _tell_of_newer(settings, database, chosen)


@click.command()
@config_option
@click.argument("database", metavar="DATABASE", callback=parsed_by(DATABASE.parse))
def release(config: str | None, database: str) -> None:
    """Lift the hold of a database.

    Machines get the newest version again. A running proxy notices within a second. With fleet_store, the
    hold is lifted at all gateways of the site, within seconds.
    """
    settings = settings_of(config)
    directory = _records(settings)
    holds.wait_for_repair(directory)
    trouble = _synchronize(settings)
    try:
        lifted = holds.release(directory, database, _user(), time.time())
    except HoldsError as error:
        fail(str(error))
    if lifted is None:
        fail(f"{database} is not held{'' if trouble is None else ' here'}.")
    since = shown_time(lifted.since)
    if trouble is None:
        trouble = _synchronize(settings)
    where = _where(settings, trouble)
    tell(f"{database} is no longer held{where}; it was held at version {lifted.version} since {since}.")
    _tell_of_trouble(trouble)


def _records(settings: Settings) -> Path:
    """The directory of the holds, made if there was no start yet; ends the process if there is no cache."""
    cache = settings.cache.directory
    require_owner(state_directory(settings))
    try:
        require_cache(cache)
        directory = directory_for_changes(settings)
        move_choices(directory, cache)
    except OSError as error:
        fail(shown_trouble(cache, error))
    except HoldsError as error:
        fail(str(error))
    return directory


def _synchronize(settings: Settings) -> str | None:
    """Make what is held here and in the rest of the site the same; returns why that wasn't possible."""
    return synchronize(settings.fleet_store, state_directory(settings))


def _where(settings: Settings, trouble: str | None) -> str:
    """For which gateways that is so, in words; nothing if there is only this one."""
    if settings.fleet_store is None:
        return ""
    return " (all gateways of the site)" if trouble is None else " (this gateway)"


def _tell_of_trouble(trouble: str | None) -> None:
    if trouble is not None:
        tell(
            f"Warning: the other gateways of the site don't know yet: {trouble}. "
            "A running proxy tells them as soon as the object store can be used."
        )


def _chosen(store: Store, settings: Settings, database: str, version: int | None) -> int:
    """The version to hold; ends the process if clients can't be given it whole."""
    if version is None:
        ceilings = ceilings_of(store, settings.releases, time.time())
        current = _served(store, settings, database, ceilings.get(database))
        if current is None:
            fail(f"no version of {database} is cached, so there is none to hold.")
        return current
    newest = max(advertised_versions(store).get(database, 0), store.reached_version(database) or 0)
    if version > newest:
        known = f"the newest is {newest}" if newest else "none is"
        fail(f"{database} {version} can't be held: that version isn't known ({known}).")
    served = _served(store, settings, database, version)
    if served != version:
        instead = "no older version is cached either" if served is None else f"{served} can be held"
        fail(
            f"{database} {version} can't be held: the cache has neither its CVD nor all patches that lead "
            f"to it; {instead}."
        )
    return version


def _served(store: Store, settings: Settings, database: str, ceiling: int | None) -> int | None:
    """The version that clients would get under a ceiling, from what is cached and proven."""
    proven = Lineages(store, CLAMAV_KEYS).read(database, ceiling=ceiling)
    if proven is None:
        return None
    return proven.lineage.reached if settings.delta.enabled else proven.lineage.base


def _tell_of_newer(settings: Settings, database: str, version: int) -> None:
    if not settings.fleet.enabled:
        return
    try:
        found = spread(read_fleet(state_directory(settings), {}, time.time()), database, version)
    except UnreadableFleetError:
        return
    if found.newer:
        have = "has" if found.newer == 1 else "have"
        tell(
            f"{shown_count(found.newer, 'machine')} already {have} a newer version, and will keep it; "
            "see `clamproxy ignore` for signatures that do harm there."
        )


def _list(limits: list[Limit], now: float, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([limit.to_json() for limit in limits], indent=2))
        return
    if not limits:
        tell("nothing is held or delayed.")
    for limit in limits:
        click.echo(plain(limit.describe(now)))


def _user() -> str:
    """Who runs this command: with sudo, the user who called it."""
    name = os.environ.get("SUDO_USER") or _login()
    return name if name.isprintable() and len(name) <= 64 else str(os.getuid())


def _login() -> str:
    try:
        return os.getlogin()
    except OSError:  # no terminal
        return shown_user(os.getuid())
