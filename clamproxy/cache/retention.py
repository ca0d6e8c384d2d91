"""Which objects may be dropped: rules of the domain rather than least-recently-used. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from clamproxy.objects import Kind, ObjectId

KEPT_CVDS = 2
"""The newest CVD, and the previous one for clients in the middle of an update. The same goes for CLDs."""


SPARED = 3600.0
"""Seconds for which a patch or signature stays in any case after it arrived. Clients that wait for it get
it, and similar clients need not ask the origin again. Most check every hour or two."""


def is_spared(object_id: ObjectId, age: float, spare_for: float) -> bool:
    """Whether an object arrived so recently that it must not be dropped yet.

    Args:
        age: seconds since it arrived; negative if the clock was set back.
        spare_for: seconds.
    """
    return object_id.kind not in (Kind.CVD, Kind.CLD) and 0 <= age < spare_for


def under_ceilings(objects: Collection[ObjectId], ceilings: Mapping[str, int]) -> set[ObjectId]:
    """What clients need that are shown no version above a ceiling, and what takes them on afterwards.

    That is the newest CVD up to the ceiling, all patches after it, also those above the ceiling, the CLD of
    the ceiling, and the signatures. A newer base doesn't replace that CVD. The oldest CVD above the ceiling
    is the next base: with a ceiling that rises behind the releases, the newest ones never stay long enough.
    """
    needed: set[ObjectId] = set()
    for database, ceiling in ceilings.items():
        own = [one for one in objects if one.database == database]
        cvds = {one.version for one in own if one.kind is Kind.CVD}
        base = max((version for version in cvds if version <= ceiling), default=ceiling)
        following = min((version for version in cvds if version > ceiling), default=base)
        for one in own:
            kind = one.signed.kind if one.kind.is_signature else one.kind
            is_patch = kind is Kind.CDIFF and one.version > base
            if is_patch or one.version in ((base, following) if kind is Kind.CVD else (ceiling,)):
                needed.add(one)
    return needed


def to_drop(
    sizes: Mapping[ObjectId, int], keep_cdiffs: int, size_limit: int, spared: Collection[ObjectId] = ()
) -> list[ObjectId]:
    """What is superseded, then what doesn't fit, first to last.

    Args:
        sizes: bytes of each object that the cache holds.
        keep_cdiffs: how many cdiffs of each database are kept, the newest ones.
        size_limit: bytes.
        spared: what must not go; see `is_spared`.
    """
    gone = superseded(sizes, keep_cdiffs, spared)
    left = {object_id: size for object_id, size in sizes.items() if object_id not in gone}
    return sorted(gone) + over_limit(left, size_limit, spared)


def superseded(
    objects: Iterable[ObjectId], keep_cdiffs: int, spared: Collection[ObjectId] = ()
) -> set[ObjectId]:
    """The objects that clients no longer ask for.

    Args:
        objects: all that the cache holds.
        keep_cdiffs: how many cdiffs to keep of each database, the newest ones.
        spared: what must not be dropped; see `is_spared`.
    """
    everything = set(objects)
    kept_versions: dict[tuple[str, Kind], set[int]] = {}
    by_series = _versions_by_series(everything)
    for (database, kind), versions in by_series.items():
        count = keep_cdiffs if kind is Kind.CDIFF else KEPT_CVDS
        kept = set(sorted(versions, reverse=True)[:count])
        if kind is Kind.CDIFF and (cvds := by_series.get((database, Kind.CVD))):
            # New clients go on from the newest CVD by all patches after it.
            kept |= {version for version in versions if version > max(cvds)}
        kept_versions[database, kind] = kept
    return {object_id for object_id in everything if not _is_kept(object_id, kept_versions)} - set(spared)


def _is_kept(object_id: ObjectId, kept_versions: Mapping[tuple[str, Kind], set[int]]) -> bool:
    if not object_id.kind.is_signature:
        return object_id.version in kept_versions[object_id.database, object_id.kind]
    kept = kept_versions.get((object_id.database, object_id.signed.kind))
    if kept is None:
        return True  # its object may be on its way
    return bool(kept) and object_id.version >= min(kept)


def over_limit(
    sizes: Mapping[ObjectId, int], size_limit: int, spared: Collection[ObjectId] = ()
) -> list[ObjectId]:
    """What to drop, in this order, so that the cache fits its limit.

    Args:
        sizes: of each object in the cache, in bytes.
        size_limit: bytes.
        spared: what must not be dropped, see `is_spared`; this is little.

    The newest CVD of each database is never dropped, because all service depends on it, nor the cdiffs after
    it: the gateway would soon fetch them again. CLDs go first, as they can be built again. Then older CVDs
    go, the largest first, then the oldest cdiffs, each with its signature, and then signatures whose objects
    are not there.
    """
    excess = sum(sizes.values()) - size_limit
    leaving: list[ObjectId] = []
    for object_id in _expendable(sizes):
        if excess <= 0:
            break
        for victim in _with_signature(object_id):
            if victim in sizes and victim not in spared:
                excess -= sizes[victim]
                leaving.append(victim)
    return leaving


def _expendable(sizes: Mapping[ObjectId, int]) -> list[ObjectId]:
    newest = {series: max(versions) for series, versions in _versions_by_series(sizes).items()}
    clds = sorted(object_id for object_id in sizes if object_id.kind is Kind.CLD)
    old_cvds = [
        object_id
        for object_id in sizes
        if object_id.kind is Kind.CVD and object_id.version < newest[object_id.database, Kind.CVD]
    ]
    cdiffs = [
        object_id
        for object_id in sizes
        if object_id.kind is Kind.CDIFF
        and object_id.version <= newest.get((object_id.database, Kind.CVD), object_id.version)
    ]
    old_cvds.sort(key=lambda object_id: sizes[object_id], reverse=True)
    # "Oldest" counts from each database's own newest patch: version numbers don't compare across them.
    cdiffs.sort(key=lambda object_id: object_id.version - newest[object_id.database, Kind.CDIFF])
    lone = [object_id for object_id in sizes if object_id.kind.is_signature and object_id.signed not in sizes]
    return clds + old_cvds + cdiffs + sorted(lone)


def _with_signature(object_id: ObjectId) -> tuple[ObjectId, ...]:
    if object_id.kind.is_signature or object_id.kind is Kind.CLD:
        return (object_id,)
    return object_id, object_id.signature


def _versions_by_series(objects: Iterable[ObjectId]) -> dict[tuple[str, Kind], list[int]]:
    series: dict[tuple[str, Kind], list[int]] = defaultdict(list)
    for object_id in objects:
        if not object_id.kind.is_signature:
            series[object_id.database, object_id.kind].append(object_id.version)
    return series
