"""Soundness: damage that happened on the disk is found before anything is served from it.

The index has a digest of each object. After the start, the first request for a database waits until all
of its objects have been read and compared, which takes about 100 ms for a typical gateway. From then on, one
stat() tells whether a file is still the one that was compared: whatever has changed it is noticed by the
next request. What could not be read for a client is compared again before the next one gets it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from clamproxy.cache.identification import is_valid
from clamproxy.cache.published import Mark, PublishedFile, mark_of
from clamproxy.cache.store import Store
from clamproxy.files import PASSING
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.objects import Kind, ObjectId
from clamproxy.single_flight import SingleFlight
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)


def check(store: Store, object_id: ObjectId, keys: TrustedKeys) -> Mark | None:
    """Check that an object is as it was published, and drop it if it isn't. Blocks: reads all of it.

    Args:
        keys: used to verify an object without a digest.

    Returns:
        The mark of its file when it was found to be sound; None if the cache doesn't hold it, or it can't be
        read now.
    """
    published = store.open(object_id)
    if published is None:
        return None
    with published:
        # Before it is read: what changes it in the meantime is noticed by the next look.
        mark = mark_of(published.fileno())
        try:
            problem = _problem(store, published, keys)
        except OSError as error:
            if error.errno in PASSING:
                return None
            problem = f"could not be read ({error.strerror})"
    if problem is None:
        return mark
    logger.warning("%s %s, and has been dropped from the cache.", object_id.file_name, problem)
    try:
        store.drop(object_id)
    except OSError as error:  # its row is gone, and it is not served
        store.condition.failed(error)
    return None


class Soundness:
    """Knows which files have been checked since the start. Event loop only.

    Args:
        store: other processes may change it.
        keys: whose signatures count.
    """

    def __init__(self, store: Store, keys: TrustedKeys) -> None:
        self._store = store
        self._keys = keys
        self._unchecked: dict[str, list[ObjectId]] = {}
        for object_id in sorted(store.object_ids(), reverse=True):
            self._unchecked.setdefault(object_id.database, []).append(object_id)
        self._marks: dict[ObjectId, Mark] = {}
        """The files that were found to be sound."""
        self._generation = -1
        """The generation of the store that the next two are of."""
        self._files: dict[ObjectId, str | None] = {}
        """The paths that have been looked up."""
        self._whole: dict[str, list[ObjectId]] = {}
        """The CVDs and CLDs, by database."""
        self._checks = SingleFlight[str, None]("check")

    async def ensure(self, database: str) -> None:
        """Make sure that no damaged CVD or CLD of a database is served.

        Returns at once, except the first time, and if the files are new or have changed since.
        """
        if database in self._unchecked:
            await self._checks.run(database, partial(self._check_all, database))
        self._keep_up()
        await self._ensure_same(database, self._whole.get(database, ()))

    async def ensure_object(self, object_id: ObjectId) -> None:
        """Like `ensure`, for one object. Returns at once unless it is new or has changed."""
        self._keep_up()
        await self._ensure_same(object_id.file_name, (object_id,))

    async def recheck(self, object_id: ObjectId) -> None:
        """Check an object again, and drop it if it has been damaged since."""
        await self._check_in_thread(object_id.database, [object_id])

    async def ensure_all(self) -> None:
        """Like `ensure`, for all databases, one after another."""
        for database in list(self._unchecked):
            await self.ensure(database)

    async def _ensure_same(self, work: str, names: Iterable[ObjectId]) -> None:
        for _ in range(2):
            if not (changed := [one for one in names if not self._is_same(one)]):
                return
            is_joined = work in self._checks
            await self._checks.run(work, partial(self._check_in_thread, changed[0].database, changed))
            if not is_joined:
                return
            # A check that was under way may have been of other files, or have read these earlier.

    def _is_same(self, object_id: ObjectId) -> bool:
        """Whether a file is the one that was checked, or there is none."""
        if object_id in self._store.distrusted:
            return False
        if object_id not in self._files:
            self._files[object_id] = self._store.file_of(object_id)
        path = self._files[object_id]
        mark = None if path is None else mark_of(path)
        return mark is None or mark == self._marks.get(object_id)

    def _keep_up(self) -> None:
        if self._generation != (now := self._store.generation()):
            self._generation, self._files, self._whole = now, {}, {}
            present = set(self._store.object_ids())
            for object_id in present:
                if object_id.kind in (Kind.CVD, Kind.CLD):
                    self._whole.setdefault(object_id.database, []).append(object_id)
            for gone in self._marks.keys() - present:
                self._marks.pop(gone, None)
            self._store.distrusted.intersection_update(present)

    async def _check_all(self, database: str) -> None:
        await self._check_in_thread(database, self._unchecked[database])
        del self._unchecked[database]

    async def _check_in_thread(self, database: str, names: list[ObjectId]) -> None:
        # Before it is read: trouble in the meantime is a reason to look again.
        self._store.distrusted.difference_update(names)
        await in_thread(f"clamproxy-check-{database}", lambda: self._check(names))

    def _check(self, names: list[ObjectId]) -> None:
        try:
            for object_id in names:
                mark = check(self._store, object_id, self._keys)
                if mark is None:
                    self._marks.pop(object_id, None)
                else:
                    self._marks[object_id] = mark
        finally:
            self._store.disconnect()


def _problem(store: Store, published: PublishedFile, keys: TrustedKeys) -> str | None:
    """What is wrong with an object; None if it is as it was published.

    Raises:
        OSError: it can't be read.
    """
    if (has_changed := published.has_changed()) is not None:
        return "was damaged" if has_changed else None
    # An earlier version noted no digest.
    if not is_valid(Path(f"/proc/self/fd/{published.fileno()}"), published.object_id, keys):
        return "was damaged"
    store.note_digest(published, published.digest())
    return None
