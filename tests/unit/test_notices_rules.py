"""What there are notices about: each rule on figures where it applies and where it doesn't."""

from __future__ import annotations

import re
from typing import Any

import pytest

from clamproxy.notices.rules import LONGEST_TEXT, MOST_SUBJECTS, RULES, find_alerts, find_unknown
from tests.support.contrib import CONTRIB
from tests.support.figures import DAY, HOUR, NOW, figures

DAILY = {"name": "daily", "advertised": 27802, "cached": 27700, "reached": 27800}
FILE = {"name": "daily.cvd", "at": NOW - HOUR, "size": 1, "reason": "an error page"}
COOLDOWN = {"what": "origin", "until": NOW + 60, "failure": "unreachable", "reason": "no route to host"}
PEER = {"name": "gw2:8080", "up": False, "reason": "Connection refused"}


HOLD = {"database": "daily", "version": 27800, "since": NOW - 4 * DAY, "by": "admin", "forgotten": True}
REFUSED = {"name": "site.ndb", "state": "refused", "reason": "malformed at line 3"}


def history(requests: list[int | None], errors: list[int | None]) -> dict[str, Any]:
    return {"series": {"requests": requests, "errors": errors}}


def found(**changes: Any) -> list[tuple[str, str, str]]:
    return [(one.rule.name, one.subject, one.text) for one in find_alerts(figures(**changes))]


def test_nothing_is_wrong() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("changes", "name", "subject", "text"),
    [
        (
            {"ready": False, "problems": ["the clock is wrong", "degraded"]},
            *("NotReady", "", "the clock is wrong; degraded"),
        ),
        (
            {"databases": [DAILY]},
            "DatabaseBehind",
            "daily",
            "daily 27802 is advertised, but machines only get 27800",
        ),
        (
            {"history": history([None, 10, 10, 10, 10], [None, 0, 1, 1, 1])},
            *("Errors", "", "7.5% of the requests of the last minutes failed"),
        ),
        ({"cooldowns": [COOLDOWN]}, "Cooldown", "origin", "origin: no route to host"),
        (
            {"cooldowns": [{**COOLDOWN, "what": "/daily.cvd", "reason": "429"}]},
            *("Cooldown", "file", "/daily.cvd: 429"),
        ),
        (
            {"stats": {"storage": {"cache": {"state": "full", "reason": "/c is full"}}}},
            *("StorageTrouble", "cache", "/c is full"),
        ),
        (
            {"stats": {"storage": {"index": "bad header"}}},
            *("StorageTrouble", "index", "the index of the cache is damaged: bad header"),
        ),
        (
            {"fleet_store": {"failure": "s3://b/p: Connection refused"}},
            *("FleetStoreDown", "", "s3://b/p: Connection refused"),
        ),
        ({"disk": {"free": 2**20, "least": 2**26}}, "DiskFull", "", "1.0 MiB are free on the cache's disk"),
        (
            {"quarantine": [FILE, {**FILE, "at": NOW - 3 * DAY}]},
            *("QuarantineGrew", "", "1 file within the last day, the latest daily.cvd: an error page"),
        ),
        (
            {"stats": {"stuck_patches": {"daily-27801.cdiff": {"failures": 5}}}},
            *("StuckPatch", "daily-27801.cdiff", "daily-27801.cdiff failed verification 5 times"),
        ),
        (
            {"fleet": {"total": 10_000, "overdue": 1001}},
            *("MachinesBehind", "", "1,001 of 10,000 machines have been behind for more than 24 h"),
        ),
        (
            {"fleet": {"total": 5, "end_of_life": 1}},
            *("EndOfLifeClients", "", "1 machine has a freshclam past its end of life"),
        ),
        ({"authority": {"expires_at": NOW + 3 * DAY}}, "AuthorityExpires", "", "it ends in 3 d"),
        ({"authority": {"expires_at": NOW - 3 * DAY}}, "AuthorityExpires", "", "it ended 3 d ago"),
        (
            {"releases": [HOLD, {**HOLD, "database": "main", "forgotten": False}]},
            *("HoldForgotten", "daily", "daily has been held at version 27800 for 4 d, by admin"),
        ),
        (
            {"files": {"trouble": None, "files": [REFUSED, {**REFUSED, "state": "published"}]}},
            *("SiteFileRefused", "site.ndb", "site.ndb: malformed at line 3"),
        ),
        (
            {"files": {"trouble": "/f: Permission denied", "files": []}},
            *("SiteFileRefused", "", "/f: Permission denied"),
        ),
        ({"peers": [PEER]}, "PeerDown", "gw2:8080", "Connection refused"),
    ],
)
def test_an_alert(changes: dict[str, Any], name: str, subject: str, text: str) -> None:
    assert found(**changes) == [(f"Clamproxy{name}", subject, text)]


