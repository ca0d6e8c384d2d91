"""The machines of all gateways as one list: a machine that several gateways know is in it once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from clamproxy.fleet.groups import count_groups
from clamproxy.fleet.machine import Machine, summary, worst_first
from clamproxy.peers.peers import PeerState

ALL = "all"
"""The value of ``gateway`` that selects every gateway."""


@dataclass(frozen=True, slots=True)
class SeenMachine(Machine):
    """A machine, and the gateway that saw it last."""

    gateway: str | None = None
    """The peer's name; None for this gateway."""

    def to_json(self) -> dict[str, Any]:
        return {**Machine.to_json(self), "gateway": self.gateway}


def merged(own: Iterable[Machine], peers: Sequence[PeerState], only: str = ALL) -> list[SeenMachine]:
    """The machines of this gateway and of others, worst first. Blocks for some 100 ms with ten thousand.

    A machine is the same if its UUID and address are; what counts is its latest request.

    Args:
        only: the name of the peer whose machines are wanted; a machine that asked another gateway later
            isn't its machine any more.
    """
    latest: dict[tuple[str, str], SeenMachine] = {}
    for machine in _all(own, peers):
        key = machine.uuid, machine.address
        known = latest.get(key)
        if known is None or machine.last_seen > known.last_seen:
            latest[key] = machine
    return worst_first(one for one in latest.values() if only in (ALL, one.gateway))


def gateway_of(machine: Machine) -> str | None:
    """The peer that saw a machine last; None for this gateway."""
    return machine.gateway if isinstance(machine, SeenMachine) else None


def counts_of(machines: Sequence[Machine], behind_for: float, now: float) -> dict[str, Any]:
    """The figures about machines, as those of status.json about this gateway's own.

    Args:
        behind_for: seconds after which a machine that is behind counts as overdue.
        now: Unix seconds.
    """
    return {
        "enabled": True,
        **summary(machines),
        "overdue": sum(machine.is_behind(now, seconds=behind_for) for machine in machines),
        "behind_for": behind_for,
        "cloned": sum(machine.cloned for machine in machines),
        "groups": count_groups(machines, behind_for, now),
    }


def _all(own: Iterable[Machine], peers: Sequence[PeerState]) -> Iterator[SeenMachine]:
    for machine in own:
        yield _seen(machine, None)
    for peer in peers:
        for machine in peer.answer.machines if peer.answer is not None else ():
            yield _seen(machine, peer.name)


def _seen(machine: Machine, gateway: str | None) -> SeenMachine:
    values = {one.name: getattr(machine, one.name) for one in _FIELDS}
    return SeenMachine(**values, gateway=gateway)


_FIELDS = fields(Machine)
