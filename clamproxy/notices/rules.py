"""What there are notices about: a table of rules, each a pure function of the figures in status.json.

The rules that Prometheus can check too have the same names there (contrib/prometheus/clamproxy-alerts.yml).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from clamproxy.readable import one_line, shown_count, shown_share, shown_size, shown_span

type Figures = Mapping[str, Any]
"""The values of status.json."""
type Found = Iterator[tuple[str, str | None]]
type Check = Callable[[Figures], Found]
"""What is the case now: for each subject of the rule that is concerned, its name and a line for people; None
instead of the line if it isn't known yet whether it is the case, as after a start. The name is empty if the
rule has only one subject."""

HOUR, DAY = 3600.0, 86400.0
RENEW_AUTHORITY = 30 * DAY
"""How long before its end an authority should be rotated, in seconds."""
MOST_SUBJECTS = 20
"""How many subjects of a rule there are alerts about."""
LONGEST_TEXT = 300
"""Length of an alert's text in characters, at most; some quote the origin or other gateways."""
MOST_ERRORS, MOST_OVERDUE = 0.05, 0.1
"""Shares of the requests and of the machines, as in the alert rules."""
ERROR_STEPS = 4
"""How many steps of the history the share of errors is taken from; the last one has only begun."""


class Severity(StrEnum):
    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    severity: Severity
    title: str
    """What is the case, in a few words."""
    remedy: str
    """What to do, in a line."""
    check: Check
    lasting: float = 0.0
    """Seconds for which it must have been the case without a break, if that is longer than notify.after."""
    gap: float = 0.0
    """Breaks of up to this many seconds don't count as such."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that applies now."""

    rule: Rule
    subject: str
    text: str

    @property
    def key(self) -> str:
        return key_of(self.rule.name, self.subject)


def key_of(rule: str, subject: str) -> str:
    """By this an alert is remembered."""
    return f"{rule}/{subject}"


def find_alerts(figures: Figures, ignored: Iterable[str] = ()) -> list[Alert]:
    """Everything that is the case now, worst first."""
    left_out = frozenset(ignored)
    return [
        Alert(rule, subject, one_line(text, LONGEST_TEXT))
        for rule in RULES
        if rule.name not in left_out
        for subject, text in islice((one for one in rule.check(figures) if one[1] is not None), MOST_SUBJECTS)
        if text is not None
    ]


def find_unknown(figures: Figures, ignored: Iterable[str] = ()) -> frozenset[str]:
    """The keys of alerts of which it isn't known whether they are the case."""
    left_out = frozenset(ignored)
    return frozenset(
        key_of(rule.name, subject)
        for rule in RULES
        if rule.name not in left_out
        for subject, text in rule.check(figures)
        if text is None
    )


def _not_ready(figures: Figures) -> Found:
    if not figures["ready"]:
        yield "", "; ".join(figures["problems"])


def _behind(figures: Figures) -> Found:
    for database in figures["databases"]:
        name, advertised, reached = database["name"], database["advertised"], database["reached"]
        if not advertised:
            yield name, None
        elif reached and reached < advertised:
            yield name, f"{name} {advertised} is advertised, but machines only get {reached}"


def _errors(figures: Figures) -> Found:
    series = figures["history"]["series"]
    steps = [series[name][-ERROR_STEPS:] for name in ("requests", "errors")]
    requests, errors = (sum(n or 0 for n in one) for one in steps)
    if not requests and None in steps[0]:
        yield "", None  # the gateway wasn't running
    elif errors > MOST_ERRORS * requests:
        yield "", f"{shown_share(errors / requests)} of the requests of the last minutes failed"


def _cooldown(figures: Figures) -> Found:
    # Not those of client versions: the origin refuses old versions for good.
    kept = [one for one in figures["cooldowns"] if not one["what"].startswith("client ")]
    whole = [one for one in kept if not one["what"].startswith("/")]
    for kind, found in (("origin", whole), ("file", [one for one in kept if one not in whole])):
        if found:
            yield kind, f"{found[0]['what']}: {found[0]['reason']}"


def _storage(figures: Figures) -> Found:
    storage = figures["stats"]["storage"]
    for name in ("cache", "records"):
        if storage[name] is not None:
            yield name, storage[name]["reason"]
    if storage["index"] is not None:
        yield "index", f"the index of the cache is damaged: {storage['index']}"


def _disk(figures: Figures) -> Found:
    free = figures["disk"]["free"]
    if free < figures["disk"]["least"]:
        yield "", f"{shown_size(free)} are free on the cache's disk"


def _quarantine(figures: Figures) -> Found:
    now = figures["gateway"]["now"]
    recent = [file for file in figures["quarantine"] if now - file["at"] < DAY]
    if recent:
        count = shown_count(len(recent), "file")
        yield "", f"{count} within the last day, the latest {recent[0]['name']}: {recent[0]['reason']}"


def _stuck(figures: Figures) -> Found:
    for name, trouble in figures["stats"]["stuck_patches"].items():
        yield name, f"{name} failed verification {trouble['failures']} times"


def _overdue(figures: Figures) -> Found:
    fleet = figures["fleet"]
    if 0 < fleet["total"] == fleet["unknown"]:
        yield "", None
    elif fleet["overdue"] > MOST_OVERDUE * fleet["total"]:
        allowed = shown_span(fleet["behind_for"])
        yield (
            "",
            f"{fleet['overdue']:,} of {fleet['total']:,} machines have been behind for more than {allowed}",
        )


