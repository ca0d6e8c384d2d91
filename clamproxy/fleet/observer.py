"""The observer: what a request tells about a machine's databases. No guesses.

freshclam never says which version it has, but its requests show it (docs/protocol.md 1.2, 1.3):

* ``daily-N.cdiff``: it has N-1; after receiving the whole cdiff, N. If it asks again, it still has N-1;
* ``daily-N.cvd.sign``: it has the CVD N;
* a whole CVD or CLD: after receiving it, that version;
* If-Modified-Since: it has the version that was built then. Without the field it has none.

Any of this may be wrong a moment later, and is corrected by the next request. If several processes answer a
machine, its visits may be written in another order than they happened: what was learnt later stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clamproxy.dates import parse_http_date
from clamproxy.fleet.visit import Visit
from clamproxy.objects import Kind, Latest, ObjectId, Target

LONGEST_DISORDER = 60.0
"""Seconds within which visits that several processes have answered may be written in another order. A longer
time tells of a clock that was set back: then the last one written counts."""

type FindBuild = Callable[[str, int], int | None]
"""Returns the version of a database that was built at a time, in Unix seconds; None if it isn't known."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A version that a machine has."""

    version: int
    seen_at: float
    """When this was learned, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that went wrong for a machine."""

    at: float
    what: str
    """One line."""
    kind: str = "other"
    """What it has in common with others, without the file's name: one of a few."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known about one machine."""

    holdings: Mapping[str, Holding] = field(default_factory=dict)
    """Versions by database; a missing one is not known."""
    last_error: Failure | None = None

    def holding(self, database: str, version: int | None, at: float) -> Knowledge:
        """A copy with another version of a database; None if it is not known any more."""
        if self.is_outdated(database, at):
            return self
        holdings = dict(self.holdings)
        if version is None:
            holdings.pop(database, None)
        else:
            holdings[database] = Holding(version, at)
        return Knowledge(holdings, self.last_error)

    def is_outdated(self, database: str, at: float) -> bool:
        """Whether something has been learnt about a database since."""
        before = self.holdings.get(database)
        return before is not None and is_later(before.seen_at, at)

    def failing(self, failure: Failure) -> Knowledge:
        """A copy with another error, unless a newer one is known."""
        last = self.last_error
        return (
            self if last is not None and is_later(last.at, failure.at) else Knowledge(self.holdings, failure)
        )


def is_later(written: float, at: float) -> bool:
    """Whether what is written already happened later than what is written now; both in Unix seconds."""
    return 0 < written - at <= LONGEST_DISORDER


def observe(visit: Visit, known: Knowledge, find_build: FindBuild) -> Knowledge:
    """What is known after a request.

    Args:
        visit: the request and its response.
        known: what was known before.
    """
    return received(visit, asked(visit, known, find_build))


def asked(visit: Visit, known: Knowledge, find_build: FindBuild) -> Knowledge:
    """What is known as soon as a request has come, whatever the response will be.

    Args:
        known: what was known before.
    """
    if visit.method != "GET":
        return known
    match visit.target:
        case ObjectId(kind=Kind.CDIFF) as cdiff:
            return _asked_for_cdiff(visit, cdiff, known)
        case ObjectId(kind=Kind.CVD_SIGN) as signature:
            return known.holding(signature.database, signature.version, visit.at)
        case Latest() as latest:
            return _asked_for_whole(visit, latest, known, find_build)
    return known


def received(visit: Visit, known: Knowledge) -> Knowledge:
    """What is known after the response as well: a version that changes here has been fetched.

    Args:
        known: what the request has shown, from `asked`.
    """
    if visit.method != "GET":
        return known
    is_whole = visit.status == 200 and visit.complete
    match visit.target:
        # An empty one tells clients to fetch the whole CVD instead (trap 15).
        case ObjectId(kind=Kind.CDIFF) as cdiff if is_whole and visit.length > 0 and cdiff.version >= 2:
            known = known.holding(cdiff.database, cdiff.version, visit.at)
        case Latest() as latest if is_whole and not visit.range_probe and visit.version is not None:
            known = known.holding(latest.database, visit.version, visit.at)
    failure = _failure(visit)
    return known if failure is None else known.failing(failure)


def _asked_for_cdiff(visit: Visit, cdiff: ObjectId, known: Knowledge) -> Knowledge:
    if cdiff.version < 2:
        return known
    before = known.holdings.get(cdiff.database)
    if known.is_outdated(cdiff.database, visit.at):
        return known
    if before is not None and before.version >= cdiff.version:
        known = known.failing(Failure(visit.at, f"asked for {cdiff.file_name} again", "asked again"))
    return known.holding(cdiff.database, cdiff.version - 1, visit.at)


def _asked_for_whole(visit: Visit, latest: Latest, known: Knowledge, find_build: FindBuild) -> Knowledge:
    database = latest.database
    since = parse_http_date(visit.if_modified_since)
    if visit.if_modified_since is None:
        if database in known.holdings and not known.is_outdated(database, visit.at):
            what = f"asked for {_name(latest)} as if it had no version"
            known = known.failing(Failure(visit.at, what, "asked anew"))
        return known.holding(database, None, visit.at)
    if since is not None and (version := find_build(database, int(since))) is not None:
        return known.holding(database, version, visit.at)
    return known


def _failure(visit: Visit) -> Failure | None:
    """What went wrong with a response; None if nothing did."""
    target = visit.target
    if target is None:
        return None
    if visit.status >= 400:
        is_normal = visit.status == 404 and (visit.is_held_back or _may_be_missing(target))
        status = f"status {visit.status}"
        return None if is_normal else Failure(visit.at, f"{_name(target)}: {status}", status)
    if visit.complete:
        return None
    what = f"{_name(target)}: interrupted after {visit.length:,} bytes"
    return Failure(visit.at, what, "interrupted")


def _may_be_missing(target: Target) -> bool:
    """Whether freshclam continues without the file: a signature, or a CLD before the CVD.

    Source: docs/protocol.md 2.2.
    """
    return target.kind in (Kind.CVD_SIGN, Kind.CDIFF_SIGN, Kind.CLD)


def _name(target: Target) -> str:
    return target.upstream_path.removeprefix("/")
