"""Machines as CSV (RFC 4180), for auditors and their spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from clamproxy.fleet.machine import Machine

_COLUMNS = (
    *("name", "group", "uuid", "address", "state", "releases_behind", "overdue", "freshclam", "end_of_life"),
    *("os", "arch", "cloned", "first_seen", "last_seen", "last_error_at", "last_error"),
)
_OF_DATABASE = ("", "_behind", "_behind_since", "_seen_at")
"""What is added to a database's name."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What begins a formula in a spreadsheet; clients choose some of the texts."""

type _Cell = str | int | None
type GatewayOf = Callable[[Machine], str | None]
"""The gateway that saw a machine; None for this one."""


def csv_lines(
    machines: Sequence[Machine], behind_for: float, now: float, gateway_of: GatewayOf | None = None
) -> Iterator[str]:
    """A line of headings, and one line for each machine.

    Args:
        behind_for: seconds after which a machine that is behind counts as overdue.
        now: Unix seconds.
        gateway_of: if given, there is a column `gateway` as well.
    """
    databases = sorted({name for machine in machines for name in machine.databases})
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)  # with CRLF, as RFC 4180 wants it
    columns = _COLUMNS if gateway_of is None else (*_COLUMNS, "gateway")
    headings = (*columns, *(name + more for name in databases for more in _OF_DATABASE))
    rows = (
        (
            *_about(machine, behind_for, now),
            *(() if gateway_of is None else (gateway_of(machine),)),
            *_versions(machine, databases),
        )
        for machine in machines
    )
    for cells in (headings, *rows):
        writer.writerow(map(_safe, cells))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _about(machine: Machine, behind_for: float, now: float) -> list[_Cell]:
    error = machine.last_error
    return [
        machine.name,
        machine.group,
        machine.uuid,
        machine.address,
        str(machine.state),
        machine.behind,
        _word(machine.is_behind(now, seconds=behind_for)),
        machine.freshclam,
        _word(machine.end_of_life),
        machine.os,
        machine.arch,
        _word(machine.cloned),
        _time(machine.first_seen),
        _time(machine.last_seen),
        None if error is None else _time(error.at),
        None if error is None else error.what,
    ]


def _versions(machine: Machine, databases: Sequence[str]) -> list[_Cell]:
    row: list[_Cell] = []
    for name in databases:
        known = machine.databases.get(name)
        if known is None:
            row += [None] * len(_OF_DATABASE)
        else:
            row += [known.version, known.behind, _time(known.behind_since), _time(known.seen_at)]
    return row


def _word(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _time(seconds: float | None) -> str | None:
    """A moment as ISO 8601, in UTC."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # out of range: the disk may be bad
        return None


def _safe(cell: _Cell) -> _Cell:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
