"""fleet.json: machines, searched, sorted and page by page."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from clamproxy.fleet.machine import Machine, MachineState

LONGEST_SEARCH = 200
"""Characters."""
_MOST = 9
"""Digits of a number in the query."""

OVERDUE, END_OF_LIFE = "overdue", "end_of_life"
STATES = (*MachineState, OVERDUE, END_OF_LIFE)
"""What ``state`` may be: the names of the counts."""

_SORTS: Mapping[str, Callable[[Machine], Any] | None] = {
    "worst": None,  # as they come
    "address": lambda one: (_address_order(one.address), one.uuid),
    "last_seen": lambda one: one.last_seen,
    "first_seen": lambda one: one.first_seen,
    "freshclam": lambda one: _version_order(one.freshclam),
}


@dataclass(frozen=True, slots=True)
class Query:
    """Which machines are asked for."""

    words: tuple[str, ...] = ()
    """All of which have to be in what is known of a machine; in lower case."""
    state: str | None = None
    """One of `STATES`; None: any."""
    sort: str = "worst"
    descending: bool = False
    offset: int = 0
    """How many of those found are left out at the beginning."""
    limit: int | None = None
    """How many are given at most; None: all."""

    @classmethod
    def parse(cls, text: str) -> Query:
        """Read the query of a URL; parameters that have no meaning here are passed over.

        Raises:
            ValueError: a value makes no sense; the text says what was expected.
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
            sort=sort.removeprefix("-"),
            descending=sort.startswith("-"),
            offset=_number(given, "offset") or 0,
            limit=_number(given, "limit"),
        )


def fleet_json(machines: Sequence[Machine], counts: Mapping[str, Any], query: Query, now: float) -> bytes:
    """The machines that are asked for, as JSON. Blocks: some 100 ms for ten thousand.

    Args:
        machines: all, worst first.
        counts: what is said of all of them, as status.json has it.
        query: which are asked for.
        now: Unix seconds.
    """
    found = select(machines, query, counts["behind_for"], now)
    end = None if query.limit is None else query.offset + query.limit
    head = {**counts, "now": now, "found": len(found), "offset": query.offset}
    # One by one: a single call for megabytes of JSON would hold up the event loop.
    listed = [json.dumps(one.to_json(), separators=(",", ":")) for one in found[query.offset : end]]
    return f'{json.dumps(head)[:-1]}, "machines": [{",\n".join(listed)}]}}\n'.encode()


def select(machines: Sequence[Machine], query: Query, behind_for: float, now: float) -> Sequence[Machine]:
    """All machines that a query means, in its order.

    Args:
        machines: all, worst first.
        query: it; offset and limit don't count.
        behind_for: seconds after which a machine that is behind is overdue.
        now: Unix seconds.
    """
    found = [
        one
        for one in machines
        if _is_in_state(one, query.state, behind_for, now) and (not query.words or _has_all(one, query.words))
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
    return machine.end_of_life if state == END_OF_LIFE else machine.state == state


def _has_all(machine: Machine, words: tuple[str, ...]) -> bool:
    error = machine.last_error.what if machine.last_error else None
    known = [machine.address, machine.uuid, machine.freshclam, machine.os, machine.arch]
    known += [f"{name} {one.version}" for name, one in machine.databases.items()]
    text = "\n".join(filter(None, [*known, error])).lower()
    return all(word in text for word in words)


def _address_order(address: str) -> tuple[int, int, str]:
    """10.0.0.9 before 10.0.0.10, IPv4 before IPv6, and what is no address at the end."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return 9, 0, address
    return ip.version, int(ip), ""


def _version_order(version: str | None) -> list[tuple[int, str]]:
    """1.4.9 before 1.4.10, and what isn't known at the beginning."""
    parts = (version or "").replace("-", ".").replace("+", ".").split(".")
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST):
        raise ValueError(f"{name} is a whole number of at most {_MOST} digits")
    return int(text)
