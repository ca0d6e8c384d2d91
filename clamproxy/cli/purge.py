"""``clamproxy purge``."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import click

from clamproxy.cache.store import Store
from clamproxy.cli.common import (
    config_option,
    database_option,
    fail,
    is_asked_at_terminal,
    opened_store,
    require_known,
    require_owner,
    settings_of,
    shown_trouble,
    tell,
)
from clamproxy.cli.ls import CachedObject, entries_of
from clamproxy.cli.parameters import duration
from clamproxy.inspection import Rejected, discard, quarantined
from clamproxy.objects import Kind, ObjectId
from clamproxy.readable import plain, shown_count, shown_size

_KINDS = {
    "cvd": {Kind.CVD},
    "cdiff": {Kind.CDIFF},
    "sign": {Kind.CVD_SIGN, Kind.CDIFF_SIGN},
    "cld": {Kind.CLD},
}
_RANKS = {Kind.CVD: 0, Kind.CVD_SIGN: 0, Kind.CLD: 1, Kind.CDIFF: 2, Kind.CDIFF_SIGN: 2}
"""The order in which kinds are deleted; each object is followed by its signature."""
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@click.command()
@config_option
@database_option("all cached ones")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(list(_KINDS)),
    help="Only this kind; can be given more than once. Default: all.",
)
@click.option(
    "--older-than",
    metavar="AGE",
    callback=duration("a duration such as 30d"),
    help="Only files fetched longer ago than this, such as 30d.",
)
@click.option("--quarantine", is_flag=True, help="Delete rejected files instead of cached ones.")
@click.option("--dry-run", is_flag=True, help="Only print the names of the files that would be deleted.")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
def purge(
    config: str | None,
    databases: tuple[str, ...],
    kinds: tuple[str, ...],
    older_than: float | None,
    quarantine: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete cached files.

    The signature of a CVD or patch is deleted with it. The proxy may be running: clients that are
    reading a file get all of it, and a file that is asked for later is fetched again. Counters,
    cool-downs and interrupted transfers are not deleted. With fleet_store, this is about the cache of
    this gateway only: what is asked for later comes from the object store.
    """
    settings = settings_of(config)
    directory = settings.cache.directory
    require_owner(directory)
    wanted = {kind for name in kinds or _KINDS for kind in _KINDS[name]}
    before = time.time() - (older_than or 0.0)
    with opened_store(directory) as store:
        try:
            if quarantine:
                files = [one for one in quarantined(store) if _matches(one, databases, wanted, before)]
                _purge_quarantine(files, dry_run=dry_run, yes=yes)
                return
            require_known(databases, settings, store.databases())
            leaving = chosen(entries_of(store), databases, wanted, before)
            if _purge_objects(store, leaving, dry_run=dry_run, yes=yes) and settings.fleet_store is not None:
                tell("The object store keeps its copies; what is needed again comes from there.")
        except OSError as error:
            fail(shown_trouble(directory, error))


def chosen(
    entries: Iterable[CachedObject], databases: Collection[str], kinds: Collection[Kind], before: float
) -> dict[ObjectId, int]:
    """What to delete, in this order, with sizes in bytes. Pure.

    A CVD goes before the patches that follow it, and the patches go from the oldest on. This way, the
    proxy never finds a patch missing, and fetches it again, in the middle of a purge.

    Args:
        entries: everything that is cached.
        databases: only these; all if empty.
        kinds: only these, and their signatures.
        before: only what was fetched until then, in Unix seconds.
    """
    sizes = {entry.object_id: entry.size for entry in entries}
    matching = {
        entry.object_id
        for entry in entries
        if entry.object_id.kind in kinds
        and entry.fetched_at <= before
        and (not databases or entry.object_id.database in databases)
    }
    with_signatures = matching | {one for one in sizes if one.kind.is_signature and one.signed in matching}
    ordered = sorted(with_signatures, key=lambda one: (one.database, _RANKS[one.kind], one.version, one.kind))
    return {object_id: sizes[object_id] for object_id in ordered}


def _purge_objects(store: Store, leaving: dict[ObjectId, int], *, dry_run: bool, yes: bool) -> bool:
    """Delete objects, if that is meant; returns whether they were deleted."""
    counts = Counter(str(object_id.kind) for object_id in leaving)
    content = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    what = f"{shown_count(len(leaving), 'object')} ({content}), {shown_size(sum(leaving.values()))}"
    names = [object_id.file_name for object_id in leaving]
    if not _is_meant(names, what, dry_run=dry_run, yes=yes):
        return False
    with _uninterrupted():
        for object_id in leaving:
            store.drop(object_id)
    tell(f"Deleted {what}.")
    return True


def _purge_quarantine(files: list[Rejected], *, dry_run: bool, yes: bool) -> None:
    what = f"{shown_count(len(files), 'rejected file')}, {shown_size(sum(one.size for one in files))}"
    if not _is_meant([one.path.name for one in files], what, dry_run=dry_run, yes=yes):
        return
    with _uninterrupted():
        for one in files:
            discard(one)
    tell(f"Deleted {what}.")


def _is_meant(names: list[str], what: str, *, dry_run: bool, yes: bool) -> bool:
    """Whether there is something to delete, and the operator wants to delete it."""
    if not names:
        tell("there is nothing to delete.")
        return False
    if dry_run:
        for name in names:
            click.echo(plain(name))
        tell(f"{what} would be deleted.")
        return False
    if yes:
        return True
    if not is_asked_at_terminal():
        fail(f"{what} would be deleted; use --yes, as the standard input is not a terminal to ask at.")
    click.confirm(f"Delete {what}?", abort=True, err=True)
    return True


def _matches(one: Rejected, databases: Collection[str], kinds: Collection[Kind], before: float) -> bool:
    try:
        object_id = ObjectId.parse(one.name)
    except ValueError:
        return not databases and len(kinds) == len(Kind) and one.at <= before
    known = not databases or object_id.database in databases
    return known and object_id.kind in kinds and one.at <= before


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay signals that would end the process until the block is done, which takes only moments."""
    # Not by a signal mask, which belongs to one thread: another thread would receive the signal.
    caught: list[int] = []
    before = {number: signal.signal(number, lambda got, _: caught.append(got)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