def _end_of_life(figures: Figures) -> Found:
    count = figures["fleet"]["end_of_life"]
    if count:
        verb = "has" if count == 1 else "have"
        yield "", f"{shown_count(count, 'machine')} {verb} a freshclam past its end of life"


def _authority(figures: Figures) -> Found:
    end = figures["authority"]["expires_at"]
    left = None if end is None else end - figures["gateway"]["now"]
    if left is not None and left < RENEW_AUTHORITY:
        yield "", f"it ends in {shown_span(left)}" if left > 0 else f"it ended {shown_span(-left)} ago"


def _forgotten(figures: Figures) -> Found:
    now = figures["gateway"]["now"]
    for limit in figures["releases"]:
        if limit["forgotten"]:
            held = f"held at version {limit['version']} for {shown_span(now - limit['since'])}"
            yield limit["database"], f"{limit['database']} has been {held}, by {limit['by']}"


def _site_files(figures: Figures) -> Found:
    files = figures["files"]
    if files["trouble"]:
        yield "", files["trouble"]
    for file in files["files"]:
        if file["state"] == "refused":
            yield file["name"], f"{file['name']}: {file['reason']}"


def _peer(figures: Figures) -> Found:
    for peer in figures["peers"]:
        # The gateways of a site come and go: they may be replicas.
        if not peer["up"] and not peer.get("site"):
            yield peer["name"], None if peer["up"] is None else peer["reason"]


def _fleet_store(figures: Figures) -> Found:
    store = figures["fleet_store"]
    if store is not None and store["failure"] is not None:
        yield "", store["failure"]


RULES = (
    Rule(
        "ClamproxyNotReady",
        Severity.CRITICAL,
        "the gateway can't serve clients",
        "Its page and /readyz say why: the disk, the clock, or nothing to serve.",
        _not_ready,
    ),
    Rule(
        "ClamproxyAuthorityExpires",
        Severity.CRITICAL,
        "the certificate authority expires",
        "Run `clamproxy ca rotate`, then `clamproxy ca install` on the machines.",
        _authority,
    ),
    Rule(
        "ClamproxyStorageTrouble",
        Severity.WARNING,
        "nothing can be stored",
        "What is intact is served. `clamproxy doctor` says what is wrong with the disk.",
        _storage,
    ),
    Rule(
        "ClamproxyDiskFull",
        Severity.WARNING,
        "the disk is nearly full",
        "Make room, or lower cache.size_limit.",
        _disk,
    ),
    Rule(
        "ClamproxyDatabaseBehind",
        Severity.WARNING,
        "a database is behind",
        "Its machines don't get the newest signatures either. The page shows cool-downs and transfers; "
        "`clamproxy doctor` says what to do.",
        _behind,
        # There is usually a release a day: in two days without a break, at least one was missed.
        lasting=2 * DAY,
    ),
    Rule(
        "ClamproxyCooldown",
        Severity.WARNING,
        "the origin has not delivered for hours",
        "Clients get what is cached. `clamproxy doctor` says what to do.",
        _cooldown,
        lasting=3 * HOUR,
        gap=900.0,  # it ends for a moment whenever the origin is tried again
    ),
    Rule(
        "ClamproxyErrors",
        Severity.WARNING,
        "requests fail",
        "Clients try again by themselves. The log says why, and `clamproxy doctor` what to do.",
        _errors,
        lasting=900.0,
    ),
    Rule(
        "ClamproxyQuarantineGrew",
        Severity.WARNING,
        "files failed verification",
        "They were not served. Something between the gateway and the origin changes files, or the disk does; "
        "the quarantine holds what arrived.",
        _quarantine,
    ),
    Rule(
        "ClamproxyStuckPatch",
        Severity.WARNING,
        "a patch keeps failing verification",
        "Machines are told to take the whole CVD. If something on the way changes files, repair that.",
        _stuck,
    ),
    Rule(
        "ClamproxyMachinesBehind",
        Severity.WARNING,
        "many machines are overdue",
        "`clamproxy fleet --behind-for 24h` lists them; `clamproxy doctor` on one of them says more.",
        _overdue,
        lasting=6 * HOUR,
    ),
    Rule(
        "ClamproxyHoldForgotten",
        Severity.WARNING,
        "a release has been held for long",
        "No machine gets a newer version. `clamproxy hold` says why; `clamproxy release` lifts the hold.",
        _forgotten,
    ),
    Rule(
        "ClamproxySiteFileRefused",
        Severity.WARNING,
        "a file in files.directory isn't published",
        "Machines keep the last good version. `clamproxy files` says what is wrong with it.",
        _site_files,
        lasting=900.0,
    ),
    Rule(
        "ClamproxyPeerDown",
        Severity.WARNING,
        "another gateway doesn't answer",
        "Its machines get no updates if it is down. Check its service, and fleet.peers.",
        _peer,
    ),
    Rule(
        "ClamproxyFleetStoreDown",
        Severity.WARNING,
        "the object store can't be used",
        "Each gateway works alone, and asks the origin for itself. `clamproxy doctor` says what is wrong.",
        _fleet_store,
    ),
    Rule(
        "ClamproxyEndOfLifeClients",
        Severity.INFO,
        "machines have an old freshclam",
        "The CDN refuses such versions sooner or later. `clamproxy fleet` lists them.",
        _end_of_life,
        lasting=DAY,
    ),
)
"""Worst first. A new rule is a row here, and a function above that says when it applies."""
RULE_OF = {rule.name: rule for rule in RULES}
