"""status.json of gateways in all sorts of states, for the status page."""

from __future__ import annotations

import math
import random
from typing import Any

from tests.support.chromium import merged

NOW = 1_790_001_000.0
"""Mon 21 Sep 2026, 13:50 UTC."""
HOUR, DAY = 3600.0, 86400.0
MIB = 1024**2

type Json = dict[str, Any]

SERIES = ("requests", "hits", "misses", "errors", "bytes_served", "upstream_bytes")


def history(*, missing: range = range(0), seed: int = 7) -> Json:
    """A usual day: few requests at night, an occasional release.

    Args:
        missing: the steps in which the gateway was not running.
        seed: for the random values.
    """
    chance = random.Random(seed)
    series: Json = {name: [] for name in SERIES}
    for step in range(288):
        busy = 3 + 9 * max(0.0, math.sin((step - 60) / 288 * math.pi * 1.4))
        hits = int(chance.gauss(busy, busy / 3)) if busy else 0
        misses = 4 if step % 48 == 7 else int(chance.random() < 0.05)
        errors = 3 if step in (130, 131, 132) else 0
        amounts = {
            "requests": max(0, hits) + misses + errors + int(chance.random() < 0.2),
            "hits": max(0, hits),
            "misses": misses,
            "errors": errors,
            "bytes_served": max(0, hits) * 900_000 + misses * 400_000,
            "upstream_bytes": misses * 400_000 + (62 * MIB if step == 103 else 0),
        }
        for name in SERIES:
            series[name].append(None if step in missing else amounts[name])
    return {"step": 300, "until": NOW - NOW % 300 + 300, "series": series}


def machine(number: int, **changes: Any) -> Json:
    """A machine that is up to date."""
    base = {
        "uuid": f"{number:08x}-8d58-4bdf-8241-{number:012x}",
        "address": f"10.{number // 250 % 250}.4.{number % 250 + 1}",
        "freshclam": "1.4.6",
        "os": "Linux",
        "arch": "x86_64",
        "first_seen": NOW - 40 * DAY,
        "last_seen": NOW - 600 - number * 37,
        "end_of_life": False,
        "databases": {
            "main": {"version": 62, "behind": 0, "behind_since": None, "seen_at": NOW - 9 * DAY},
            "daily": {"version": 27800, "behind": 0, "behind_since": None, "seen_at": NOW - 900},
            "bytecode": {"version": 339, "behind": 0, "behind_since": None, "seen_at": NOW - 900},
        },
        "last_error": None,
    }
    return merged(base, **changes)


def late(number: int, releases: int, **changes: Any) -> Json:
    """A machine whose daily is behind."""
    daily = {
        "version": 27800 - releases,
        "behind": releases,
        "behind_since": NOW - releases * DAY,
        "seen_at": NOW - releases * DAY,
    }
    fields = {"databases": {"daily": daily}, "last_seen": NOW - releases * DAY}
    return merged(machine(number, **fields), **changes)


def unknown(number: int, **changes: Any) -> Json:
    """A machine whose requests haven't told any version yet."""
    return machine(number, **changes) | {"databases": {}}


def groups_of(*machines: Json) -> list[Json]:
    """The groups of these machines, counted as the gateway does."""
    names = sorted({one["group"] for one in machines if one.get("group")})
    counted = []
    for name in [*names, None] if names else []:
        members = [one for one in machines if one.get("group") == name]
        behind = sum(any(known["behind"] for known in one["databases"].values()) for one in members)
        unknown = sum(not one["databases"] for one in members)
        counts = {"total": len(members), "behind": behind, "overdue": behind, "unknown": unknown}
        counted.append({"group": name, "up_to_date": len(members) - behind - unknown, **counts})
    return counted


def fleet_history(*, missing: range = range(0)) -> Json:
    """Thirty days: each release leaves the machines behind for some hours.

    Args:
        missing: the hours in which the gateway was not running.
    """
    current = [round(0.62 + 0.37 * min(1.0, (hour % 24) / 7), 4) for hour in range(720)]
    overdue = [0.015 + 0.0001 * (hour % 100) for hour in range(720)]
    series = {"up_to_date": current, "overdue": overdue}
    return {
        "step": 3600,
        "until": NOW - NOW % 3600 + 3600,
        "series": {
            name: [None if hour in missing else share for hour, share in enumerate(shares)]
            for name, shares in series.items()
        },
    }


def story_of(machine: Json, **changes: Any) -> Json:
    """fleet.json of one machine that gets each release."""
    versions = [
        {
            "database": "daily",
            "version": 27800 - day,
            "at": NOW - day * DAY - 1800,
            "address": machine["address"],
            "fetched": True,
            "came_out": NOW - day * DAY - 3 * HOUR,
            "took": 2.5 * HOUR,
        }
        for day in range(12)
    ]
    base = {
        "now": NOW,
        **{key: machine.get(key) for key in ("uuid", "name", "group", "cloned")},
        "machines": [machine],
        "request_count": 1234,
        "since": NOW - 40 * DAY,
        "versions": versions,
        "freshclam": [{"version": "1.4.6", "at": NOW - 9 * DAY}, {"version": "1.4.5", "at": NOW - 40 * DAY}],
        "errors": [
            {"kind": "status 503", "at": NOW - DAY, "what": "daily-27799.cdiff: status 503", "count": 3}
        ],
        "requests": [
            {
                "at": NOW - 1800,
                "address": machine["address"],
                "what": "daily-27800.cdiff",
                "status": 200,
                "bytes": 14_512,
            }
        ],
    }
    return merged(base, **changes)


