"""``clamproxy fleet``."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
import diskcache
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clamproxy.cache.store import Store
from clamproxy.cli.common import config_option, shown_trouble, tell, write_out
from clamproxy.cli.parameters import duration
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import Settings
from clamproxy.fleet.machine import Database, Machine, State, summary
from clamproxy.fleet.reading import advertised_to_clients, has_table, read_fleet
from clamproxy.fleet.support import explain_end_of_life
from clamproxy.readable import shown_count, shown_span, shown_time
from clamproxy.state import state_directory

OK, WARNING, CRITICAL, UNKNOWN = range(4)
"""Exit codes of a Nagios plugin."""
_EXIT_CODES = """\b
Exit codes, as a Nagios plugin has them:
  0  OK        none of what follows
  1  WARNING   there is a freshclam past its end of life
  2  CRITICAL  --behind or --stale lists a machine; never without them
  3  UNKNOWN   table, configuration or command line can't be read, or no
               advertised version is known (but --stale lists what it lists)
"""
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_NOT_ADVERTISED = "no advertised version is known, so who is behind isn't known either"
_UUID_LENGTH = 36
_UNLIMITED = 1000
"""Columns; no table is as wide."""
_STYLES = {State.BEHIND: "red", State.UNKNOWN: "yellow", State.UP_TO_DATE: "green"}


class UnknownError(Exception):
    """It can't be told how the machines are; the text is one line."""


class _Misuse(click.UsageError):
    exit_code = UNKNOWN


