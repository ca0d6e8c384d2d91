"""Following: what another process of this machine fetches is read while it arrives there.

The process that has locked the partial file asks the origin; all others look at the file as it grows, so
that their clients read along as well. They learn how it ended: the object is published, or there is none and
why. If that process has died, the first to notice goes on where it stopped, and the readers of the others
never know.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clamproxy.cache.partial import peek
from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.files import file_sha256, identity_of
from clamproxy.messages import Requester
from clamproxy.objects import ObjectId
from clamproxy.origin.attempt import Arrival
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.errors import OriginError
from clamproxy.threads import in_thread
from clamproxy.waiting import wait_while

PAUSE = 0.03
"""Seconds between two looks at a file that another process fetches."""
LONGEST_ENDING = 10.0
"""Seconds that verifying and publishing take at most, on a slow disk."""
_CHANGED = "it was started again from the beginning"


class Following:
    """Makes a partial file this process's own, and follows the process that has it until then.

    Args:
        store: where the partial file is.
        expected: the object to fetch.
        oldest: the oldest version of a whole CVD that is of any use.
        requester: on whose behalf.
        grown: called after another process has added to the file, and readers may have more of it.
    """

    def __init__(
        self,
        store: Store,
        expected: ObjectId,
        oldest: int,
        requester: Requester,
        grown: Callable[[], object],
    ) -> None:
        self.arrival: Arrival | None = None
        """What is here so far, whoever fetches it."""
        self.is_shared = False
        """Whether another process fetches the object, has fetched it, or has found out why that fails."""
        self._store = store
        self._expected = expected
        self._oldest = oldest
        self.requester = requester
        """On whose behalf: another one may take over while it waits."""
        self._grown = grown
        self._since = time.monotonic()

    @property
    def asked_for(self) -> float:
        """Seconds since the other process asked the origin; 0 if there is none."""
        if not self.is_shared or self.arrival is None:
            return 0.0
        with suppress(OSError):
            return self.arrival.partial.locked_for
        return 0.0

    async def claim(self) -> Arrival | None:
        """Claim the partial file, as soon as no other process has it. Call it again once that is released.

        Returns:
            What is here so far; None if another process has published the object.

        Raises:
            NotFoundError, OriginError, TransferError: as the other process has found out.
        """
        object_id = self._expected if self.arrival is None else self.arrival.object_id
        while True:
            partial = self._store.open_partial(object_id)
            self.arrival = arrival = Arrival(object_id, self._oldest, partial)
            waited = await self._wait(arrival)
            if await self._is_published(arrival):
                return None
            ending = TransferEnding.parse(partial.ending, self._since) if waited else None
            if ending is not None and ending.concerns(self.requester.version):
                object_id = ending.turn(object_id, self._oldest)
            elif partial.take():
                self.is_shared = False
                return arrival
            if arrival.followed:  # its readers must not get the rest of another file
                raise OriginError(FailureKind.CHANGED, f"changed while it arrived: {_CHANGED}")
            partial.release()
            await asyncio.sleep(0)

    async def _wait(self, arrival: Arrival) -> bool:
        """Lock the partial file; returns whether another process had it before."""
        partial = arrival.partial
        if partial.lock():
            return False
        self.is_shared = True
        while not partial.lock():
            before = partial.have
            partial.look()
            if partial.have > before:
                self._grown()
            await asyncio.sleep(PAUSE)
        return True

    async def _is_published(self, arrival: Arrival) -> bool:
        """Whether the object is here, and is what the readers have begun to read."""
        published = self._store.open(arrival.object_id)
        if published is None:
            return False
        with published:
            self.is_shared = True
            if arrival.followed and not await _is_same(published, arrival.partial.descriptor):
                raise OriginError(FailureKind.CHANGED, f"changed while it arrived: {_CHANGED}")
            if arrival.partial.take():
                arrival.partial.discard()
            return True


async def settled(store: Store, object_id: ObjectId) -> None:
    """Wait while another process verifies and publishes an object of which all has arrived."""
    path = store.partials / f"{object_id.file_name}.part"

    def is_ending() -> bool:
        seen = None if store.has(object_id) else peek(path)
        return seen is not None and seen.is_running and seen.have == seen.size

    await wait_while(is_ending, LONGEST_ENDING, PAUSE)


async def _is_same(published: PublishedFile, descriptor: int) -> bool:
    """Whether a descriptor's file has the bytes of a published object."""
    if identity_of(published.fileno()) == identity_of(descriptor):
        return True
    if os.fstat(descriptor).st_size != published.size:
        return False
    # Where links aren't possible, what was published is a copy.
    digest = await in_thread("clamproxy-compare", lambda: file_sha256(Path(f"/proc/self/fd/{descriptor}")))
    return digest == published.metadata.sha256
