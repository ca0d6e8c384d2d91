"""The table of ``clamproxy fleet``: for people, and for grep."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import click
from rich.console import Console

from clamproxy.cli.columns import padded
from clamproxy.fleet.machine import Database, Machine, MachineState
from clamproxy.fleet.support import explain_end_of_life
from clamproxy.peers.merging import SeenMachine
from clamproxy.readable import plain, shown_span, shown_time

_HEADINGS = ("UUID", "address", "freshclam", "system", "databases", "no request since", "last error")
_LABELS = ("name", "group")
"""Further columns after the address, if any machine has a name or a group."""
CLONED = (
    "cloned: several machines have this UUID. On each of them, stop freshclam, remove freshclam.dat from the "
    "database directory, and start freshclam again."
)
_GAP = "  "
_COLOURS = {MachineState.BEHIND: "red", MachineState.UNKNOWN: "yellow", MachineState.UP_TO_DATE: "green"}


def fleet_table(machines: Sequence[Machine], now: float) -> str:
    """The table as printed, with colours on a terminal; empty if there are no machines.

    There is one line per machine, as grep needs it; a terminal that is too narrow gets several.
    """
    if not machines:
        return ""
    terminal = Console()
    with_colours = terminal.color_system is not None and not terminal.no_color
    is_labelled = any(one.name or one.group for one in machines)
    headings = [*_HEADINGS[:2], *(_LABELS if is_labelled else ()), *_HEADINGS[2:]]
    lines = list(padded([headings, *(_row(one, now, is_labelled) for one in machines)]))
    is_narrow = terminal.is_terminal and max(map(_width, lines)) > terminal.width
    if is_narrow:
        text = "\n\n".join(_entry(one, now, terminal.width, with_colours) for one in machines)
    else:
        head, *rows = lines
        if with_colours:
            _colour(rows, machines, headings)
        text = "\n".join(map(_joined, [head, *rows]))
    explained = {explain_end_of_life(one.freshclam, now) for one in machines if one.end_of_life}
    remarks = [*sorted(filter(None, explained)), *([CLONED] if any(one.cloned for one in machines) else [])]
    if is_narrow:
        remarks = [line for remark in remarks for line in textwrap.wrap(remark, terminal.width)]
    return "\n".join([text, *remarks]) + "\n"


def _row(machine: Machine, now: float, is_labelled: bool) -> list[str]:
    silence = f"{shown_time(machine.last_seen)} ({shown_span(now - machine.last_seen)})"
    return [
        machine.uuid,
        _address(machine),
        *((plain(machine.name or "-"), plain(machine.group or "-")) if is_labelled else ()),
        shown_freshclam(machine),
        shown_system(machine) or "-",
        shown_databases(machine, now),
        silence,
        plain(_trouble(machine) or "-"),
    ]


def _colour(rows: list[list[str]], machines: Sequence[Machine], headings: Sequence[str]) -> None:
    databases, freshclam = headings.index("databases"), headings.index("freshclam")
    for row, machine in zip(rows, machines, strict=True):
        row[databases] = click.style(row[databases], _COLOURS[machine.state])
        if machine.end_of_life:
            row[freshclam] = click.style(row[freshclam], "red")


def _entry(machine: Machine, now: float, width: int, with_colours: bool) -> str:
    """Several lines for a machine, none of them wider than the terminal."""

    def lines(text: str, colour: str | None = None) -> Iterator[str]:
        for line in textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False):
            yield click.style(line, colour) if with_colours and colour else line

    labels = "  ".join(filter(None, (machine.name, machine.group)))
    about = (
        f"{machine.uuid}  {_address(machine)}  {labels}  {shown_freshclam(machine)}  {shown_system(machine)}"
    )
    silence = f"{shown_time(machine.last_seen)} ({shown_span(now - machine.last_seen)})"
    return "\n".join([
        *lines(plain(about), "red" if machine.end_of_life else None),
        *lines(f"  {shown_databases(machine, now)}", _COLOURS[machine.state]),
        *lines(f"  no request since {silence}"),
        *(lines(f"  {plain(_trouble(machine))}") if machine.trouble else ()),
    ])  # fmt: skip


def _joined(cells: Sequence[str]) -> str:
    return _GAP.join(cells).rstrip()


def _width(cells: Sequence[str]) -> int:
    return len(_joined(cells))


def _address(machine: Machine) -> str:
    gateway = machine.gateway if isinstance(machine, SeenMachine) else None
    return f"{machine.address}{' (cloned)' if machine.cloned else ''}{f' (by {gateway})' if gateway else ''}"


def shown_freshclam(machine: Machine) -> str:
    return f"{machine.freshclam or '-'}{' (end of life)' if machine.end_of_life else ''}"


def shown_system(machine: Machine) -> str:
    return " ".join(filter(None, (machine.os, machine.arch)))


def shown_databases(machine: Machine, now: float) -> str:
    known = ", ".join(_shown_database(name, one, now) for name, one in sorted(machine.databases.items()))
    return plain(known) or "not known"


def _shown_database(name: str, database: Database, now: float) -> str:
    text = f"{name} {database.version}"
    if not database.behind:
        return text
    since = f" for {shown_span(now - database.behind_since)}" if database.behind_since is not None else ""
    return f"{text} ({database.behind} behind{since})"


def _trouble(machine: Machine) -> str:
    return f"{shown_time(machine.trouble.at)} {machine.trouble.what}" if machine.trouble else ""
