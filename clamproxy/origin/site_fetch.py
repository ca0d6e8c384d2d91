"""How a transfer goes about it in a site with an object store: the bucket is asked before the origin.

What isn't in the bucket is fetched from the origin by one gateway, under a lease, and uploaded. The others
wait for that, for a limited time, and take it from the bucket. With the bucket out of order, each gateway
fetches for itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from clamproxy.bucket.bucket import BucketDownload
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.cache.partial import NoRoomError, Validators
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.verification import InvalidObject, check_beginning
from clamproxy.leases.leases import Lease, WaitEnding, WaitOutcome
from clamproxy.messages import Requester
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.attempt import LARGEST, Arrival, turn_to
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.learnt import ending_found, ending_left
from clamproxy.origin.scope import CancelScope
from clamproxy.sharing.give_and_take import NOBODY_WAITS, left_to_wait
from clamproxy.sharing.shared_objects import SharedObjects, last_modified
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

SOURCE = " (from the object store)"
"""Says in the log where a rejected file came from."""
_LOOK_EVERY = 0.5
"""Seconds between looks whether a client has begun to wait in the meantime."""


class Fetching(Protocol):
    """What a transfer can do."""

    requester: Requester
    for_client: bool
    """Whether a client is waiting."""
    was_told: bool
    """Whether its outcome is what another gateway got from the origin."""

    @property
    def arrival(self) -> Arrival: ...

    def report(self) -> None:
        """Tell the readers that more has arrived."""

    def require_admission(self) -> None:
        """Raise what forbids asking the origin now, if anything does."""

    async def fetch_from_origin(self) -> None:
        """Fetch the rest, verify and publish it."""

    async def verify_and_publish(self) -> bool:
        """Finish; returns False if the bucket's bytes were wrong, and nothing has arrived any more."""

    def withdraw(self, reason: str) -> None:
        """Forget what has arrived, because the bucket's bytes are wrong. Raises if readers follow."""

    def go_on_in_memory(self, error: Exception) -> None:
        """Continue without the disk, from the beginning, or raise the error."""

    def ending_after(self, error: Exception) -> TransferEnding | None:
        """What an error means for others that wait for the object."""


class SiteFetch:
    """Brings the object of one transfer."""

    def __init__(self, shared: SharedObjects, transfer: Fetching) -> None:
        self._shared = shared
        self._transfer = transfer
        self._client_since: float | None = None

    async def run(self) -> None:
        """Bring the object and publish it.

        Raises:
            Exception: what the transfer's methods raise, or what another gateway just got from the origin.
        """
        transfer, since, is_fresh = self._transfer, time.monotonic(), False
        while not await self._take(is_fresh=is_fresh):
            transfer.require_admission()
            arrival = transfer.arrival
            if (lease := await self._shared.take_turn(arrival.object_id)) is not None:
                return await self._fetch_for_all(lease)
            outcome = await self._wait(arrival.object_id, since)
            if outcome.ending is not WaitEnding.RELEASED:
                name = arrival.object_id.file_name
                logger.info("%s is fetched without waiting for another gateway any longer.", name)
                await transfer.fetch_from_origin()
                return self._shared.upload_soon(arrival.object_id)
            ending = ending_found(outcome.learnt, transfer.requester.version)
            # Another gateway may have wanted, and got, a version that is too old here.
            if ending is not None and (ending.version is None or ending.version >= arrival.oldest):
                transfer.was_told = ending.version is None
                turn_to(arrival, ending.turn(arrival.object_id, arrival.oldest))
            if is_fresh:
                await asyncio.sleep(_LOOK_EVERY)  # whoever releases it leaves nothing, again and again
            is_fresh = True
        return None

    async def _fetch_for_all(self, lease: Lease) -> None:
        transfer, ending, was_fetched = self._transfer, None, False
        try:
            # Another gateway may have uploaded it just before this one got the lease.
            if not await self._take(is_fresh=True):
                await transfer.fetch_from_origin()
                was_fetched = True
        except Exception as error:
            ending = transfer.ending_after(error)
            raise
        finally:
            if was_fetched:
                object_id = transfer.arrival.object_id
                done = TransferEnding(f"{object_id.file_name} was fetched", version=object_id.version)
                self._shared.upload_soon(object_id, lease, ending_left(done))
            else:
                lease.release(ending_left(ending))

    async def _wait(self, object_id: ObjectId, since: float) -> WaitOutcome:
        """Wait for another gateway's transfer, but no longer than a client can wait."""
        waiting = asyncio.ensure_future(self._shared.wait(object_id, NOBODY_WAITS))
        try:
            while (left := self._left(since)) > 0 and not waiting.done():
                await asyncio.wait({waiting}, timeout=min(left, _LOOK_EVERY))
            return waiting.result() if waiting.done() else WaitOutcome(WaitEnding.HELD)
        finally:
            waiting.cancel()

    def _left(self, since: float) -> float:
        now = time.monotonic()
        if self._client_since is None and self._transfer.for_client:
            self._client_since = now
        return left_to_wait(now, since, self._client_since)

    async def _take(self, *, is_fresh: bool) -> bool:
        """Take the object from the bucket; returns whether it is published now."""
        transfer, arrival = self._transfer, self._transfer.arrival
        if arrival.followed:  # the rest of what readers have comes from the origin
            return False
        limit = LARGEST[arrival.object_id.kind]
        try:
            download = await self._shared.open(arrival.object_id, limit, is_fresh=is_fresh)
            if download is None:
                return False
            await _receive(download, arrival, transfer.report)
        except BucketError as error:
            logger.debug("%s can't be taken: %s", arrival.object_id.file_name, error)
            return False
        except InvalidObject as error:
            name = arrival.object_id.file_name
            logger.warning("%s in the object store is something else, and is ignored: %s", name, error)
            transfer.withdraw(str(error))
            return False
        except (OSError, NoRoomError) as error:
            transfer.go_on_in_memory(error)
            return False
        return await transfer.verify_and_publish()


async def _receive(download: BucketDownload, arrival: Arrival, progress: Callable[[], None]) -> None:
    """Append what the bucket sends to the partial file, from its beginning.

    Raises:
        BucketError: it doesn't send all of it. What has arrived can be continued from the origin.
        InvalidObject: its beginning shows that it is something else.
        OSError, NoRoomError: the disk takes no more.
    """
    file, scope, beginning = arrival.partial, CancelScope(), b""

    def begin() -> None:
        with scope.unless_cancelled():
            # Its validators are the origin's, which can continue it.
            file.begin(Validators(download.size, None, last_modified(download)))
            file.append(beginning)

    def append(data: bytes) -> None:
        with scope.unless_cancelled():
            file.append(data)

    try:
        async for chunk in download:
            if len(beginning) < min(HEADER_SIZE, download.size):
                beginning += chunk
                if len(beginning) < min(HEADER_SIZE, download.size):
                    continue
                arrival.shared_etag = download.etag
                _check(arrival.object_id, beginning)
                await in_thread("clamproxy-take", begin)
            else:
                await in_thread("clamproxy-take", partial(append, chunk))
            progress()
    finally:
        scope.cancel()


def _check(object_id: ObjectId, beginning: bytes) -> None:
    check_beginning(object_id.kind, beginning)
    if object_id.kind in (Kind.CVD, Kind.CLD) and CvdHeader.parse(beginning).version != object_id.version:
        raise InvalidObject("has the header of another version")
