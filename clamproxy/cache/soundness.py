"""Soundness: damage that happened on the disk is found before anything is served from it.

The index has a digest of each object. After the start, the first request for a database waits until all
of its objects have been read and compared, which takes about 100 ms for a typical gateway.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from clamproxy.cache.identification import is_valid
from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.objects import ObjectId
from clamproxy.single_flight import SingleFlight
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)


def check(store: Store, object_id: ObjectId, keys: TrustedKeys) -> bool:
    """Check that an object is as it was published, and drop it if it isn't. Blocks: reads all of it.

    Args:
        keys: used to verify an object without a digest.

    Returns:
        Whether the cache holds the object.
    """
    published = store.open(object_id)
    if published is None:
        return False
    with published:
        problem = _problem(store, published, keys)
    if problem is not None:
        logger.warning("%s %s, and has been dropped from the cache.", object_id.file_name, problem)
        try:
            store.drop(object_id)
        except OSError as error:  # its row is gone, and it is not served
            store.condition.failed(error)
    return problem is None


class Soundness:
    """Knows which databases have been checked since the start. Event loop only.

    Args:
        store: what other processes add to it from now on is verified by them.
        keys: whose signatures count.
    """

    def __init__(self, store: Store, keys: TrustedKeys) -> None:
        self._store = store
        self._keys = keys
        self._unchecked: dict[str, list[ObjectId]] = {}
        for object_id in sorted(store.object_ids(), reverse=True):
            self._unchecked.setdefault(object_id.database, []).append(object_id)
        self._checks = SingleFlight[str, None]("check")

    async def ensure(self, database: str) -> None:
        """Make sure that nothing damaged is served of a database. Returns at once, except the first time."""
        if database in self._unchecked:
            await self._checks.run(database, partial(self._check_all, database))

    async def recheck(self, object_id: ObjectId) -> None:
        """Check an object again, and drop it if it has been damaged since."""
        await self._check_in_thread(object_id.database, [object_id])

    async def ensure_all(self) -> None:
        """Like `ensure`, for all databases, one after another."""
        for database in list(self._unchecked):
            await self.ensure(database)

    async def _check_all(self, database: str) -> None:
        await self._check_in_thread(database, self._unchecked[database])
        del self._unchecked[database]

    async def _check_in_thread(self, database: str, names: list[ObjectId]) -> None:
        await in_thread(f"clamproxy-check-{database}", lambda: self._check(names))

    def _check(self, names: list[ObjectId]) -> None:
        try:
            for object_id in names:
                check(self._store, object_id, self._keys)
        finally:
            self._store.disconnect()


def _problem(store: Store, published: PublishedFile, keys: TrustedKeys) -> str | None:
    """What is wrong with an object; None if it is as it was published."""
    path = Path(f"/proc/self/fd/{published.fileno()}")
    try:
        if (has_changed := published.has_changed()) is not None:
            return "was damaged" if has_changed else None
        # An earlier version noted no digest.
        if not is_valid(path, published.object_id, keys):
            return "was damaged"
        store.note_digest(published, published.digest())
    except OSError as error:
        return f"could not be read ({error.strerror})"
    return None
