"""The holds of a site: each of its gateways holds what was held at any of them.

They are a document in the object store, beside each gateway's own file. Both are merged again and again, so
a gateway without a volume learns of the holds before it serves anything, and one that was away catches up.
Whoever has access to the object store can hold and release, like any administrator of the site.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from clamproxy.bucket.bucket import Bucket, open_bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.config.units import DATABASE
from clamproxy.dates import as_time
from clamproxy.files import stamp_of
from clamproxy.leases.duties import on_duty
from clamproxy.leases.leases import Leases
from clamproxy.objects import MAX_VERSION
from clamproxy.readable import one_line
from clamproxy.releases import holds
from clamproxy.releases.holds import FILE_NAME, NOTHING_HELD, Hold, HoldChange, Holds, HoldsError
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

PATH = "holds.json"
"""The document, below the prefix of the object store."""
PATIENCE = 5.0
"""Seconds for which a gateway that starts waits for the holds of the site."""
LOOK_EVERY = 2.0

_LEASE = "holds"
_TRIES = 5
_MOST_DATABASES = 64
_LARGEST = 2**20
_LONGEST_NAME, _LONGEST_REASON = 64, 200


class SiteHolds:
    """Keeps the file of this gateway and the document of the site the same. Owns its task. Event loop only.

    Args:
        directory: the state directory, with the file.
    """

    def __init__(self, bucket: Bucket, directory: Path) -> None:
        self._bucket = bucket
        self._directory = directory
        self._is_informed = False
        self._trouble: str | None = None
        """Why what is held elsewhere can't be kept here."""
        self._seen: object = None
        """What both were when they were the same."""
        self._task: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why what is held elsewhere may not be held here, in one line."""
        if self._is_informed or self._trouble is not None:
            return self._trouble
        trouble = self._bucket.condition.state
        reason = f": {trouble.reason}" if trouble is not None else ""
        return f"it isn't known what other gateways of the site hold{reason}"

    async def learn(self, patience: float = PATIENCE) -> None:
        """Learn what is held, before anything is served; doesn't wait for more than some seconds."""
        try:
            async with asyncio.timeout(patience):
                await self.synchronize()
        except (BucketError, HoldsError, TimeoutError) as error:
            reason = str(error) or "the object store is slow"
            logger.warning("It isn't known what other gateways hold; what is held here counts: %s", reason)

    def start(self, leases: Leases) -> None:
        """Notice changes from now on.

        Args:
            leases: among the processes of the machine.
        """
        self._task = asyncio.create_task(self._run(leases), name="holds of the site")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def synchronize(self) -> None:
        """Bring what others hold, and tell them what is held here.

        Raises:
            BucketError: the object store can't be used.
            HoldsError: the file can't be used.
        """
        for _ in range(_TRIES):
            stored = await self._bucket.get(PATH)
            now = stored and stored.etag, stamp_of(self._directory / FILE_NAME)
            if self._is_informed and now == self._seen:
                return
            theirs = NOTHING_HELD if stored is None else _checked(stored.content)
            both = await self._merge(theirs)
            content = holds.encode(both)
            if stored is None:
                is_told = both == NOTHING_HELD or await self._bucket.create(PATH, content) is not None
            else:
                is_told = content == stored.content or (
                    await self._bucket.replace(PATH, content, stored.etag) is not None
                )
            if is_told:
                self._is_informed = True
                # Not what was written, but what was seen: another process may have changed either since.
                self._seen = now
                return
        raise BucketError(f"others keep writing {PATH}")

    async def _merge(self, theirs: Holds) -> Holds:
        try:
            both = await in_thread("clamproxy-holds", partial(holds.merge, self._directory, theirs))
        except HoldsError as error:
            if self._trouble is None:
                logger.warning("What other gateways of the site hold can't be kept here: %s", error)
            self._trouble = f"what other gateways of the site hold can't be kept here: {error}"
            raise
        self._trouble = None
        return both

    async def _run(self, leases: Leases) -> None:
        while not self._is_informed:  # each process says for itself whether it knows
            await self._try()
            await asyncio.sleep(LOOK_EVERY)
        await on_duty(leases, _LEASE, self._work)

    async def _work(self) -> float:
        await self._try()
        return LOOK_EVERY

    async def _try(self) -> None:
        try:
            await self.synchronize()
        except (BucketError, HoldsError) as error:
            logger.debug("The holds of the site can't be synchronized now: %s", error)
        except Exception:
            logger.exception("The holds of the site can't be synchronized.")


def synchronize(url: str | None, directory: Path) -> str | None:
    """Do what `SiteHolds.synchronize` does once, for commands. Blocks, but not for long.

    Args:
        url: of the object store; None if this gateway is alone.
        directory: the state directory.

    Returns:
        Why it couldn't be done, in one line; None if it was, or if this gateway is alone.
    """
    if url is None:
        return None

    async def once() -> None:
        bucket = open_bucket(url)
        try:
            async with asyncio.timeout(PATIENCE):
                await SiteHolds(bucket, directory).synchronize()
        finally:
            bucket.stop()

    try:
        asyncio.run(once())
    except (BucketError, HoldsError, TimeoutError) as error:
        return str(error) or "the object store is slow"
    return None


def _checked(content: bytes) -> Holds:
    """The holds in a document that anybody may have written; a damaged one is replaced."""
    try:
        if len(content) > _LARGEST:
            raise ValueError("too much")
        found = holds.decode(content)
        names = {*found.in_force, *(one.database for one in found.changes)}
        if len(names) > _MOST_DATABASES:
            raise ValueError("too many databases")
        for name in names:
            DATABASE.parse(name)
        for at in (*(one.since for one in found.in_force.values()), *(one.at for one in found.changes)):
            as_time(at)
        if not all(one.version is None or 0 < one.version <= MAX_VERSION for one in found.changes):
            raise ValueError("no versions")
    except ValueError as error:
        logger.warning("%s in the object store is damaged (%s), and is written anew.", PATH, error)
        return NOTHING_HELD
    in_force = {name: _shortened(one) for name, one in found.in_force.items()}
    return Holds(in_force, tuple(map(_shortened, found.changes)))


def _shortened[T: (Hold, HoldChange)](one: T) -> T:
    """With texts that fit on one line, whoever wrote them."""
    return replace(one, by=one_line(one.by, _LONGEST_NAME), why=one_line(one.why, _LONGEST_REASON))
