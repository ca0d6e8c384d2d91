"""What a gateway takes from its site's object store, what it gives, and what is dropped there. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from clamproxy.cache.retention import to_drop, under_ceilings
from clamproxy.objects import Kind, ObjectId

CLIENTS_WAIT = 20.0
"""Seconds that a transfer waits for another gateway's while a client waits for it. The client waits for 25
seconds in all, and the origin needs some of them if the other gateway doesn't deliver."""
NOBODY_WAITS = 600.0
"""The same while no client waits. The other gateway's progress can't be seen; main.cvd takes that long at
300 KB/s."""


def left_to_wait(now: float, since: float, client_since: float | None) -> float:
    """Seconds for which a transfer still waits for another gateway, before it fetches for itself.

    Args:
        now: all in monotonic seconds.
        since: when it began to wait.
        client_since: when the first client began to wait for it; None if none does.
    """
    until = since + NOBODY_WAITS
    if client_since is not None:
        until = min(until, client_since + CLIENTS_WAIT)
    return until - now


def name_of_fetch(object_id: ObjectId) -> str:
    """The name of the lease for a file of the origin. All versions of a whole CVD have the same there."""
    return f"fetch {object_id.upstream_path.removeprefix('/')}"


def to_take(
    site: Collection[ObjectId],
    own: Collection[ObjectId],
    database: str,
    ceiling: int | None = None,
    proven: int = 0,
) -> list[ObjectId]:
    """What the site has of a database that this gateway needs to serve the same versions, in this order.

    That is the newest CVD, the patches after it, and their signatures. Under a ceiling, it is also what
    clients need that are shown no later version. Older patches are brought when a client asks for them.

    Args:
        site: what the object store has.
        own: what this gateway has.
        ceiling: the highest version that clients are shown; None if that isn't limited.
        proven: the newest version that was ever here. Without a ceiling, a CVD that leads only to an older
            one isn't taken.
    """
    theirs = {one for one in site if one.database == database and one.kind is not Kind.CLD}
    ours = {one for one in own if one.database == database}
    cvds = {one.version for one in theirs | ours if one.kind is Kind.CVD}
    base = reached = max(cvds, default=0)
    while ObjectId(database, reached + 1, Kind.CDIFF) in theirs | ours:
        reached += 1
    wanted = {one for one in theirs if _belongs_to(one, base)}
    if ceiling is None and reached < proven:
        wanted = {one for one in wanted if one.version > base}
    if ceiling is not None:
        wanted |= under_ceilings(theirs | ours, {database: ceiling}) & theirs
    return sorted(wanted - ours, key=_order)


def _belongs_to(object_id: ObjectId, base: int) -> bool:
    """Whether this is the CVD of that version, a patch after it, or a signature of either."""
    kind = object_id.signed.kind if object_id.kind.is_signature else object_id.kind
    return object_id.version == base if kind is Kind.CVD else object_id.version > base


def _order(object_id: ObjectId) -> tuple[bool, int, bool]:
    """CVDs first, then the patches in their order, each followed by its signature."""
    kind = object_id.signed.kind if object_id.kind.is_signature else object_id.kind
    return kind is not Kind.CVD, object_id.version, object_id.kind.is_signature


def to_give(
    own: Mapping[ObjectId, int], site: Mapping[ObjectId, int], keep_cdiffs: int, size_limit: int
) -> list[ObjectId]:
    """What this gateway has that the object store lacks and would keep.

    Args:
        own: what this gateway has, with sizes in bytes.
        site: what the object store has, with sizes in bytes.
        keep_cdiffs: how many cdiffs of each database the object store keeps.
        size_limit: bytes that it keeps.
    """
    everything = {**site, **{one: size for one, size in own.items() if size}}
    surplus = set(to_drop(everything, keep_cdiffs, size_limit))
    return sorted((one for one in everything if one not in site and one not in surplus), key=_order)


def surplus(
    site: Mapping[ObjectId, int],
    keep_cdiffs: int,
    size_limit: int,
    recent: Iterable[ObjectId],
    ceilings: Mapping[str, int],
) -> list[ObjectId]:
    """What the object store need not keep: the rules are those of `clamproxy.cache.retention`.

    Args:
        site: what the object store has, with sizes in bytes.
        keep_cdiffs: how many cdiffs of each database it keeps.
        size_limit: bytes that it keeps.
        recent: what was not there a while ago, which stays in any case.
        ceilings: the highest version of a database that clients are shown, where that is limited.
    """
    return to_drop(site, keep_cdiffs, size_limit, set(recent) | under_ceilings(site, ceilings))
