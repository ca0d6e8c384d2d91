"""The figures of status.json, as rules for notices read them."""

from __future__ import annotations

from typing import Any

NOW = 1_790_000_000.0
HOUR, DAY = 3600.0, 86400.0


def figures(**changes: Any) -> dict[str, Any]:
    """Figures of a gateway with which nothing is wrong, except for what is changed."""
    stats, fleet = changes.pop("stats", {}), changes.pop("fleet", {})
    storage = {"cache": None, "records": None, "index": None, **stats.get("storage", {})}
    return {
        "gateway": {"now": NOW},
        "ready": True,
        "problems": [],
        "stats": {"storage": storage, "stuck_patches": stats.get("stuck_patches", {})},
        "databases": [{"name": "daily", "advertised": 27802, "cached": 27700, "reached": 27802}],
        "cooldowns": [],
        "quarantine": [],
        "history": {"series": {"requests": [None] * 288, "errors": [None] * 288}},
        "fleet": {"total": 100, "overdue": 0, "unknown": 0, "end_of_life": 0, "behind_for": DAY, **fleet},
        "disk": {"free": 2**33, "least": 2**26},
        "authority": {"expires_at": None},
        "releases": [],
        "files": {"trouble": None, "files": []},
        "peers": [],
        "fleet_store": None,
        **changes,
    }
