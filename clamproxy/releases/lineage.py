"""Lineages: which version the cached patches lead to, starting from the newest cached CVD.

Each patch also changes the database's ``.info``, which the vendor signs anew for each version. So the
base and the patches alone prove the header of every version in between, and no client can be led to a
patch that doesn't fit (docs/protocol.md, trap 18).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, NamedTuple

from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.formats.cdiff import CdiffContainer, iter_commands, verify_cdiff
from clamproxy.formats.cvd import read_info, verify_cvd
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.info import Info, verify_info
from clamproxy.formats.patching import patch_info
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases.delta import Lineage
from clamproxy.single_flight import SingleFlight
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.2
"""Seconds between checks of all patches of a lineage; each check takes up to half a millisecond."""
MOST_CEILINGS = 2
"""How many ceilings of a database are in use at a time: with a hold above a delayed version, canaries have
another one than all others."""


@dataclass(frozen=True, slots=True)
class ProvenLineage:
    """A lineage, with the ``.info`` of the version that it reaches."""

    lineage: Lineage
    info: Info

    @property
    def header(self) -> CvdHeader:
        """The header of that version as a CLD has it, without hash and signature."""
        return self.info.header


class _Key(NamedTuple):
    database: str
    ceiling: int | None

    def __str__(self) -> str:
        return self.database if self.ceiling is None else f"{self.database} up to {self.ceiling}"


class Lineages:
    """The lineage of each database, kept in step with the store. Event loop only.

    Args:
        store: where CVDs and cdiffs are; other processes may add to it.
        learn: is given each database and header that is proven, in a thread.
    """

    def __init__(
        self, store: Store, keys: TrustedKeys, learn: Callable[[str, CvdHeader], None] = lambda *_: None
    ) -> None:
        self._store = store
        self._keys = keys
        self._learn = learn
        self._known: dict[_Key, ProvenLineage] = {}
        """For each database, the whole lineage and those under `MOST_CEILINGS` ceilings, latest read last."""
        self._looked_at: dict[_Key, float] = {}
        self._readings = SingleFlight[_Key, ProvenLineage | None]("lineage of")

    async def get(self, database: str, ceiling: int | None = None) -> ProvenLineage | None:
        """The lineage in the store's current state; None if there is no CVD to start from.

        Under a ceiling, it starts from the newest CVD up to that version, and ends there.

        Quick, except for the first call after the start and after a base or patch was added: the new
        files are then read and verified in a thread. Concurrent calls share that work, which cancelling
        them doesn't stop.
        """
        key = _Key(database, ceiling)
        known = self._known.get(key)
        if known is not None and self._is_current(known.lineage, key):
            return known
        return await self._readings.run(key, partial(self._read_in_thread, key, known))

    def last(self, database: str, ceiling: int | None = None) -> ProvenLineage | None:
        """The lineage when it was last asked for; None if its base has been replaced. Quick."""
        known = self._known.get(_Key(database, ceiling))
        if known is None or self._store.newest_version(database, ceiling) != known.lineage.base:
            return None
        return known

    def read(
        self, database: str, known: ProvenLineage | None = None, ceiling: int | None = None
    ) -> ProvenLineage | None:
        """Read a lineage from the store. Blocks for some milliseconds per patch.

        Args:
            known: an earlier result to continue from, if its base is still the same.
            ceiling: the highest version that counts.
        """
        base = self._store.open_newest(database, ceiling)
        if base is None:
            return None
        with base:
            is_same = known is not None and known.lineage.base == base.object_id.version
            if known is None or not is_same or not self._is_complete(known.lineage, database):
                known = self._begin(base)
                if known is not None:
                    self._learn(database, known.header)
        if known is not None:
            return self._extend(database, known, ceiling)
        was_dropped = self._store.newest_version(database, ceiling) != base.object_id.version
        # There may be an older one.
        return self.read(database, ceiling=ceiling) if was_dropped else None

    def _begin(self, base: PublishedFile) -> ProvenLineage | None:
        """The lineage of a base without patches; None if the base is unreadable or damaged."""
        object_id = base.object_id
        try:
            with open(base.fileno(), "rb", closefd=False) as file:
                verify_cvd(file, object_id, self._keys)
                info = Info.parse(read_info(file, object_id.database))
        except OSError as error:
            logger.warning("%s can't be read: %s", object_id.file_name, error)
            return None
        except InvalidObject as error:
            # It was verified when it arrived and was damaged since; serving it would hurt clients.
            logger.warning(
                "%s was damaged, and has been dropped from the cache: %s", object_id.file_name, error
            )
            self._store.drop(object_id)
            return None
        return ProvenLineage(Lineage(info.header.version, base.size, info.header.version), info)

    async def _read_in_thread(self, key: _Key, known: ProvenLineage | None) -> ProvenLineage | None:
        name = f"clamproxy-lineage-{key.database}"
        result = await in_thread(name, lambda: self._read_and_leave(key, known))
        self._known.pop(key, None)
        if result is not None:
            self._known[key] = result
        limited = [one for one in self._known if one.database == key.database and one.ceiling is not None]
        for former in limited[:-MOST_CEILINGS]:
            del self._known[former]
            self._looked_at.pop(former, None)
        return result

    def _read_and_leave(self, key: _Key, known: ProvenLineage | None) -> ProvenLineage | None:
        try:
            return self.read(key.database, known, key.ceiling)
        finally:
            self._store.disconnect()

    def _extend(self, database: str, known: ProvenLineage, ceiling: int | None) -> ProvenLineage:
        while not known.lineage.is_blocked and known.lineage.reached != ceiling:
            following = self._step(database, known)
            if following is None:
                break
            if following.lineage.reached > known.lineage.reached:
                self._learn(database, following.header)
            known = following
        return known

    def _step(self, database: str, known: ProvenLineage) -> ProvenLineage | None:
        """The lineage extended by one patch; None if that patch isn't here."""
        patch_id = ObjectId(database, known.lineage.reached + 1, Kind.CDIFF)
        patch = self._store.open(patch_id)
        if patch is None:
            return None
        with patch, open(patch.fileno(), "rb", closefd=False) as file:
            if patch.size == 0:
                return replace(known, lineage=replace(known.lineage, is_blocked=True))
            try:
                commands = iter_commands(file, CdiffContainer.parse(file), database)
                info = verify_info(patch_info(known.info.raw, commands, database), database, self._keys)
                if info.header.version != patch_id.version:
                    raise InvalidObject(f"leads to version {info.header.version}")
            except OSError as error:
                logger.warning("%s can't be read: %s", patch_id.file_name, error)
                return None
            except InvalidObject as error:
                if self._is_damaged(file, patch_id):
                    return None
                logger.warning("%s does not fit its predecessor: %s", patch_id.file_name, error)
                return replace(known, lineage=replace(known.lineage, is_blocked=True))
        total = known.lineage.patch_bytes + patch.size
        return ProvenLineage(replace(known.lineage, reached=patch_id.version, patch_bytes=total), info)

    def _is_damaged(self, file: BinaryIO, patch_id: ObjectId) -> bool:
        """Whether a patch was damaged since it arrived; if so, it is dropped, to be fetched again."""
        try:
            verify_cdiff(file, patch_id, self._keys)
        except InvalidObject as error:
            logger.warning(
                "%s was damaged, and has been dropped from the cache: %s", patch_id.file_name, error
            )
            self._store.drop(patch_id)
            return True
        return False

    def _is_current(self, lineage: Lineage, key: _Key) -> bool:
        """Whether the lineage still matches the store."""
        database = key.database
        if self._store.newest_version(database, key.ceiling) != lineage.base:
            return False
        now = time.monotonic()
        if now - self._looked_at.get(key, -math.inf) > LOOK_EVERY:
            if not self._is_complete(lineage, database):
                return False
            self._looked_at[key] = now
        is_at_end = lineage.is_blocked or lineage.reached == key.ceiling
        return is_at_end or not self._has(database, lineage.reached + 1)

    def _is_complete(self, lineage: Lineage, database: str) -> bool:
        """Whether all its patches are here: retention drops the oldest, a repair may drop any."""
        return all(self._has(database, version) for version in range(lineage.base + 1, lineage.reached + 1))

    def _has(self, database: str, version: int) -> bool:
        return self._store.has(ObjectId(database, version, Kind.CDIFF))
