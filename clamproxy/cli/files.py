"""``clamproxy files``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import click

from clamproxy.cli.columns import table_text
from clamproxy.cli.common import config_option, fail, settings_of, shown_trouble, write_out
from clamproxy.readable import shown_count, shown_error, shown_size, shown_time
from clamproxy.site_files import Catalog, SiteFile, State
from clamproxy.site_files.collecting import FoundFile, find_files
from clamproxy.site_files.file_names import in_order
from clamproxy.site_files.publisher import read_catalog
from clamproxy.state import state_directory

_HEADINGS = ("NAME", "STATE", "SINCE", "SERVED", "SIZE", "REASON")
_NOT_SEEN = "not looked at yet; that takes some seconds while the proxy runs"


@click.command(short_help="List the site's own files, and which are refused.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def files(config: str | None, as_json: bool) -> None:
    """List the files in files.directory and whether they are published, whether the proxy runs or not.

    SERVED is when machines were first given the present content, and SIZE is its size. If a file is refused,
    machines keep the last good version. Times are in this machine's time zone.
    """
    settings = settings_of(config)
    directory, records = settings.files.directory, state_directory(settings)
    if directory is None:
        fail("files.directory is null, so no files of the site's own are served")
    try:
        catalog = read_catalog(records)
    except OSError as error:
        fail(shown_trouble(records, error))
    trouble, found = "", dict[str, FoundFile]()
    try:
        found = {file.name: file for file in find_files(directory)}
        trouble = "" if found else catalog.trouble
    except FileNotFoundError:
        trouble = catalog.trouble or f"{directory} doesn't exist yet"
    except OSError as error:
        trouble = shown_error(error)
    entries = _entries(catalog, found)
    if as_json:
        listed = [entry.to_json() for entry in entries]
        click.echo(json.dumps({"directory": str(directory), "trouble": trouble, "files": listed}, indent=2))
        return
    if entries:
        write_out(table_text([_HEADINGS, *map(_row, entries)], right=(_HEADINGS.index("SIZE"),)))
    count = len(catalog.published)
    click.echo(
        f"{shown_count(count, 'file')} published, from {directory}{f' ({trouble})' if trouble else ''}"
    )


def _entries(catalog: Catalog, found: Mapping[str, FoundFile]) -> list[SiteFile]:
    """The catalog, as far as it is still true, and what the proxy hasn't looked at yet."""
    now = time.time()
    entries = dict(catalog.files)
    for name, file in found.items():
        entry = entries.get(name)
        is_decided = bool(file.skipped or file.problem) or (entry and entry.source == file.identity)
        if entry is None or not is_decided:
            served = entry.served if entry is not None else None
            entries[name] = SiteFile(name, State.WAITING, now, _NOT_SEEN, served)
    return [entries[name] for name in in_order(entries)]


def _row(entry: SiteFile) -> tuple[str, ...]:
    served = entry.served
    at, size = (shown_time(served.published_at), shown_size(served.size)) if served else ("-", "-")
    return entry.name, str(entry.state), shown_time(entry.since), at, size, entry.reason
