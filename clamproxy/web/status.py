"""The status of the gateway at one moment: for status.json, fleet.json and the metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import clamproxy
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.fleet.machine import Machine, spread, worst_first
from clamproxy.inspection import quarantined
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldown
from clamproxy.peers.merging import counts_of
from clamproxy.peers.peers import PeerState
from clamproxy.pem import read_certificates
from clamproxy.releases.limits_in_force import Limit, read_limits
from clamproxy.site_files import Catalog
from clamproxy.statistics import snapshot
from clamproxy.storage.condition import free_bytes
from clamproxy.web.health import LEAST_SPACE, built_at, find_problems, reading
from clamproxy.web.sources import Sources

MOST_MACHINES = 500
"""How many machines status.json lists, worst first; all are counted, and fleet.json lists all."""
LONGEST_LINE = 300
"""Length of a reason in characters, at most."""

type Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """The gateway at one moment."""

    values: Json
    """The content of status.json."""
    json: bytes
    """`values`, encoded."""
    brief: bytes
    """`values` without the list of machines, encoded."""
    machines: Sequence[Machine]
    """All machines of the fleet, worst first."""
    peers: Sequence[PeerState] = ()
    """Other gateways with their machines."""


def take_status(sources: Sources) -> Callable[[], GatewayStatus]:
    """Copy what belongs to the event loop.

    Returns:
        A function that reads the rest and puts the status together; it blocks.
    """
    settings, past = sources.settings(), sources.past()
    transfers, cooldowns = list(sources.under_way()), dict(sources.cooldowns())
    peers = list(sources.peers())
    rates, processes = sources.rates(), list(sources.processes())
    feeds = sources.feeds() if sources.feeds else {"objects": 0, "bytes": 0, "hosts": []}
    files, fleet_store, site_problem = sources.files(), sources.fleet_store(), sources.site_problem()

    def develop() -> GatewayStatus:
        now, store = time.time(), sources.store
        machines = worst_first(sources.fleet()) if sources.fleet else None
        with reading(store):
            stats = snapshot(store)
            limits = read_limits(store, settings.releases, now)
            health = find_problems(
                store,
                offline=settings.upstream.offline,
                now=now,
                files=files,
                limits=limits,
                fleet_store=fleet_store,
                site_problem=site_problem,
            )
            values = {
                "gateway": _gateway(settings, sources.started_at, processes, now),
                "ready": not health.reasons,
                "problems": [*health.reasons, *health.warnings],
                "stats": stats,
                "hit_ratio": stats["hit_ratio"],
                "bytes_saved": max(0, stats["bytes_served"] - stats["upstream_bytes"]),
                "databases": _databases(store, stats),
                "transfers": _transfers(transfers),
                "rates": rates,
                "cooldowns": _cooldowns(cooldowns),
                "quarantine": _quarantine(store),
                "fleet": _fleet(machines, settings.fleet.behind_for, now),
                "fleet_store": None if fleet_store is None else {**stats["fleet_store"], **fleet_store},
                "feeds": feeds,
                "files": _files(settings, files),
                "releases": [_limit(limit, machines) for limit in limits],
                "history": past.to_json(stats, now),
                "disk": {"free": free_bytes(store.directory), "least": LEAST_SPACE},
                "authority": {"expires_at": _end_of_authority(sources.authority)},
                "notices": sources.notices(),
                "peers": [peer.to_json() for peer in peers],
                "fleet_history": sources.trend(),
            }
        brief = {**values, "fleet": {**values["fleet"], "machines": []}}
        return GatewayStatus(values, _encoded(values), _encoded(brief), machines or (), peers)

    return develop


def _end_of_authority(authority: Callable[[], bytes | None]) -> float | None:
    """When the last of the authority's certificates ends, in Unix seconds; None if there is none."""
    try:
        certificates = read_certificates(authority() or b"")
    except (OSError, ValueError):
        return None
    return max((one.not_valid_after_utc.timestamp() for one in certificates), default=None)


def _encoded(values: Json) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _gateway(settings: Settings, started_at: float, processes: Sequence[int], now: float) -> Json:
    return {
        "version": clamproxy.__version__,
        "now": now,
        "started_at": started_at,
        "host": settings.status.host,
        "offline": settings.upstream.offline,
        "processes": processes,
    }


def _databases(store: Store, stats: Mapping[str, Any]) -> list[Json]:
    found = []
    for name, versions in stats["databases"].items():
        newest = store.open_newest(name)
        size = None
        if newest is not None:
            with newest:
                size = newest.size
        found.append({"name": name, **versions, "built_at": built_at(store, name), "size": size})
    return found


def _limit(limit: Limit, machines: Sequence[Machine] | None) -> Json:
    """A hold or delay, with the number of machines that have which versions."""
    counts = None if machines is None else spread(machines, limit.database, limit.version)._asdict()
    return {**limit.to_json(), "machines": counts}


def _transfers(under_way: Sequence[tuple[ObjectId, int, int]]) -> list[Json]:
    return [
        {"name": object_id.file_name, "have": have, "size": size or None}
        for object_id, have, size in under_way
    ]


def _cooldowns(cooldowns: Mapping[str, Cooldown]) -> list[Json]:
    return [
        {
            "what": what,
            "until": cooldown.until,
            "failure": str(cooldown.failure),
            "reason": _line(cooldown.reason),
        }
        for what, cooldown in sorted(cooldowns.items(), key=lambda item: -item[1].until)
    ]


def _quarantine(store: Store) -> list[Json]:
    return [
        {"name": file.name, "at": file.at, "size": file.size, "reason": _line(file.reason)}
        for file in reversed(quarantined(store))  # newest first
    ]


def _files(settings: Settings, catalog: Catalog) -> Json:
    return {
        "enabled": settings.files.directory is not None,
        "trouble": catalog.trouble,
        "files": [file.to_json() for file in catalog.listed()],
    }


def _line(text: str) -> str:
    lines = text.splitlines()
    return lines[0][:LONGEST_LINE] if lines else ""


def _fleet(machines: Sequence[Machine] | None, behind_for: float, now: float) -> Json:
    """Counts of the machines, and a list of the worst; `machines` is None if no table is kept."""
    found = machines or ()
    return {
        **counts_of(found, behind_for, now),
        "enabled": machines is not None,
        "machines": [machine.to_json() for machine in found[:MOST_MACHINES]],
    }
