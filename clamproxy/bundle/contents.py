"""What goes into a bundle: everything that the cache has of a database, or what another gateway lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from clamproxy.bundle.manifest import BundleError
from clamproxy.cache.store import Store
from clamproxy.inspection import belongs
from clamproxy.objects import MAX_VERSION, Kind, ObjectId

RECENT = 30
"""How many recent patches have their signatures exported again: these may have been published after the
previous bundle was written."""

CHANGED = "the cache has just changed: try again"

_SINCE = re.compile(r"(?:([a-z]+)=)?([1-9][0-9]{0,9})")


class Reporter:
    """Hears of the bytes of each database that have been handled; this one tells nobody."""

    def begin(self, totals: Mapping[str, int]) -> None:
        """Work starts: bytes to handle for each database."""

    def advance(self, database: str, size: int) -> None:
        """So many more bytes of a database have been handled."""


@dataclass(frozen=True, slots=True)
class Since:
    """The versions that the other gateway already has."""

    default: int | None = None
    """The version of every database that isn't named and can have this version."""
    named: Mapping[str, int] = field(default_factory=dict)

    def of(self, database: str) -> int | None:
        """The version of a database; None if it isn't known."""
        return self.named.get(database, self.default)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Read ``27790`` or ``daily=27790``; several of them may also be separated by commas.

        Raises:
            ValueError: something else, or two versions for the same database; the text says which.
        """
        default: int | None = None
        named: dict[str, int] = {}
        for item in (item.strip() for text in texts for item in text.split(",")):
            match = _SINCE.fullmatch(item)
            if match is None or int(match[2]) > MAX_VERSION:
                raise ValueError(f"{item!r} is not a version such as 27790 or daily=27790")
            if match[1] in named or (match[1] is None and default is not None):
                raise ValueError(f"{item!r} is a second version for the same databases")
            if match[1] is None:
                default = int(match[2])
            else:
                named[match[1]] = int(match[2])
        return cls(default, named)


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into a bundle for one database."""

    version: int
    """The version that the other gateway has after the import."""
    base: int
    """Version of the CVD; without a CVD, the version that the other gateway must have before the import."""
    sizes: Mapping[ObjectId, int]
    """The objects with their sizes in bytes, in the order in which they are written."""


@dataclass(slots=True)
class BundleSelection:
    """What goes into a bundle, and remarks for the user about it."""

    databases: dict[str, Contents] = field(default_factory=dict)
    signatures: dict[ObjectId, int] = field(default_factory=dict)
    """Signatures, with their sizes in bytes, of objects that the other gateway has already: they may have
    been published too late for it."""
    remarks: list[str] = field(default_factory=list)


def select(
    store: Store,
    databases: Iterable[str] = (),
    since: Since | None = None,
    ceilings: Mapping[str, int] | None = None,
) -> BundleSelection:
    """Choose what goes into a bundle. Reads what is signed by a ``.sign``: seconds for a full cache.

    Args:
        databases: names; if empty, all databases with a cached CVD.
        since: what the other gateway has; a database that it doesn't mention goes in as a whole.
        ceilings: the highest version of a database that clients are shown, where that is limited. What is
            above it is left out.

    Raises:
        BundleError: the cache has changed in the meantime.
    """
    ceilings = ceilings or {}
    since = since or Since()
    # All is chosen from what was here at this moment: the proxy may publish and drop files meanwhile.
    sizes = store.sizes()
    cached = {object_id.database for object_id in sizes if object_id.kind is Kind.CVD}
    selection = BundleSelection()
    for database in sorted(set(databases) or cached | set(since.named)):
        ceiling = ceilings.get(database)
        everything = {one: size for one, size in sizes.items() if one.database == database}
        own = {one: size for one, size in everything.items() if ceiling is None or one.version <= ceiling}
        if ceiling is not None and (_reached(everything) or 0) > ceiling:
            selection.remarks.append(
                f"{database} is exported up to version {ceiling}: newer ones are held back."
            )
        for stray in _strays(store, own):
            del own[stray]
            if stray.signed in own:
                selection.remarks.append(f"{stray.file_name} is left out: it belongs to another file.")
        newest, reached = _newest(own), _reached(own)
        if newest is not None and reached is not None:
            _select_database(selection, own, newest, reached, since)
            selection.signatures |= _late_signatures(selection, own, since.of(database) or 0)
        elif store.newest_version(database, ceiling) is None:
            upto = "" if ceiling is None else f" up to version {ceiling}"
            selection.remarks.append(f"{database} is left out: no CVD of it{upto} is cached.")
        else:
            raise BundleError(CHANGED)
    return selection


