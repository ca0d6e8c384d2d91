"""The machines of several gateways as one list."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clamproxy.fleet.machine import Machine
from clamproxy.peers.answers import parse_status
from clamproxy.peers.asking import PeerAnswer
from clamproxy.peers.merging import SeenMachine, counts_of, merged
from clamproxy.peers.peers import PeerState
from tests.harness.status import machine
from tests.unit.test_peers_answers import STATUS, body

NOW = 1_790_000_000.0


def peer(name: str, *machines: Machine) -> PeerState:
    status = parse_status(body(STATUS))
    return PeerState(name, f"http://{name}", up=True, answer=PeerAnswer(status, machines))


def seen(one: Machine, ago: float) -> Machine:
    return replace(one, last_seen=NOW - ago)


def places(machines: list[SeenMachine]) -> dict[str, str | None]:
    return {one.uuid[-1]: one.gateway for one in machines}


def test_each_machine_with_its_gateway() -> None:
    found = merged([machine(1, daily=0)], [peer("b", machine(2, daily=3)), peer("c", machine(3))])
    assert places(found) == {"1": None, "2": "b", "3": "c"}
    assert [one.uuid[-1] for one in found] == ["2", "3", "1"]  # worst first
    assert found[0].to_json() == {**machine(2, daily=3).to_json(), "gateway": "b"}


def test_a_machine_counts_once_where_it_was_seen_last() -> None:
    one = machine(1, daily=0)
    found = merged([seen(one, 300)], [peer("b", seen(one, 10)), peer("c", seen(one, 200))])
    assert [(each.gateway, each.last_seen) for each in found] == [("b", NOW - 10)]
    found = merged([seen(one, 5)], [peer("b", seen(one, 10))])
    assert [each.gateway for each in found] == [None]


def test_of_two_equal_sightings_the_own_one_counts() -> None:
    one = seen(machine(1, daily=0), 5)
    assert [each.gateway for each in merged([one], [peer("b", one)])] == [None]


def test_a_clone_is_another_machine() -> None:
    one = machine(1, daily=0)
    assert len(merged([one], [peer("b", replace(one, address="10.9.9.9"))])) == 2


def test_the_machines_of_one_peer() -> None:
    one = machine(1, daily=0)
    peers = [peer("b", seen(one, 300), machine(2)), peer("c", seen(one, 10))]
    assert places(merged([], peers, "b")) == {"2": "b"}
    assert places(merged([], peers, "c")) == {"1": "c"}


def test_a_peer_that_never_answered() -> None:
    silent = PeerState("b", "http://b", up=False, reason="nobody there")
    assert merged([machine(1)], [silent]) == merged([machine(1)], [])
    values: dict[str, Any] = silent.to_json()
    assert (values["ready"], values["fleet"], values["answered_at"]) == (None, None, None)


def test_counts() -> None:
    found = merged([machine(1, daily=0), machine(2, daily=1)], [peer("b", machine(3, daily=2, eol=True))])
    assert counts_of(found, 86400.0, NOW) == {
        **{"enabled": True, "total": 3, "up_to_date": 1, "behind": 2, "unknown": 0, "end_of_life": 1},
        **{"overdue": 2, "behind_for": 86400.0, "cloned": 0, "groups": []},
    }


def test_groups_of_several_gateways_are_counted_together() -> None:
    own = replace(machine(1, daily=0), group="servers")
    theirs = replace(machine(2, daily=1), group="servers", cloned=True)
    counts = counts_of(merged([own], [peer("b", theirs, machine(3))]), 86400.0, NOW)
    assert counts["cloned"] == 1
    assert [(one["group"], one["total"], one["overdue"]) for one in counts["groups"]] == [
        ("servers", 2, 1),
        (None, 1, 0),
    ]
