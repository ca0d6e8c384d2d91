"""``clamproxy ignore``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import click

from clamproxy.cli.columns import table_text
from clamproxy.cli.common import (
    config_option,
    fail,
    require_owner,
    settings_of,
    shown_trouble,
    tell,
    write_out,
)
from clamproxy.readable import plain, shown_count, shown_time
from clamproxy.site_files.ignoring import IgnoreList, signature_name
from clamproxy.state import directory_for_changes, state_directory

_OFF = "files.directory is null; set it to a directory, such as ./files, to have signatures ignored"
_HEADINGS = ("SIGNATURE", "SINCE", "BY", "WHY")
_HISTORY_HEADINGS = ("WHEN", "BY", "WHAT", "SIGNATURE", "WHY")
_EXIT_CODES = """\b
Exit codes:
  0  done; also if there was nothing to change
  1  failed, with the reason in one line
  2  the command line is wrong
"""


@click.group(short_help="Signatures that all machines ignore: add, list, remove.")
def ignore() -> None:
    """Have all machines ignore signatures that report false positives.

    The signatures are kept in site.ign2 in files.directory. Machines get it at their next check, if their
    freshclam.conf has the line for it that `clamproxy client-config` prints.
    """


@ignore.command(epilog=_EXIT_CODES)
@click.argument("signatures", metavar="SIGNATURE...", nargs=-1, required=True)
@click.option("--why", required=True, metavar="TEXT", help="The reason, for the history.")
@config_option
def add(signatures: tuple[str, ...], why: str, config: str | None) -> None:
    """Ignore signatures, by the names that ClamAV reports.

    ClamAV compares whole names; upper and lower case differ, and there are no wildcards.
    """
    _change(signatures, why, config, IgnoreList.add, "Ignored from now on", "is ignored already")


@ignore.command(epilog=_EXIT_CODES)
@click.argument("signatures", metavar="SIGNATURE...", nargs=-1, required=True)
@click.option("--why", default="", metavar="TEXT", help="The reason, for the history.")
@config_option
def remove(signatures: tuple[str, ...], why: str, config: str | None) -> None:
    """Ignore signatures no longer. Machines report them again after their next check."""
    _change(signatures, why, config, IgnoreList.remove, "No longer ignored", "isn't in the list")


@ignore.command("list")
@click.option("--history", "shows_history", is_flag=True, help="Show all changes, oldest first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def list_(shows_history: bool, as_json: bool, config: str | None) -> None:
    """List the ignored signatures: since when, by whom, and why."""
    with _opened(config) as ignored:
        if shows_history:
            changes = ignored.history()
            if as_json:
                click.echo(json.dumps([asdict(change) for change in changes], indent=2))
                return
            rows = [
                (shown_time(one.at, exact=True), one.by, one.action, one.signature, one.why)
                for one in changes
            ]
            _print(_HISTORY_HEADINGS, rows)
            return
        latest = ignored.latest()
        signatures = ignored.signatures()
    if as_json:
        entries = [
            {"signature": name, "at": None, "by": None, "why": None}
            | ({} if name not in latest else {key: getattr(latest[name], key) for key in ("at", "by", "why")})
            for name in signatures
        ]
        click.echo(json.dumps(entries, indent=2))
        return
    _print(
        _HEADINGS,
        [
            (name, shown_time(latest[name].at), latest[name].by, latest[name].why)
            if name in latest
            else (name, "-", "-", "(not added by this command)")
            for name in signatures
        ],
    )
    click.echo(f"{shown_count(len(signatures), 'signature')} ignored, in {ignored.path}")


def _change(
    signatures: tuple[str, ...],
    why: str,
    config: str | None,
    change: Callable[[IgnoreList, str, str], bool],
    done: str,
    unchanged: str,
) -> None:
    names = [_parsed(reported) for reported in dict.fromkeys(signatures)]
    reason = " ".join(why.split())
    with _opened(config, changes=True) as ignored:
        is_new = not ignored.path.exists()
        for name in dict.fromkeys(names):
            if change(ignored, name, reason):
                tell(f"{done}: {name}.")
            else:
                tell(f"{name} {unchanged}.")
        if is_new and ignored.path.exists():
            tell("Machines need the line for site.ign2 that `clamproxy client-config` prints.")


def _parsed(reported: str) -> str:
    try:
        name, remark = signature_name(reported)
    except ValueError as error:
        raise click.UsageError(f"{reported!r}: {error}.") from None
    if remark:
        tell(f"{plain(reported.strip())} is listed as {name}: {remark}.")
    return name


@contextmanager
def _opened(config: str | None, *, changes: bool = False) -> Iterator[IgnoreList]:
    settings = settings_of(config, creates=changes)
    directory = settings.files.directory
    if directory is None:
        fail(_OFF)
    records = state_directory(settings)
    if changes:
        require_owner(records)
    try:
        if changes:
            records = directory_for_changes(settings)
        yield IgnoreList(directory, records)
    except OSError as error:
        fail(shown_trouble(directory, error))


def _print(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if rows:
        write_out(table_text([headings, *rows]))
