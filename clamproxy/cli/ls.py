"""``clamproxy ls``."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from clamproxy.cache.store import Store
from clamproxy.cli.columns import table_text
from clamproxy.cli.common import (
    config_option,
    database_option,
    fail,
    opened_store,
    settings_of,
    shown_trouble,
    write_out,
)
from clamproxy.objects import ObjectId
from clamproxy.readable import shown_count, shown_size, shown_time

FEEDS = "feeds"
"""The directory of other feeds, below the cache directory; see `feeds.feed_store`."""

_HEADINGS = ("DATABASE", "KIND", "VERSION", "SIZE", "FETCHED", "BUILT")
_NUMBERS = (_HEADINGS.index("VERSION"), _HEADINGS.index("SIZE"))


@dataclass(frozen=True, slots=True)
class CachedObject:
    """What is known about a cached object without reading it."""

    object_id: ObjectId
    size: int
    """In bytes."""
    fetched_at: float
    """When it was fetched, or built here, in Unix seconds."""
    built_at: int | None
    """When ClamAV built it, in Unix seconds; None except for CVDs and CLDs."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.object_id.file_name,
            "database": self.object_id.database,
            "kind": str(self.object_id.kind),
            "version": self.object_id.version,
            "size": self.size,
            "fetched_at": self.fetched_at,
            "built_at": self.built_at,
        }


@click.command()
@config_option
@database_option("all cached ones")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(config: str | None, databases: tuple[str, ...], as_json: bool) -> None:
    """List the cached files, whether the proxy runs or not.

    FETCHED is when a file was fetched (or a CLD built here), BUILT is when ClamAV built that version;
    both are in this machine's time zone. For other feeds (feeds.hosts), only the number of files and
    their total size are shown.
    """
    settings = settings_of(config)
    directory = settings.cache.directory
    with opened_store(directory) as store:
        try:
            entries, feeds = entries_of(store, databases), feed_files(directory)
        except OSError as error:
            fail(shown_trouble(directory, error))
    total = sum(entry.size for entry in entries)
    if as_json:
        objects = [entry.to_json() for entry in entries]
        values = {"objects": objects, "count": len(objects), "bytes": total}
        values["feeds"] = {"count": feeds[0], "bytes": feeds[1]}
        click.echo(json.dumps(values, indent=2))
        return
    if entries:
        write_out(table_text([_HEADINGS, *map(_row, entries)], right=_NUMBERS))
    click.echo(f"{shown_count(len(entries), 'object')}, {shown_size(total)}")
    if not databases and (settings.feeds.hosts or feeds[0]):
        click.echo(f"Other feeds: {shown_count(feeds[0], 'file')}, {shown_size(feeds[1])}")


def entries_of(store: Store, databases: Collection[str] = ()) -> list[CachedObject]:
    """What is cached, sorted by database, kind and version; objects deleted in the meantime are left out.

    Args:
        databases: only these; all if empty.
    """
    entries = []
    for object_id in store.sizes():
        if databases and object_id.database not in databases:
            continue
        published = store.open(object_id)
        if published is not None:
            with published:
                metadata = published.metadata
                entries.append(CachedObject(object_id, metadata.size, metadata.fetched_at, metadata.built_at))
    return sorted(entries, key=_order)


def feed_files(directory: Path) -> tuple[int, int]:
    """How many files of other feeds are stored, and their total size in bytes.

    Args:
        directory: the cache directory.

    Raises:
        OSError: they can't be examined.
    """
    count, total = 0, 0
    for path in (directory / FEEDS).glob("*.*"):
        if path.suffix == ".json":
            count += 1
        elif path.suffix != ".part":
            with suppress(FileNotFoundError):  # just replaced
                total += path.stat().st_size
    return count, total


def _order(entry: CachedObject) -> tuple[str, str, int]:
    object_id = entry.object_id
    return object_id.database, object_id.kind, object_id.version


def _row(entry: CachedObject) -> tuple[str, ...]:
    object_id, fetched, built = entry.object_id, shown_time(entry.fetched_at), shown_time(entry.built_at)
    return (
        object_id.database,
        str(object_id.kind),
        str(object_id.version),
        shown_size(entry.size),
        fetched,
        built,
    )
