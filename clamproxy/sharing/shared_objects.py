"""ClamAV's objects in the site's object store: one gateway puts them there, and the others take them.

Whoever takes an object verifies it as if it came from the origin. What turned out to be something else is
not taken again, and makes way for the right one as soon as a gateway has that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from clamproxy.bucket.bucket import Bucket, BucketDownload, Listed
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.cache.published import Metadata, PublishedFile
from clamproxy.cache.store import Store
from clamproxy.dates import http_date
from clamproxy.leases.leases import Learnt, Lease, Leases, WaitOutcome
from clamproxy.negative_cache import NegativeCache
from clamproxy.objects import ObjectId
from clamproxy.sharing.give_and_take import name_of_fetch

logger = logging.getLogger(__name__)

UPLOAD_AGAIN_AFTER, UPLOAD_AGAIN_AFTER_MOST = 20.0, 3600.0
"""Seconds until a failed upload is tried again; twice as many after each failure, but no more than these."""
MOST_BAD = 1024
"""How many bad objects are remembered."""
_LAST_MODIFIED = "lastmodified"
_DIRECTORY = "objects"
_ABSENT_FOR = 2.0
"""Seconds for which an object is believed not to be in the bucket, unless it may just have got there."""
_AT_A_TIME = 4


class SharedObjects:
    """The objects in the bucket, and the right to fetch one from the origin. Event loop only.

    Owns the tasks that upload.

    Args:
        bucket: where they are.
        leases: of the site.
        store: what is uploaded comes from there.
    """

    def __init__(self, bucket: Bucket, leases: Leases, store: Store) -> None:
        self._bucket = bucket
        self.leases = leases
        self._store = store
        self._absent = NegativeCache[ObjectId](time.monotonic)
        self._bad: dict[ObjectId, str] = {}
        """The ETags of objects that are something else than their name says."""
        self._refused = NegativeCache[ObjectId](time.monotonic)
        """What isn't uploaded for a while, because that failed: the store may be full."""
        self._refusals: Counter[ObjectId] = Counter()
        """How often in a row it failed."""
        self._given: set[ObjectId] = set()
        """What this process has uploaded, or is about to, as far as it is still here."""
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    @property
    def is_usable(self) -> bool:
        """Whether the bucket can be used, as far as known."""
        return self._bucket.condition.state is None

    async def open(self, object_id: ObjectId, limit: int, *, is_fresh: bool = False) -> BucketDownload | None:
        """Begin to take an object; None if there is none, or only one that was bad.

        Args:
            limit: the most bytes it may have.
            is_fresh: whether it may have got there just now.

        Raises:
            BucketError: the bucket can't be used.
        """
        if object_id in self._absent and not is_fresh:
            return None
        download = await self._bucket.open(path_of(object_id), limit)
        # An empty cdiff tells clients something that nothing proves: it never comes from here.
        if download is None or not download.size or self._bad.get(object_id) == download.etag:
            self._absent.add(object_id, _ABSENT_FOR)
            return None
        return download

    def is_bad(self, object_id: ObjectId) -> bool:
        """Whether what is there under this name was something else when it was last taken."""
        return object_id in self._bad

    def reject(self, object_id: ObjectId, etag: str) -> None:
        """Note that what is there under this name is something else."""
        self._bad.pop(object_id, None)
        self._bad[object_id] = etag
        if len(self._bad) > MOST_BAD:
            del self._bad[next(iter(self._bad))]

    async def take_turn(self, object_id: ObjectId) -> Lease | None:
        """The right to fetch an object from the origin; None if another gateway is fetching it."""
        return await self.leases.take(name_of_fetch(object_id))

    async def wait(self, object_id: ObjectId, limit: float) -> WaitOutcome:
        """Wait until no other gateway is fetching an object; see `Leases.wait`."""
        return await self.leases.wait(name_of_fetch(object_id), limit)

    async def list(self) -> dict[ObjectId, Listed]:
        """What is there, except what was bad.

        Raises:
            BucketError: the bucket can't be used.
        """
        found = {}
        for path, one in (await self._bucket.list(_DIRECTORY)).items():
            with suppress(ValueError):
                object_id = ObjectId.parse(path.rpartition("/")[2])
                is_right = path_of(object_id) == f"{_DIRECTORY}/{path}"
                if is_right and one.size > 0 and self._bad.get(object_id) != one.etag:
                    found[object_id] = one
        return found

    def upload_soon(
        self, object_id: ObjectId, lease: Lease | None = None, learnt: Learnt | None = None
    ) -> None:
        """Upload a published object in the background, then release the lease under which it was fetched."""
        if self._is_stopped:
            return
        work = self._upload_and_release(object_id, lease, learnt)
        task = asyncio.create_task(work, name=f"upload {object_id.file_name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def upload(self, object_id: ObjectId) -> bool:
        """Upload a published object, unless it is there; replace what was bad.

        Returns:
            Whether it is there now.
        """
        if object_id in self._refused or (published := self._store.open(object_id)) is None:
            return False
        self._given = {*filter(self._store.has, self._given), object_id}
        was_usable = self.is_usable
        try:
            with published:
                if published.size > 0:
                    await self._upload(object_id, published)
        except (BucketError, OSError) as error:
            logger.debug("%s was not uploaded: %s", object_id.file_name, error)
            self._given.discard(object_id)
            if was_usable:
                self._refused.add(object_id, self._next_pause(object_id))
            return False
        del self._refusals[object_id]
        return True

    def _next_pause(self, object_id: ObjectId) -> float:
        before = min(self._refusals[object_id], 10)
        self._refusals[object_id] = before + 1
        return min(UPLOAD_AGAIN_AFTER * 2.0**before, UPLOAD_AGAIN_AFTER_MOST)

    def was_given(self, object_id: ObjectId) -> bool:
        """Whether this process has uploaded it, or is doing it. If it is dropped there, it stays dropped."""
        return object_id in self._given

    async def drop(self, object_id: ObjectId) -> None:
        """Delete an object there.

        Raises:
            BucketError: the bucket can't be used.
        """
        await self._bucket.delete(path_of(object_id))

    async def settle(self) -> None:
        """Wait until everything is uploaded that was to be."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()

    async def _upload(self, object_id: ObjectId, published: PublishedFile) -> None:
        async with self._turns:
            if object_id in self._bad:
                await self._replace(object_id)
            await self._bucket.upload(path_of(object_id), published.fileno(), about(published.metadata))

    async def _replace(self, object_id: ObjectId) -> None:
        """Make room for the right object, unless another gateway has replaced the bad one already.

        Large objects can't be replaced under a condition in all stores. If two gateways do this at the same
        time, one of them may delete the right object, and then uploads its own.
        """
        bad = self._bad[object_id]  # it may be replaced twice at a time, or turn out to be bad in another way
        listed = await self._bucket.list(f"{_DIRECTORY}/{object_id.database}")
        present = listed.get(object_id.file_name)
        if present is not None and present.etag == bad:
            await self._bucket.delete(path_of(object_id))
            logger.info("A bad %s in the object store was replaced.", object_id.file_name)
        if self._bad.get(object_id) == bad:
            del self._bad[object_id]

    async def _upload_and_release(
        self, object_id: ObjectId, lease: Lease | None, learnt: Learnt | None
    ) -> None:
        try:
            await self.upload(object_id)
        finally:
            if lease is not None:
                lease.release(learnt)


def path_of(object_id: ObjectId) -> str:
    return f"{_DIRECTORY}/{object_id.database}/{object_id.file_name}"


def about(metadata: Metadata) -> Mapping[str, str]:
    """What is kept with an object: the origin's Last-Modified, so that all gateways send the same."""
    if metadata.last_modified is None:
        return {}
    return {_LAST_MODIFIED: http_date(metadata.last_modified)}


def last_modified(download: BucketDownload) -> str | None:
    """The origin's Last-Modified, as it was kept with an object."""
    return download.about.get(_LAST_MODIFIED)