def _newest(own: Mapping[ObjectId, int]) -> int | None:
    """The version of the newest of a database's CVDs."""
    return max((one.version for one in own if one.kind is Kind.CVD), default=None)


def _reached(own: Mapping[ObjectId, int]) -> int | None:
    """The version that these objects of a database lead to, as `Store.reached_version` has it."""
    version = _newest(own)
    patches = {one.version for one, size in own.items() if one.kind is Kind.CDIFF and size > 0}
    while version is not None and version + 1 in patches:
        version += 1
    return version


def _strays(store: Store, own: Mapping[ObjectId, int]) -> list[ObjectId]:
    """Signatures that are not proven to belong to the cached objects."""
    return sorted(name for name in own if name.kind.is_signature and not belongs(store, name))


def _select_database(
    selection: BundleSelection, sizes: Mapping[ObjectId, int], newest: int, reached: int, since: Since
) -> None:
    database = next(iter(sizes)).database
    known = since.of(database)
    if known is None:
        selection.databases[database] = _whole(sizes, newest, reached, 0)
    elif known > reached:
        reason = f"its newest version here is {reached}, less than {known}"
        selection.remarks.append(f"{database} is left out: {reason}.")
    elif known == reached:
        selection.remarks.append(f"{database} is left out: there is nothing newer than {known}.")
    else:
        patches = [ObjectId(database, version, Kind.CDIFF) for version in range(known + 1, reached + 1)]
        if all(sizes.get(patch) for patch in patches):
            selection.databases[database] = Contents(reached, known, _in_order(patches, sizes))
            return
        gap = next(patch.version for patch in patches if not sizes.get(patch))
        reason = f"there is no patch from {gap - 1} to {gap}"
        selection.remarks.append(f"{database} is exported with its whole CVD: {reason}.")
        selection.databases[database] = _whole(sizes, newest, reached, known)


def _whole(sizes: Mapping[ObjectId, int], newest: int, reached: int, known: int) -> Contents:
    """The newest CVD, and the cdiffs after the version that the other gateway has."""
    chosen = [
        object_id
        for object_id in sizes
        if (object_id.kind is Kind.CVD and object_id.version == newest)
        or (object_id.kind is Kind.CDIFF and object_id.version > known)
    ]
    return Contents(reached, newest, _in_order(chosen, sizes))


def _late_signatures(
    selection: BundleSelection, sizes: Mapping[ObjectId, int], known: int
) -> dict[ObjectId, int]:
    """Signatures of CVDs and recent patches, up to the version that the other gateway has."""
    oldest = {Kind.CVD_SIGN: 1, Kind.CDIFF_SIGN: known - RECENT + 1}
    chosen = {object_id for contents in selection.databases.values() for object_id in contents.sizes}
    late = {
        object_id
        for object_id in sizes.keys() - chosen
        if oldest.get(object_id.kind, known + 1) <= object_id.version <= known
    }
    return {object_id: sizes[object_id] for object_id in sorted(late, key=publishing_order)}


def _in_order(objects: Iterable[ObjectId], sizes: Mapping[ObjectId, int]) -> dict[ObjectId, int]:
    """The objects with their signatures, in the order in which clients may learn of them."""
    everything = (name for object_id in objects for name in _with_signature(object_id) if name in sizes)
    return {object_id: sizes[object_id] for object_id in sorted(everything, key=publishing_order)}


def _with_signature(object_id: ObjectId) -> Iterator[ObjectId]:
    yield object_id
    yield object_id.signature


def publishing_order(object_id: ObjectId) -> tuple[bool, bool, int, str]:
    """Sort key by which an object comes after everything that clients ask for next.

    Signatures first, then patches upwards, CVDs last: a client that gets one finds the rest.
    """
    is_cvd = object_id.kind is Kind.CVD
    return is_cvd, not object_id.kind.is_signature, object_id.version, object_id.file_name