@pytest.mark.parametrize(
    "changes",
    [
        {"problems": ["degraded: something lesser"]},
        {"databases": [{**DAILY, "reached": 27802}]},
        {"databases": [{**DAILY, "reached": None}]},  # nobody has asked for it
        {"databases": [{**DAILY, "advertised": None}]},
        {"history": history([100] * 288, [5] * 288)},  # 5 % exactly
        {"history": history([100, *[0] * 4], [100, *[0] * 4])},  # long ago
        {"cooldowns": [{**COOLDOWN, "what": "client ClamAV/0.103.2"}]},
        {"quarantine": [{**FILE, "at": NOW - 2 * DAY}]},
        {"fleet": {"total": 10, "overdue": 1}},  # a tenth exactly
        {"authority": {"expires_at": NOW + 40 * DAY}},
        {"peers": [{**PEER, "up": True}, {**PEER, "up": None}]},
    ],
)
def test_no_alert(changes: dict[str, Any]) -> None:
    assert found(**changes) == []


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, set()),
        ({"databases": [{**DAILY, "advertised": None}]}, {"DatabaseBehind/daily"}),
        ({"history": history([7, None, None, None, 0], [7, None, None, None, 0])}, {"Errors/"}),
        ({"history": history([7, 0, 0, 0, 0], [7, 0, 0, 0, 0])}, set()),
        ({"fleet": {"total": 5, "unknown": 5}}, {"MachinesBehind/"}),
        ({"fleet": {"total": 0, "unknown": 0}}, set()),
        ({"peers": [{**PEER, "up": None}, {**PEER, "name": "gw3"}]}, {"PeerDown/gw2:8080"}),
    ],
)
def test_what_is_not_known_yet(changes: dict[str, Any], keys: set[str]) -> None:
    calm = {"history": history([0] * 288, [0] * 288), **changes}
    assert find_unknown(figures(**calm)) == {f"Clamproxy{key}" for key in keys}
    assert find_unknown(figures(**calm), [rule.name for rule in RULES]) == set()


def test_what_is_ignored() -> None:
    changed = figures(peers=[PEER], databases=[DAILY])
    assert [one.rule.name for one in find_alerts(changed, ["ClamproxyPeerDown"])] == [
        "ClamproxyDatabaseBehind"
    ]


def test_foreign_texts_are_short_and_harmless() -> None:
    hostile = {**PEER, "reason": "a\r\nBcc: b\x1b[31m\u202e" + "x " * 2500}
    (alert,) = find_alerts(figures(peers=[hostile]))
    assert alert.text.startswith("a Bcc: b?[31m?x x x")
    assert len(alert.text) <= LONGEST_TEXT


def test_there_are_not_endless_many() -> None:
    stuck = {f"daily-{number}.cdiff": {"failures": 5} for number in range(1000)}
    assert len(found(stats={"stuck_patches": stuck})) == MOST_SUBJECTS


_UNITS = {"minutes": 60.0, "hours": HOUR, "day": DAY, "days": DAY}


def test_the_document_has_each_rule() -> None:
    text = (CONTRIB.parent / "docs/monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(Clamproxy\w+)` \| .+ \| (?:(\d+) (\w+) )?\|$", text, re.MULTILINE)
    told = {name: float(count) * _UNITS[unit] if count else 0.0 for name, count, unit in rows}
    assert list(told.items()) == [(rule.name, rule.lasting) for rule in RULES]


def test_names_are_those_of_the_alert_rules() -> None:
    text = (CONTRIB / "prometheus/clamproxy-alerts.yml").read_text(encoding="utf-8")
    alerts = set(re.findall(r"alert: (\w+)", text))
    names = {rule.name for rule in RULES}
    # A gateway that is down can't say so itself.
    assert alerts - names == {"ClamproxyDown"}
    assert len(names) == len(RULES)