def fleet_of(*machines: Json) -> Json:
    """These machines, counted as the gateway does."""
    lags = [[known["behind"] for known in one["databases"].values()] for one in machines]
    since = [
        [known["behind_since"] for known in one["databases"].values() if known["behind"]] for one in machines
    ]
    behind = sum(1 for lag in lags if any(lag))
    up_to_date = sum(1 for lag in lags if lag and not any(lag) and None not in lag)
    return {
        "enabled": True,
        "total": len(machines),
        "up_to_date": up_to_date,
        "behind": behind,
        "unknown": len(machines) - behind - up_to_date,
        "end_of_life": sum(1 for one in machines if one["end_of_life"]),
        "overdue": sum(1 for times in since if any(at is None or NOW - at >= DAY for at in times)),
        "behind_for": DAY,
        "cloned": sum(1 for one in machines if one.get("cloned")),
        "groups": groups_of(*machines),
        "machines": list(machines),
    }


REFUSED = {"at": NOW - 3 * DAY, "what": "503 for daily-27790.cdiff: the origin limits requests for it"}

EMPTY: Json = {
    "gateway": {
        "version": "0.2.0",
        "now": NOW,
        "started_at": NOW - 40,
        "host": "clamproxy",
        "offline": False,
    },
    "ready": True,
    "problems": [],
    "stats": {
        **dict.fromkeys(("requests", "hits", "misses", "collapsed", "stale", "negative", "refused"), 0),
        **dict.fromkeys(("passed", "errors", "bytes_served", "upstream_requests", "upstream_bytes"), 0),
        **{"objects": 0, "cache_bytes": 0, "quarantined": 0, "databases": {}},
        **{"cooldown_until": None, "cooldowns": {}, "budget": {}},
    },
    "hit_ratio": None,
    "bytes_saved": 0,
    "databases": [],
    "transfers": [],
    "cooldowns": [],
    "quarantine": [],
    "fleet": fleet_of(),
    "feeds": {"objects": 0, "bytes": 0, "hosts": []},
    "files": {"enabled": True, "trouble": "", "files": []},
    "history": {
        "step": 300,
        "until": NOW - NOW % 300 + 300,
        "series": {name: [None] * 287 + [0] for name in SERIES},
    },
}
"""A gateway that has just been started for the first time."""


def site_file(name: str, state: str, at: float | None, size: int | None, reason: str = "") -> Json:
    """A file of the site's own."""
    return {
        "name": name,
        "state": state,
        "since": NOW - DAY,
        "reason": reason,
        "size": size,
        "sha256": None if size is None else "0" * 64,
        "published_at": at,
        "checked_by": None if size is None else "clamscan",
    }


def peer(name: str, **changes: Any) -> Json:
    """Another gateway that is well."""
    databases = [("bytecode", 339, 339), ("daily", 27801, 27801), ("main", 62, 62)]
    base = {
        "name": name,
        "url": f"http://{name}",
        "up": True,
        "reason": None,
        "answered_at": NOW - 40,
        "version": "0.2.0",
        "ready": True,
        "problems": [],
        "databases": [{"name": one, "advertised": new, "reached": has} for one, new, has in databases],
        "fleet": {
            **{"enabled": True, "total": 1200, "up_to_date": 1150, "behind": 40, "unknown": 10},
            **{"overdue": 0, "end_of_life": 0},
        },
    }
    return merged(base, **changes)


