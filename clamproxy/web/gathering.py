"""Puts together what each of several workers knows, so that every page speaks for all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from clamproxy.objects import ObjectId

type Figures = Mapping[str, Any]
"""From `Service.own_figures`, with a pid."""
type UnderWay = Sequence[tuple[ObjectId, int, int]]


def processes_of_all(others: Sequence[Figures]) -> list[int]:
    """The pids of all workers that serve, and of their parent."""
    pids = [os.getpid(), *(other["pid"] for other in others)]
    return sorted(pids) if not others else [os.getppid(), *sorted(pids)]


def transfers_of_all(own: UnderWay, others: Sequence[Figures]) -> UnderWay:
    """The transfers of all workers. One that several know of counts once, as far as it has got."""
    found = {object_id: (have, size) for object_id, have, size in own}
    for other in others:
        for name, have, size in other["transfers"]:
            object_id = ObjectId.parse(name)
            found[object_id] = max((have, size), found.get(object_id, (0, 0)))
    return [(object_id, have, size) for object_id, (have, size) in found.items()]


def feeds_of_all(own: Mapping[str, Any], others: Sequence[Figures]) -> dict[str, Any]:
    """The feeds as in status.json, with the counts of all workers."""
    hosts: dict[str, dict[str, Any]] = {}
    for counted in (own["hosts"], *(other["feeds"] for other in others)):
        for host in counted:
            before = hosts.get(host["host"])
            hosts[host["host"]] = dict(host) if before is None else _sum(before, host)
    return {**own, "hosts": [hosts[name] for name in sorted(hosts)]}


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    ends = [end for end in (one["cooldown_until"], other["cooldown_until"]) if end is not None]
    counts = {name: one[name] + other[name] for name in ("requests", "hits", "errors")}
    return {**one, **counts, "cooldown_until": max(ends, default=None)}