class _Plugin(click.Command):
    """A command whose own failures are UNKNOWN: 1 and 2 would speak of the machines."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _Misuse(error.format_message(), error.ctx) from None


@click.command(cls=_Plugin, epilog=_EXIT_CODES)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of machines.")
@click.option(
    "--behind",
    metavar="N",
    type=click.IntRange(min=1),
    help="Only machines that are at least N releases behind in any database.",
)
@click.option(
    "--stale",
    metavar="TIME",
    callback=duration("a duration such as 2d"),
    help="Only machines that have asked for nothing for so long, such as 2d. With --behind: either.",
)
@click.pass_context
def fleet(
    context: click.Context, config: str | None, as_json: bool, behind: int | None, stale: float | None
) -> None:
    """List the machines and their databases, worst first.

    A machine is an installation of freshclam that asked the gateway for something. Where versions are
    learned from DNS, one that is up to date has no reason to ask: "no request since" does not say that
    it is switched off.
    """
    now = time.time()
    try:
        machines, advertised = _read(config, now)
    except UnknownError as error:
        _end_unknown(str(error), as_json=as_json)
    except Exception as error:  # a traceback's exit code would be a WARNING
        _end_unknown(f"{type(error).__name__}: {error}", as_json=as_json)
    filtered = behind is not None or stale is not None
    listed = [one for one in machines if not filtered or _matches(one, now, behind, stale)]
    asks_versions = behind is not None or not filtered
    cannot_tell = asks_versions and bool(machines) and not advertised
    code = _exit_code(machines, listed if filtered else [], cannot_tell=cannot_tell)
    if as_json:
        if cannot_tell:
            tell(_NOT_ADVERTISED)
        write_out(json.dumps([machine.to_json() for machine in listed], indent=2) + "\n")
    else:
        told = [_NOT_ADVERTISED] if cannot_tell else []
        line = _status_line(code, told, machines, len(listed) if filtered else None)
        write_out(f"{line}\n{_table(listed, now)}")
    context.exit(code)


def _read(config: str | None, now: float) -> tuple[list[Machine], dict[str, int]]:
    """The machines, and the advertised versions.

    Raises:
        UnknownError: they can't be had.
    """
    try:
        settings = load_settings(find_config(config, Path.cwd()), os.environ)
    except ConfigurationError as error:
        raise UnknownError(str(error)) from error
    directory = settings.cache.directory
    if not settings.fleet.enabled:
        raise UnknownError("fleet.enabled is false: no table of clients is kept")
    try:
        records = state_directory(settings)
        if not has_table(records):
            raise UnknownError(f"{records}: no table of clients; has the proxy been started?")
        advertised = _advertised(directory, settings)
        return read_fleet(records, advertised, now), advertised
    except (OSError, sqlite3.Error, diskcache.Timeout) as error:
        raise UnknownError(shown_trouble(directory, error)) from error


def _advertised(directory: Path, settings: Settings) -> dict[str, int]:
    store = Store(directory, tidy=False)
    try:
        return advertised_to_clients(store, settings)
    finally:
        store.close()


def _end_unknown(reason: str, *, as_json: bool) -> NoReturn:
    """End with a line where the reader looks: monitoring at stdout, who parses JSON at stderr."""
    if as_json:
        tell(reason)
    else:
        click.echo(f"CLAMPROXY FLEET {_WORDS[UNKNOWN]} - {reason.replace('|', '/')}")
    click.get_current_context().exit(UNKNOWN)


def _matches(machine: Machine, now: float, behind: int | None, stale: float | None) -> bool:
    is_behind = behind is not None and machine.behind >= behind
    return is_behind or (stale is not None and now - machine.last_seen >= stale)


def _exit_code(machines: Sequence[Machine], matching: Sequence[Machine], *, cannot_tell: bool) -> int:
    if matching:
        return CRITICAL
    if cannot_tell:
        return UNKNOWN
    return WARNING if any(machine.end_of_life for machine in machines) else OK


def _status_line(code: int, remarks: list[str], machines: Sequence[Machine], matching: int | None) -> str:
    """What monitoring shows, and after the bar what it plots (the Nagios plugin guidelines)."""
    counts = summary(machines)
    total = counts.pop("total")
    told = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    figures = {"machines": total, **counts}
    if matching is not None:
        told.insert(0, f"{matching} listed")
        figures["listed"] = matching
    text = ", ".join([*remarks, shown_count(total, "machine"), *told])
    return f"CLAMPROXY FLEET {_WORDS[code]} - {text} | {' '.join(f'{k}={v}' for k, v in figures.items())}"


def _table(machines: Sequence[Machine], now: float) -> str:
    """The table as it is printed, with colours on a terminal; empty if there are no machines."""
    if not machines:
        return ""
    console = Console(highlight=False)
    table = _wide_table(machines, now)
    width = console.measure(table, options=console.options.update(width=_UNLIMITED)).maximum
    if not console.is_terminal:
        console.width = width  # one line for each machine, for grep
    elif width > console.width:
        table = _narrow_table(machines, now)
    explained = {explain_end_of_life(machine.freshclam, now) for machine in machines if machine.end_of_life}
    with console.capture() as captured:
        console.print(table)
        for line in sorted(filter(None, explained)):
            console.print(Text(line), soft_wrap=True)
    return captured.get()


def _wide_table(machines: Sequence[Machine], now: float) -> Table:
    """One line for each machine."""
    table = Table("UUID", "address", "freshclam", "system", "databases", "no request since", "last error")
    for one in machines:
        silence = Text(f"{shown_time(one.last_seen)} ({shown_span(now - one.last_seen)})")
        system = Text(_system(one) or "-")
        address, trouble = Text(one.address), Text(_trouble(one) or "-")
        table.add_row(
            one.uuid, address, _freshclam(one), system, _databases(one, now, ", "), silence, trouble
        )
    return table


def _narrow_table(machines: Sequence[Machine], now: float) -> Table:
    """Some lines for each machine, for terminals of 80 columns."""
    table = Table("machine", "databases", "no request since", box=HORIZONTALS, show_lines=True)
    for one in machines:
        about = [Text(one.uuid), Text.assemble(one.address, ", ", _freshclam(one), " ", _system(one))]
        trouble = _trouble(one)
        if trouble:
            about.append(Text(trouble))
        day, _, hour = shown_time(one.last_seen).partition(" ")
        silence = f"{day}\n{hour} ({shown_span(now - one.last_seen)})"
        table.add_row(Text("\n").join(about), _databases(one, now, "\n"), silence)
    table.columns[0].min_width = _UUID_LENGTH
    return table


def _freshclam(machine: Machine) -> Text:
    text = Text(machine.freshclam or "-")
    return text.append(" (end of life)", "red") if machine.end_of_life else text


def _system(machine: Machine) -> str:
    return " ".join(filter(None, (machine.os, machine.arch)))


def _databases(machine: Machine, now: float, separator: str) -> Text:
    shown = separator.join(_shown(name, one, now) for name, one in sorted(machine.databases.items()))
    if separator == "\n":
        shown = shown.replace(" (", "\n  ").replace(")", "")
    return Text(shown or "not known", _STYLES[machine.state])


def _trouble(machine: Machine) -> str:
    return f"{shown_time(machine.trouble.at)} {machine.trouble.what}" if machine.trouble else ""


def _shown(name: str, database: Database, now: float) -> str:
    text = f"{name} {database.version}"
    if database.behind is None or not database.behind:
        return text
    since = f" for {shown_span(now - database.behind_since)}" if database.behind_since is not None else ""
    return f"{text} ({database.behind} behind{since})"
