"""``clamproxy fleet``."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from clamproxy.cli.common import (
    config_option,
    fail,
    require_owner,
    settings_of,
    shown_trouble,
    tell,
    write_out,
)
from clamproxy.cli.fleet_peers import with_peers
from clamproxy.cli.fleet_story import story_text
from clamproxy.cli.fleet_table import fleet_table
from clamproxy.cli.parameters import duration
from clamproxy.config.labels import NO_GROUP, NO_LABELS, Labels, read_labels
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import Settings
from clamproxy.fleet.biography import find_machines, read_biography
from clamproxy.fleet.csv_export import csv_lines
from clamproxy.fleet.machine import Machine, spread, summary
from clamproxy.fleet.reading import UnreadableFleetError, advertised_to_clients, has_table, read_fleet
from clamproxy.fleet.table import Table
from clamproxy.peers.merging import gateway_of
from clamproxy.readable import shown_count
from clamproxy.releases.limits_in_force import Limit, read_limits
from clamproxy.state import open_store, state_directory
from clamproxy.storage.records_file import DamagedFileError

OK, WARNING, CRITICAL, UNKNOWN = range(4)
"""Exit codes of a Nagios plugin."""
_EXIT_CODES = """\b
Exit codes, as for a Nagios plugin:
  0  OK        none of the below
  1  WARNING   a machine's freshclam is past its end of life
  2  CRITICAL  --behind, --behind-for or --stale lists a machine; never
               without these options
  3  UNKNOWN   the table or the configuration can't be read, the command
               line is wrong, or no advertised version is known (--stale
               works even then)

\b
Times are in this machine's time zone.
"""
_FORGET_EXIT_CODES = """\b
Exit codes:
  0  all these machines are forgotten
  1  there was no such machine, or the table can't be written
  2  the command line is wrong
"""
_SHOW_EXIT_CODES = """\b
Exit codes:
  0  the machine is shown
  3  there is no such machine, or more than one, the table or the
     configuration can't be read, or the command line is wrong
"""
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_NOT_ADVERTISED = "no advertised version is known, so it isn't known which machines are behind"


class UnknownError(Exception):
    """The state of the machines can't be determined; the text is one line."""


class _Misuse(click.UsageError):
    exit_code = UNKNOWN


class _Plugin(click.Group):
    """A command whose own failures exit with UNKNOWN, because 1 and 2 would be about the machines."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _misuse_is_unknown():
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command; anything that isn't one names a machine to `show`."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            args = ["show", *args]
        with _misuse_is_unknown():
            return super().resolve_command(ctx, args)


class _Show(click.Command):
    """Part of the plugin: a mistyped option or command is taken for a machine, but is none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _misuse_is_unknown():
            return super().parse_args(ctx, args)


@contextmanager
def _misuse_is_unknown() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise _Misuse(error.format_message(), error.ctx) from None


