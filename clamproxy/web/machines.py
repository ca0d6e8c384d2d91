"""fleet.json and fleet.csv: the machines, filtered, sorted and split into pages."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from clamproxy.fleet.csv_export import GatewayOf, csv_lines
from clamproxy.fleet.machine import Machine, MachineState

LONGEST_SEARCH = 200
"""Length of the search text in characters, at most."""
_MOST = 9
"""Digits of a number in the query, at most."""

OVERDUE, END_OF_LIFE, CLONED = "overdue", "end_of_life", "cloned"
STATES = (*MachineState, OVERDUE, END_OF_LIFE, CLONED)
"""The values that ``state`` may have, named like the counts."""

_SORTS: Mapping[str, Callable[[Machine], Any] | None] = {
    "worst": None,  # the order in which they come
    "address": lambda machine: (_address_order(machine.address), machine.uuid),
    "name": lambda machine: (machine.name is None, (machine.name or "").lower(), machine.uuid),
    "last_seen": lambda machine: machine.last_seen,
    "first_seen": lambda machine: machine.first_seen,
    "freshclam": lambda machine: _version_order(machine.freshclam),
}


@dataclass(frozen=True, slots=True)
class Query:
    """Which machines are asked for, and in which order."""

    words: tuple[str, ...] = ()
    """Words in lower case, all of which must occur in what is known about a machine."""
    state: str | None = None
    """One of `STATES`; None for any."""
    group: str | None = None
    """A group, or `NO_GROUP` for machines without one; None for any."""
    sort: str = "worst"
    descending: bool = False
    offset: int = 0
    """How many of the machines found to skip at the beginning."""
    gateway: str | None = None
    """Whose machines: ``all``, or the name of a peer; None for this gateway's own."""
    limit: int | None = None
    """How many machines to list at most; None for all."""

    @classmethod
    def parse(cls, text: str) -> Query:
        """Read the query of a URL; unknown parameters are ignored.

        Raises:
            ValueError: a value is invalid; the text says what was expected.
        """
        given = {name: values[-1] for name, values in parse_qs(text, max_num_fields=50).items()}
        searched = given.get("q", "")
        if len(searched) > LONGEST_SEARCH:
            raise ValueError(f"q has at most {LONGEST_SEARCH} characters")
        state, sort = given.get("state"), given.get("sort", "worst")
        if state not in (None, *STATES):
            raise ValueError(f"state is one of {', '.join(STATES)}")
        if sort.removeprefix("-") not in _SORTS:
            raise ValueError(f"sort is one of {', '.join(_SORTS)}, with - in front for the reverse order")
        return cls(
            words=tuple(searched.lower().split()),
            state=state,
            group=given.get("group"),
            sort=sort.removeprefix("-"),
            descending=sort.startswith("-"),
            gateway=given.get("gateway"),
            offset=_number(given, "offset") or 0,
            limit=_number(given, "limit"),
        )


def fleet_json(machines: Sequence[Machine], counts: Mapping[str, Any], query: Query, now: float) -> bytes:
    """The selected machines as JSON. Blocks for some 100 ms with ten thousand machines.

    Args:
        machines: all machines, worst first.
        counts: the figures about all machines, as in status.json.
        now: Unix seconds.
    """
    found = select(machines, query, counts["behind_for"], now)
    end = None if query.limit is None else query.offset + query.limit
    head = {**counts, "now": now, "found": len(found), "offset": query.offset}
    # One by one: a single call for megabytes of JSON would hold the GIL, and so stop the event loop.
    listed = [json.dumps(machine.to_json(), separators=(",", ":")) for machine in found[query.offset : end]]
    return f'{json.dumps(head)[:-1]}, "machines": [{",\n".join(listed)}]}}\n'.encode()


def fleet_csv(
    machines: Sequence[Machine],
    query: Query,
    behind_for: float,
    now: float,
    gateway_of: GatewayOf | None = None,
) -> bytes:
    """The selected machines as CSV. Blocks like `fleet_json`; its arguments are there and in `csv_lines`."""
    found = select(machines, query, behind_for, now)
    end = None if query.limit is None else query.offset + query.limit
    return "".join(csv_lines(found[query.offset : end], behind_for, now, gateway_of)).encode()


def select(machines: Sequence[Machine], query: Query, behind_for: float, now: float) -> Sequence[Machine]:
    """All machines that match a query, in its order; its offset and limit are ignored.

    Args:
        machines: all machines, worst first.
        behind_for: seconds after which a machine that is behind counts as overdue.
        now: Unix seconds.
    """
    found = [
        machine
        for machine in machines
        if _is_in_state(machine, query.state, behind_for, now)
        and (query.group is None or machine.is_in(query.group))
        and (not query.words or _has_all(machine, query.words))
    ]
    key = _SORTS[query.sort]
    if key is not None:
        return sorted(found, key=key, reverse=query.descending)
    return found[::-1] if query.descending else found


def _is_in_state(machine: Machine, state: str | None, behind_for: float, now: float) -> bool:
    if state is None:
        return True
    if state == OVERDUE:
        return machine.is_behind(now, seconds=behind_for)
    if state == CLONED:
        return machine.cloned
    return machine.end_of_life if state == END_OF_LIFE else machine.state == state


def _has_all(machine: Machine, words: tuple[str, ...]) -> bool:
    error = machine.last_error.what if machine.last_error else None
    known = [machine.address, machine.uuid, machine.freshclam, machine.os, machine.arch]
    known += [machine.name, machine.group]
    known += [f"{name} {database.version}" for name, database in machine.databases.items()]
    text = "\n".join(filter(None, [*known, error])).lower()
    return all(word in text for word in words)


def _address_order(address: str) -> tuple[int, int, str]:
    """10.0.0.9 before 10.0.0.10, IPv4 before IPv6, and anything that isn't an address last."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return 9, 0, address
    return ip.version, int(ip), ""


def _version_order(version: str | None) -> list[tuple[int, str]]:
    """1.4.9 before 1.4.10, and unknown versions first."""
    parts = (version or "").replace("-", ".").replace("+", ".").split(".")
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST):
        raise ValueError(f"{name} is a whole number of at most {_MOST} digits")
    return int(text)