BUSY: Json = merged(
    EMPTY,
    peers=[
        peer("gw-berlin.example.net:8080"),
        peer(
            "gw-oslo.example.net:8080",
            problems=["the origin can't be reached, so clients get what is cached: no route to host"],
            databases=[{"name": "daily", "advertised": 27801, "reached": 27795}],
            fleet={"behind": 600, "up_to_date": 590, "overdue": 512},
        ),
        peer(
            "gw-rome.example.net:8080",
            up=False,
            reason="Failed to establish a new connection: [Errno 111] Connection refused",
            answered_at=NOW - 5 * HOUR,
        ),
        {
            **peer("10.9.0.1:8080"),
            "up": None,
            "answered_at": None,
            "version": None,
            "ready": None,
            "fleet": None,
        }
        | {"databases": []},
    ],
    gateway={"started_at": NOW - 12 * DAY - 5 * HOUR},
    stats={
        "requests": 48211,
        "hits": 46102,
        "misses": 1204,
        "collapsed": 611,
        "stale": 38,
        "negative": 171,
        "errors": 41,
        "bytes_served": 412 * 1024 * MIB,
        "file_requests": 1840,
        "file_bytes_served": 3 * MIB,
        "upstream_bytes": 5 * 1024 * MIB,
        "byte_hit_ratio": 1 - 5 / 412,
        "objects": 163,
        "cache_bytes": 341 * MIB,
    },
    hit_ratio=0.9742,
    bytes_saved=407 * 1024 * MIB,
    databases=[
        {
            "name": "bytecode",
            "advertised": 339,
            "cached": 339,
            "reached": 339,
            "built_at": NOW - 51 * DAY,
            "size": 282_000,
        },
        {
            "name": "daily",
            "advertised": 27801,
            "cached": 27779,
            "reached": 27800,
            "built_at": NOW - 22 * DAY,
            "size": 62 * MIB,
        },
        {
            "name": "main",
            "advertised": 62,
            "cached": 62,
            "reached": 62,
            "built_at": NOW - 700 * DAY,
            "size": 163 * MIB,
        },
        {
            "name": "safebrowsing",
            "advertised": 49191,
            "cached": None,
            "reached": None,
            "built_at": None,
            "size": None,
        },
    ],
    transfers=[
        {"name": "daily-27801.cvd", "have": 23 * MIB, "size": 62 * MIB},
        {"name": "daily-27801.cdiff", "have": 4000, "size": None},
    ],
    cooldowns=[
        {
            "what": "client ClamAV/0.103.2",
            "until": NOW + 3 * HOUR,
            "failure": "forbidden",
            "reason": "the origin answers 403 to this version (cf-ray 8f1c22a7bb)",
        },
        {
            "what": "/daily-27801.cdiff",
            "until": NOW + 12 * 60,
            "failure": "rate limited",
            "reason": "429 with Retry-After: 720",
        },
    ],
    quarantine=[
        {
            "name": "daily-27798.cdiff",
            "at": NOW - 2 * DAY,
            "size": 14_512,
            "reason": "the signature does not match (cf-ray 8f0ab3)",
        }
    ],
    fleet=fleet_of(
        late(1, 41, freshclam="0.103.2", end_of_life=True, last_error=REFUSED),
        late(2, 12, os="FreeBSD", arch="amd64"),
        unknown(3, freshclam=None, os=None, arch=None),
        late(4, 2, last_seen=NOW - 2 * HOUR),
        unknown(5, last_seen=NOW - 30),
        *(machine(number) for number in range(6, 15)),
    ),
    feeds={
        "objects": 6,
        "bytes": 31 * MIB,
        "hosts": [
            {
                "host": "urlhaus.abuse.ch",
                "requests": 1312,
                "hits": 1290,
                "errors": 0,
                "cooldown_until": None,
            },
            {
                "host": "www.securiteinfo.com",
                "requests": 288,
                "hits": 201,
                "errors": 14,
                "cooldown_until": NOW + 1800,
            },
        ],
    },
    files={
        "enabled": True,
        "trouble": "",
        "files": [
            site_file("site.ign2", "published", NOW - 2 * DAY, 112),
            site_file("local.yar", "refused", NOW - 9 * DAY, 20_480, "line 12: syntax error"),
            site_file("new.ndb", "waiting", None, None, "it couldn't be checked yet"),
            site_file("README.md", "skipped", None, None, "ClamAV loads no .md files"),
        ],
    },
    history=history(missing=range(170, 190)),
)
"""A gateway that has been working for some days."""

NOT_READY: Json = merged(
    EMPTY,
    ready=False,
    problems=[
        "No database is cached, and the origin can't be reached: clients get 503.",
        "DNS gives no advertised versions (current.cvd.clamav.net: timed out), so new releases go unnoticed.",
    ],
    cooldowns=[
        {"what": "origin", "until": NOW + 15, "failure": "unreachable", "reason": "connection refused"},
    ],
    fleet=fleet_of(unknown(1), unknown(2)),
)

HUGE: Json = merged(
    BUSY,
    fleet=fleet_of(
        *(late(number, 60 - number % 60) for number in range(100)),
        *(unknown(number) for number in range(100, 398)),
        *(machine(number) for number in range(398, 2000)),
    ),
)
"""More machines than anyone wants to see at once."""

MANY: Json = merged(
    BUSY,
    fleet=fleet_of(
        *(late(number, 60 - number, end_of_life=number < 7) for number in range(40)),
        *(unknown(number) for number in range(40, 70)),
        *(machine(number) for number in range(70, 300)),
    ),
)
"""A fleet of 300."""

WEB01 = machine(20, name="web01.example.net", group="servers", cloned=True)
GROUPED: Json = merged(
    BUSY,
    fleet=fleet_of(
        WEB01,
        late(21, 3, name="web02.example.net", group="servers"),
        machine(22, group="desktops"),
        unknown(23, group="desktops"),
        machine(24),
    ),
    fleet_history=fleet_history(missing=range(200, 260)),
)
"""Machines with names and groups, and a cloned one."""