@click.group(
    cls=_Plugin,
    epilog=_EXIT_CODES,
    invoke_without_command=True,
    subcommand_metavar="[ADDRESS | UUID | NAME | forget UUID...]",
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a list of machines as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a list of machines as CSV, with times in UTC.")
@click.option(
    "--group",
    metavar="NAME",
    help="Only machines of this group, which the file fleet.labels defines; - for machines without one. "
    "All other options then apply to these machines.",
)
@click.option(
    "--behind",
    metavar="N",
    type=click.IntRange(min=1),
    help="Only machines that are at least N releases behind in any database.",
)
@click.option(
    "--behind-for",
    metavar="TIME",
    callback=duration("a duration such as 24h"),
    help="Only machines that have been behind for longer than this, such as 24h. "
    "With --behind, both must hold.",
)
@click.option(
    "--stale",
    metavar="TIME",
    callback=duration("a duration such as 2d"),
    help="Only machines that have sent no request for this long, such as 2d. "
    "With the other options, either is enough.",
)
@click.option(
    "--all-gateways",
    is_flag=True,
    help="Also the machines of the gateways in fleet.peers, which are asked now, and of those that use the "
    "same object store.",
)
@click.pass_context
def fleet(
    context: click.Context,
    config: str | None,
    as_json: bool,
    as_csv: bool,
    group: str | None,
    behind: int | None,
    behind_for: float | None,
    stale: float | None,
    all_gateways: bool,
) -> None:
    """List the machines and their databases, worst first.

    With the address, UUID or name of a machine, tell its story instead.

    A machine is an installation of freshclam that has asked the gateway for something. If it learns
    versions from DNS, it has no reason to ask while it is up to date: "no request since" doesn't mean
    that it is switched off.
    """
    filters = (behind, behind_for, stale)
    if context.invoked_subcommand is not None:
        is_shown = as_json and context.invoked_subcommand == "show"
        asks = as_csv or all_gateways or group is not None or filters != (None, None, None)
        if asks or (as_json and not is_shown):
            raise _Misuse("with a command, only --config is allowed here.")
        return
    if as_json and as_csv:
        raise _Misuse("--json and --csv exclude each other.")
    now = time.time()
    try:
        settings = _settings(config)
        labels = _labels(settings, required=group is not None)
        machines, advertised, limits = _read(settings, labels, now)
        told = list[str]()
        if all_gateways:
            machines, told = with_peers(settings, machines)
        if group is not None:
            machines = _members(machines, group, labels)
    except UnknownError as error:
        _end_unknown(str(error), as_data=as_json or as_csv)
    except Exception as error:  # a traceback's exit code would be a WARNING
        _end_unknown(f"{type(error).__name__}: {error}", as_data=as_json or as_csv)
    asks_versions = (behind, behind_for) != (None, None)
    filtered = asks_versions or stale is not None
    lag = (behind or 1, behind_for or 0.0) if asks_versions else None
    listed = [one for one in machines if not filtered or _matches(one, now, lag, stale)]
    cannot_tell = (asks_versions or not filtered) and bool(machines) and not advertised
    code = _exit_code(machines, listed if filtered else [], cannot_tell=cannot_tell)
    remarks = [_NOT_ADVERTISED, *told] if cannot_tell else told
    if as_json:
        _write_data(json.dumps([machine.to_json() for machine in listed], indent=2) + "\n", remarks)
    elif as_csv:
        seen_by = gateway_of if all_gateways else None
        _write_data("".join(csv_lines(listed, settings.fleet.behind_for, now, seen_by)), remarks)
    else:
        line = _status_line(code, remarks, machines, len(listed) if filtered else None)
        write_out(f"{line}\n{fleet_table(listed, now)}{_limits(machines, limits)}")
    context.exit(code)


@fleet.command(
    cls=_Show, epilog=_SHOW_EXIT_CODES, short_help="Tell a machine's story; `show` may be left out."
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.argument("machine", metavar="ADDRESS|UUID|NAME")
@click.pass_context
def show(context: click.Context, config: str | None, as_json: bool, machine: str) -> None:
    """Tell the story of one machine: versions, requests and errors, as far as they are kept.

    A name is what the list shows, or its part before the first dot. If several machines have the
    address or the name, they are listed.
    """
    above = context.parent.params if context.parent else {}
    now = time.time()
    try:
        settings = _settings(config or above.get("config"))
        labels = _labels(settings, required=False)
        machines, advertised, _ = _read(settings, labels, now)
        uuids = find_machines(machines, machine)
        directory = state_directory(settings)
        found = read_biography(directory, uuids[0], advertised, now, labels) if len(uuids) == 1 else None
    except (UnknownError, UnreadableFleetError) as error:
        _end_unknown(str(error), as_data=True)
    if len(uuids) > 1:
        tell(f"{machine!r} is {shown_count(len(uuids), 'machine')}; give the UUID of one:")
        candidates = [one for one in machines if one.uuid in uuids]
        click.echo(fleet_table(candidates, now), err=True, nl=False)
    elif found is None:
        raise _Misuse(f"there is no machine {machine!r}.")
    elif as_json or above.get("as_json"):
        write_out(json.dumps(found.to_json(), indent=2) + "\n")
    else:
        write_out(story_text(found, now))
    context.exit(UNKNOWN if found is None else OK)


@fleet.command(epilog=_FORGET_EXIT_CODES, short_help="Remove machines that are gone.")
@config_option
@click.argument("uuids", metavar="UUID...", nargs=-1, required=True)
@click.pass_context
def forget(context: click.Context, config: str | None, uuids: tuple[str, ...]) -> None:
    """Remove machines that are gone from the table, with all their addresses.

    The proxy may be running. A machine that asks again is listed again.
    """
    settings = settings_of(config or (context.parent.params["config"] if context.parent else None))
    directory = state_directory(settings)
    require_owner(directory)
    try:
        if not has_table(directory):
            fail(f"{directory}: no table of machines; has the proxy been started?")
        with Table(directory).writing() as rows:
            dropped = {uuid: rows.forget(uuid, time.time()) for uuid in dict.fromkeys(map(str.lower, uuids))}
    except DamagedFileError:
        fail("the table of machines was damaged and has been moved aside; the new one is empty.")
    except (OSError, sqlite3.Error) as error:
        fail(shown_trouble(directory, error))
    unknown = [uuid for uuid, count in dropped.items() if not count]
    for uuid in unknown:
        tell(f"there is no machine {uuid!r}.")
    known = len(dropped) - len(unknown)
    if known:
        tell(f"Forgot {shown_count(known, 'machine')}, {shown_count(sum(dropped.values()), 'row')}.")
    context.exit(1 if unknown else 0)


def _write_data(text: str, remarks: Sequence[str]) -> None:
    """Write what programs parse; what people should know goes to stderr."""
    for remark in remarks:
        tell(remark)
    write_out(text)


def _limits(machines: Sequence[Machine], limits: Sequence[Limit]) -> str:
    """A line for each database that is held or delayed: who has what."""
    lines = []
    for limit in limits:
        older, same, newer = spread(machines, limit.database, limit.version)
        cause = "held at" if limit.hold is not None else "delayed at"
        has = (
            f"{shown_count(same, 'machine')} with it, {newer:,} with a newer one, {older:,} with an older one"
        )
        lines.append(f"{limit.database} is {cause} version {limit.version}: {has}.\n")
    return "".join(lines)


def _settings(config: str | None) -> Settings:
    """The configuration.

    Raises:
        UnknownError: it is wrong, or no table is kept.
    """
    try:
        settings = load_settings(find_config(config), os.environ)
    except ConfigurationError as error:
        raise UnknownError(str(error)) from error
    if not settings.fleet.enabled:
        raise UnknownError("fleet.enabled is false: no table of machines is kept")
    return settings


def _labels(settings: Settings, *, required: bool) -> Labels:
    """The names and groups of machines; none, with a remark, if they can't be read and aren't required.

    Raises:
        UnknownError: they are required.
    """
    try:
        return NO_LABELS if settings.fleet.labels is None else read_labels(settings.fleet.labels)
    except ConfigurationError as error:
        if required:
            raise UnknownError(str(error)) from error
        tell(f"without names and groups: {error}")
        return NO_LABELS


def _read(
    settings: Settings, labels: Labels, now: float
) -> tuple[list[Machine], dict[str, int], list[Limit]]:
    """The machines, the advertised versions, and what is held or delayed.

    Raises:
        UnknownError: they can't be read.
    """
    directory = state_directory(settings)
    try:
        if not has_table(directory):
            raise UnknownError(f"{directory}: no table of machines; has the proxy been started?")
        store = open_store(settings)
        try:
            advertised = advertised_to_clients(store, settings)
            limits = read_limits(store, settings.releases, now)
        finally:
            store.close()
        return read_fleet(directory, advertised, now, labels), advertised, limits
    except (OSError, sqlite3.Error) as error:
        raise UnknownError(shown_trouble(directory, error)) from error


def _members(machines: Sequence[Machine], group: str, labels: Labels) -> list[Machine]:
    """The machines of a group, which may be one of another gateway.

    Raises:
        UnknownError: there is no such group, which would otherwise look like one without trouble.
    """
    groups = labels.groups() | {machine.group for machine in machines if machine.group is not None}
    if group != NO_GROUP and group not in groups:
        raise UnknownError(f"there is no group {group!r}, only {', '.join(sorted(groups)) or 'none at all'}")
    return [machine for machine in machines if machine.is_in(group)]


def _end_unknown(reason: str, *, as_data: bool) -> NoReturn:
    """End with a line where the reader looks: stdout for monitoring, stderr for programs that parse data."""
    if as_data:
        tell(reason)
    else:
        click.echo(f"CLAMPROXY FLEET {_WORDS[UNKNOWN]} - {reason.replace('|', '/')}")
    click.get_current_context().exit(UNKNOWN)


def _matches(machine: Machine, now: float, lag: tuple[int, float] | None, stale: float | None) -> bool:
    """Whether a machine is listed: for its lag, in releases and seconds, or for its silence."""
    if lag is not None and machine.is_behind(now, releases=lag[0], seconds=lag[1]):
        return True
    return stale is not None and now - machine.last_seen >= stale


def _exit_code(machines: Sequence[Machine], matching: Sequence[Machine], *, cannot_tell: bool) -> int:
    if matching:
        return CRITICAL
    if cannot_tell:
        return UNKNOWN
    return WARNING if any(machine.end_of_life for machine in machines) else OK


def _status_line(code: int, remarks: list[str], machines: Sequence[Machine], matching: int | None) -> str:
    """What monitoring shows and, after the vertical bar, what it plots (the Nagios plugin guidelines)."""
    counts = summary(machines)
    total = counts.pop("total")
    told = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    if cloned := sum(machine.cloned for machine in machines):
        told.append(f"{cloned:,} cloned")
    figures = {"machines": total, **counts}
    if matching is not None:
        told.insert(0, f"{matching:,} listed")
        figures["listed"] = matching
    text = ", ".join([*remarks, shown_count(total, "machine"), *told])
    return f"CLAMPROXY FLEET {_WORDS[code]} - {text} | {' '.join(f'{k}={v}' for k, v in figures.items())}"
