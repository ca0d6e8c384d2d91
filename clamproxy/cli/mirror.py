"""``clamproxy mirror``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click

from clamproxy.cache.store import Store
from clamproxy.cli.common import (
    cached_databases,
    config_option,
    database_option,
    fail,
    keys_of,
    opened_store,
    require_known,
    require_owner,
    settings_of,
    tell,
)
from clamproxy.cli.fetching import NOT_DELIVERED, default_databases
from clamproxy.cli.fetching import fetch_releases as _fetch
from clamproxy.config.conflicts import TIDIED
from clamproxy.config.settings import Settings
from clamproxy.formats.version_record import compose
from clamproxy.mirroring import MirrorError, MirrorReport, update_mirror
from clamproxy.readable import shown_count, shown_error
from clamproxy.releases.holds import HoldsError
from clamproxy.releases.limits_in_force import ceilings_of
from clamproxy.state import state_directory


def _require_apart(directory: Path, cache: Path) -> None:
    """End the process rather than put a mirror among the cache's own files."""
    if directory == cache or any(directory.is_relative_to(cache / name) for name in TIDIED):
        fail(f"{directory}: this is in the cache; name a directory of its own")


def _directory(_context: click.Context, _parameter: click.Parameter, value: str) -> Path:
    if not value:  # which would be the working directory
        raise click.BadParameter("it is empty.")
    return Path(value)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False), callback=_directory)
@database_option("main, daily, bytecode and all cached ones")
@click.option(
    "--keep-cdiffs",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many patches to keep of each database; default: cache.keep_cdiffs.",
)
@click.option("--cached-only", is_flag=True, help="Use what is cached, and fetch nothing.")
@config_option
def mirror(
    directory: Path,
    databases: tuple[str, ...],
    keep_cdiffs: int | None,
    cached_only: bool,
    config: str | None,
) -> None:
    """Fill DIR for a web server, in the layout of cvdupdate.

    First, the newest CVDs are fetched, unless --cached-only or upstream.offline is set. If the origin
    doesn't deliver them, DIR gets what is cached, and the exit code is 2.
    """
    settings = settings_of(config, creates=True)
    _require_apart(*(Path(os.path.realpath(each)) for each in (directory, settings.cache.directory)))
    require_owner(settings.cache.directory)
    asks = not (cached_only or settings.upstream.offline)
    with opened_store(settings.cache.directory, make=asks) as store:
        cached = cached_databases(store)
    require_known(databases, settings, cached)
    wanted = list(databases or default_databases(settings, cached))
    failures = _fetch(settings, wanted) if asks else {}
    for database, reason in failures.items():
        tell(f"Warning: {database} could not be updated: {reason}.")
    keep = settings.cache.keep_cdiffs if keep_cdiffs is None else keep_cdiffs
    keys = keys_of(settings)
    with opened_store(settings.cache.directory, state=state_directory(settings), keys=keys) as store:
        try:
            ceilings = ceilings_of(store, settings.releases, time.time())
            dns_text = _dns_text(settings, store, wanted, ceilings)
            report = update_mirror(store, directory, wanted, keep, dns_text, ceilings)
        except (HoldsError, MirrorError) as error:
            fail(str(error))
        except OSError as error:
            fail(shown_error(error))
    _tell_report(report)
    sys.exit(NOT_DELIVERED if failures else 0)


def _dns_text(settings: Settings, store: Store, databases: list[str], ceilings: Mapping[str, int]) -> str:
    """What DNS would advertise if the mirror were the CDN."""
    reached = {database: store.reached_version(database, ceilings.get(database)) for database in databases}
    versions = {database: version for database, version in reached.items() if version is not None}
    template = store.note(f"record/{settings.versions.domain}")
    return compose(versions, template if isinstance(template, str) else None, time.time())


def _tell_report(report: MirrorReport) -> None:
    for warning in report.warnings:
        tell(f"Warning: {warning}")
    versions = ", ".join(f"{database} {version}" for database, version in report.versions.items())
    tell(f"{versions}; {shown_count(len(report.added), 'file')} added, {len(report.removed):,} removed.")
