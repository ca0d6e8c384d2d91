"""``clamproxy prefetch``."""

from __future__ import annotations

import sys

import click

from clamproxy.cache.store import Store
from clamproxy.cli.common import (
    cached_databases,
    config_option,
    database_option,
    fail,
    opened_store,
    require_known,
    require_owner,
    settings_of,
    tell,
)
from clamproxy.cli.fetching import NOT_DELIVERED, default_databases, fetch_releases
from clamproxy.statistics import advertised_versions


@click.command()
@config_option
@database_option("main, daily, bytecode and all cached ones")
def prefetch(config: str | None, databases: tuple[str, ...]) -> None:
    """Fetch the newest version of each database.

    This includes patches, the whole CVD, and signatures. Files that are cached already are not fetched
    again. The proxy may be running: it serves each new file at once, and if it is fetching a file
    itself, this command waits for it. If no freshclam has used the cache yet, upstream.user_agent has
    to be set. The exit code is 2 if the origin doesn't deliver everything.
    """
    settings = settings_of(config, creates=True)
    directory = settings.cache.directory
    require_owner(directory)
    if settings.upstream.offline:
        fail("upstream.offline is set, so nothing can be fetched.")
    with opened_store(directory, make=True) as store:
        cached = cached_databases(store)
    require_known(databases, settings, cached)
    wanted = list(dict.fromkeys(databases)) or default_databases(settings, cached)
    failures = fetch_releases(settings, wanted)
    with opened_store(directory) as store:
        advertised = advertised_versions(store)
        for database in wanted:
            told = [_here(store, database)]
            if (reason := failures.get(database)) is not None:
                told.append(f"{_missing(store, database, advertised.get(database))}: {reason}")
            tell(f"{database}: {'; '.join(told)}.")
    sys.exit(NOT_DELIVERED if failures else 0)


def _here(store: Store, database: str) -> str:
    version, reached = store.newest_version(database), store.reached_version(database)
    if version is None:
        return "nothing is cached"
    return f"CVD {version}" + (f", patches up to {reached}" if reached != version else "")


def _missing(store: Store, database: str, advertised: int | None) -> str:
    reached = store.reached_version(database)
    if advertised is None:
        return (
            "the newest version is not known" if reached is None else "not known whether there is a newer one"
        )
    if reached is None or reached < advertised:
        return f"{advertised} is missing"
    return "a part of it is missing"
