"""The machines of each group, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from clamproxy.fleet.machine import Machine, MachineState

MOST_GROUPS = 100
OTHER = "other"
"""All groups together that come after the first `MOST_GROUPS` by name."""
OVERDUE = "overdue"


@dataclass(slots=True)
class Group:
    name: str | None
    """None: machines without a group."""
    counts: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        keys = ("total", *(str(state) for state in MachineState), OVERDUE)
        return {"group": self.name, **{key: self.counts[key] for key in keys}}


def count_groups(machines: Iterable[Machine], behind_for: float, now: float) -> list[dict[str, Any]]:
    """The groups as in status.json, by name, and then the machines without one; none if nothing is grouped.

    Args:
        behind_for: seconds after which a machine that is behind counts as overdue.
        now: Unix seconds.
    """
    groups: dict[str | None, Group] = {}
    for machine in machines:
        counts = groups.setdefault(machine.group, Group(machine.group)).counts
        counts["total"] += 1
        counts[machine.state] += 1
        if machine.is_behind(now, seconds=behind_for):
            counts[OVERDUE] += 1
    alone = groups.pop(None, None)
    if not groups:
        return []
    names = sorted(name for name in groups if name is not None)
    shown = [groups[name] for name in names[:MOST_GROUPS]]
    rest = names[MOST_GROUPS:]
    if rest:
        other = next((group for group in shown if group.name == OTHER), None)
        if other is None:
            shown.append(other := Group(OTHER))
        for name in rest:
            other.counts.update(groups[name].counts)
    return [group.to_json() for group in (*shown, *([alone] if alone else []))]
