"""``clamproxy verify``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from clamproxy.cache.store import Store
from clamproxy.cli.bars import Bars
from clamproxy.cli.common import (
    cached_databases,
    config_option,
    database_option,
    fail,
    keys_of,
    opened_store,
    require_known,
    require_owner,
    settings_of,
    shown_trouble,
    tell,
)
from clamproxy.cli.fetching import refetch
from clamproxy.config.settings import Settings
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.inspection import Inspected, inspect_all, listed, quarantined, reject
from clamproxy.objects import Kind, ObjectId
from clamproxy.readable import plain, shown_count, shown_size, shown_time

_BAR = "cache"


@dataclass(slots=True)
class _Case:
    """A bad object, and what happened to it."""

    finding: Inspected
    outcome: str = "kept"
    """One of "kept", "gone", "dropped" and "mended"."""
    remark: str | None = None
    """Why it could not be fetched again."""

    @property
    def is_mended(self) -> bool:
        """Whether clients get what they should."""
        return self.outcome in ("mended", "gone")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.finding.object_id.file_name,
            "size": self.finding.size,
            "reason": self.finding.problem,
            "damaged": self.finding.is_damaged,
            "outcome": self.outcome,
            "remark": self.remark,
        }


@click.command()
@config_option
@database_option("all cached ones")
@click.option("--repair", is_flag=True, help="Move bad files to the quarantine and fetch them again.")
@click.option(
    "--no-fetch", is_flag=True, help="With --repair: fetch nothing now; it happens when clients ask."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    config: str | None, databases: tuple[str, ...], repair: bool, no_fetch: bool, as_json: bool
) -> None:
    """Check the length and the signature of each cached file.

    The signatures are checked with ClamAV's keys. The proxy may be running. The exit code is 1 if a file
    is bad or could not be checked. With --repair, it is 1 only if a bad file could not be replaced: the
    origin can't be asked now (upstream.offline, --no-fetch, a cool-down), or doesn't deliver it.
    """
    if no_fetch and not repair:
        raise click.UsageError("--no-fetch needs --repair.")
    settings = settings_of(config)
    directory = settings.cache.directory
    require_owner(directory)
    keys = keys_of(settings)
    with opened_store(directory, keys=keys) as store:
        require_known(databases, settings, cached_databases(store) | store.databases())
        try:
            checked, total, cases = _check(store, databases, keys)
            for case in cases if repair else ():
                _drop(store, case)
        except OSError as error:
            fail(shown_trouble(directory, error))
    if repair:
        _fetch_anew(settings, cases, asks=not (no_fetch or settings.upstream.offline))
    with opened_store(directory) as store:
        _report(store, checked, total, cases, as_json=as_json)
    sys.exit(0 if all(case.is_mended for case in cases) else 1)


def _check(store: Store, databases: Iterable[str], keys: TrustedKeys) -> tuple[int, int, list[_Case]]:
    """Check everything; returns the number of objects, their bytes, and the bad ones."""
    names = listed(store, set(databases))
    sizes = store.sizes()
    checked, total, cases = 0, 0, []
    with Bars() as bars:
        bars.begin({_BAR: sum(sizes.get(name, 0) for name in names)})
        findings = inspect_all(store, names, keys, lambda name: bars.advance(_BAR, sizes.get(name, 0)))
        for finding in findings:
            checked, total = checked + 1, total + finding.size
            if finding.problem is not None:
                cases.append(_Case(finding))
    return checked, total, cases


def _drop(store: Store, case: _Case) -> None:
    if case.finding.is_damaged:
        case.outcome = "dropped" if reject(store, case.finding) else "gone"


def _fetch_anew(settings: Settings, cases: Iterable[_Case], *, asks: bool) -> None:
    dropped = {case.finding.object_id: case for case in cases if case.outcome == "dropped"}
    for object_id, case in dropped.items():
        if object_id.kind is Kind.CLD:
            case.outcome = "mended"  # it is built again when a client asks for it
    wanted = {object_id for object_id, case in dropped.items() if case.outcome == "dropped"}
    if not wanted:
        return
    failures = refetch(settings, _in_order(wanted)) if asks else dict.fromkeys(wanted, "not fetched")
    for object_id in wanted:
        dropped[object_id].remark = failures.get(object_id)
        if object_id not in failures:
            dropped[object_id].outcome = "mended"


def _in_order(objects: Iterable[ObjectId]) -> list[ObjectId]:
    """Patches first, from the oldest: otherwise, retention would take their signatures for strays."""
    return sorted(objects, key=lambda one: (one.database, one.kind is Kind.CVD, one.version, one.kind))


def _report(store: Store, checked: int, total: int, cases: list[_Case], *, as_json: bool) -> None:
    rejected = quarantined(store)
    if as_json:
        report = {
            "checked": checked,
            "bytes": total,
            "ok": all(case.is_mended for case in cases),
            "bad": [case.to_json() for case in cases],
            "quarantine": [
                {"name": one.name, "at": one.at, "size": one.size, "reason": one.reason} for one in rejected
            ],
        }
        click.echo(json.dumps(report, indent=2))
        return
    for case in cases:
        remark = f" ({case.remark})" if case.remark else ""
        outcome = "" if case.outcome == "kept" else f"; {case.outcome}{remark}"
        tell(f"{case.finding.object_id.file_name}: {plain(case.finding.problem or '')}{outcome}")
    for one in rejected:
        size = shown_size(one.size)
        tell(f"In quarantine since {shown_time(one.at)}: {plain(one.name)}, {size}: {plain(one.reason)}")
    verdict = f"{len(cases):,} bad" if cases else "all good"
    tell(f"{shown_count(checked, 'object')}, {shown_size(total)}: {verdict}.")
