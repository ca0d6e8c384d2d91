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
from typing import BinaryIO

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


@dataclass(frozen=True, slots=True)
class ProvenLineage:
    """A lineage, with the ``.info`` of the version that it reaches."""

    lineage: Lineage
    info: Info

    @property
    def header(self) -> CvdHeader:
        """The header of that version as a CLD has it, without hash and signature."""
        return self.info.header


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
        self._known: dict[str, ProvenLineage] = {}
        self._looked_at: dict[str, float] = {}
        self._readings = SingleFlight[str, ProvenLineage | None]("lineage of")

    async def get(self, database: str) -> ProvenLineage | None:
        """The lineage in the store's current state; None if there is no CVD to start from.

        Quick, except for the first call after the start and after a base or patch was added: the new
        files are then read and verified in a thread. Concurrent calls share that work, which cancelling
        them doesn't stop.
        """
        known = self._known.get(database)
        if known is not None and self._is_current(known.lineage, database):
            return known
        return await self._readings.run(database, partial(self._read_in_thread, database, known))

    def last(self, database: str) -> ProvenLineage | None:
        """The lineage when it was last asked for; None if its base has been replaced. Quick."""
        known = self._known.get(database)
        if known is None or self._store.newest_version(database) != known.lineage.base:
            return None
        return known

    def read(self, database: str, known: ProvenLineage | None = None) -> ProvenLineage | None:
        """Read a lineage from the store. Blocks for some milliseconds per patch.

        Args:
            known: an earlier result to continue from, if its base is still the same.
        """
        base = self._store.open_newest(database)
        if base is None:
            return None
        with base:
            is_same = known is not None and known.lineage.base == base.object_id.version
            if known is None or not is_same or not self._is_complete(known.lineage, database):
                known = self._begin(base)
                if known is not None:
                    self._learn(database, known.header)
        if known is not None:
            return self._extend(database, known)
        was_dropped = self._store.newest_version(database) != base.object_id.version
        return self.read(database) if was_dropped else None  # there may be an older one

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

    async def _read_in_thread(self, database: str, known: ProvenLineage | None) -> ProvenLineage | None:
        name = f"clamproxy-lineage-{database}"
        result = await in_thread(name, lambda: self._read_and_leave(database, known))
        if result is None:
            self._known.pop(database, None)
        else:
            self._known[database] = result
        return result

    def _read_and_leave(self, database: str, known: ProvenLineage | None) -> ProvenLineage | None:
        try:
            return self.read(database, known)
        finally:
            self._store.disconnect()

    def _extend(self, database: str, known: ProvenLineage) -> ProvenLineage:
        while not known.lineage.is_blocked:
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

    def _is_current(self, lineage: Lineage, database: str) -> bool:
        """Whether the lineage still matches the store."""
        if self._store.newest_version(database) != lineage.base:
            return False
        now = time.monotonic()
        if now - self._looked_at.get(database, -math.inf) > LOOK_EVERY:
            if not self._is_complete(lineage, database):
                return False
            self._looked_at[database] = now
        return lineage.is_blocked or not self._has(database, lineage.reached + 1)

    def _is_complete(self, lineage: Lineage, database: str) -> bool:
        """Whether all its patches are here: retention drops the oldest, a repair may drop any."""
        return all(self._has(database, version) for version in range(lineage.base + 1, lineage.reached + 1))

    def _has(self, database: str, version: int) -> bool:
        return self._store.has(ObjectId(database, version, Kind.CDIFF))
