"""``clamproxy prefetch``."""

from __future__ import annotations

import sys

import click

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
from clamproxy.cli.renewal import NOT_DELIVERED, default_databases, fetch_releases


@click.command()
@config_option
@database_option("main, daily, bytecode and all that are cached")
def prefetch(config: str | None, databases: tuple[str, ...]) -> None:
    """Fetch the newest version of each database: patches, the whole CVD, and the signatures.

    What is here already is not fetched again. The proxy may run meanwhile: it serves at once what
    was fetched, and a file that it is fetching itself is waited for. If no freshclam has used the
    cache yet, upstream.user_agent has to be set. The exit code is 2 if the origin doesn't deliver
    everything.
    """
    settings = settings_of(config)
    directory = settings.cache.directory
    require_owner(directory)
    if settings.upstream.offline:
        fail("upstream.offline is set: nobody is asked.")
    with opened_store(directory, make=True) as store:
        cached = cached_databases(store)
    require_known(databases, settings, cached)
    wanted = list(dict.fromkeys(databases)) or default_databases(settings, cached)
    failures = fetch_releases(settings, wanted)
    with opened_store(directory) as store:
        for database in wanted:
            version = store.newest_version(database)
            if version is not None:
                reached = store.reached_version(database)
                patches = f", patches up to {reached}" if reached != version else ""
                tell(f"{database}: CVD {version}{patches}.")
    for failure in failures:
        tell(failure)
    sys.exit(NOT_DELIVERED if failures else 0)
