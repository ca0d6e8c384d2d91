"""Transfers: downloads of ClamAV's objects, resumed where they were interrupted, verified, then published.

Readers follow the partial file. They never get its last bytes before verification has passed. If another
process of this machine fetches the object already, its file is followed instead (`following`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from clamproxy.cache.held import is_small
from clamproxy.cache.partial import NoRoomError, Validators
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.dates import parse_http_date
from clamproxy.downloads import STOPPING, Download, FileSource
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.formats.verification import InvalidObject
from clamproxy.inspection import prove
from clamproxy.messages import Requester, SourceError
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.attempt import Arrival
from clamproxy.origin.breaks import Breaks, as_origin_error
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.errors import NotFoundError, OriginError, RangeError, TransferError, WithdrawnError
from clamproxy.origin.following import Following
from clamproxy.origin.site_fetch import SOURCE, SiteFetch
from clamproxy.origin.upstream import Upstream
from clamproxy.origin.watched_attempts import StalledError, UnansweredError, WatchedAttempts
from clamproxy.sharing.shared_objects import SharedObjects
from clamproxy.storage.condition import Trouble, trouble_of
from clamproxy.threads import Writer, in_thread

type Obstacle = Callable[["Transfer"], Exception | None]
"""Gives what has come to forbid asking the origin since the transfer was admitted; None if nothing has."""

logger = logging.getLogger(__name__)

WITHHELD = 64 * 1024
"""The last bytes of an object, which no reader gets before verification has passed. Objects up to this size
are served only when they are complete: then a failure is a clean 503."""

OVER_QUOTA = 600.0
"""Seconds until a file is requested again that a disk refused which seems to have room."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What transfers work with."""

    upstream: Upstream
    store: Store
    writer: Writer
    keys: TrustedKeys
    stall_window: float
    """Seconds over which the speed of a connection is watched."""
    slots: asyncio.Semaphore
    """Limits the number of simultaneous connections to the origin."""
    shared: SharedObjects | None = None
    """What the site shares; None if this gateway works alone."""
    put_to_test: Callable[[str], Callable[[CvdHeader | None], object]] = lambda _: lambda _: None
    """Called with the database when the origin is asked for a whole CVD, what it returns when that has ended:
    see `HeaderProbes.put_to_test`."""


class Transfer(Download[None]):
    """One object on its way from the origin to the store; `run` does the work. Event loop only.

    It can be read from once its head is known, or once it is published. `ready`, `finish` and `run` raise
    NotFoundError if the origin has no such file, TransferError if it could not be fetched, and `barred`.

    Args:
        expected: the object to fetch. A whole CVD may turn out to be another version.
        requester: the origin is asked on its behalf.
        resources: shared by all transfers.
        oldest: the oldest version of a whole CVD that is of any use; default: the expected one.
        obstacle: asked before each request to the origin.
    """

    def __init__(
        self,
        expected: ObjectId,
        requester: Requester,
        resources: Resources,
        oldest: int | None = None,
        obstacle: Obstacle = lambda _: None,
    ) -> None:
        super().__init__()
        self.for_client = True
        """Whether a client is waiting: the gateway's own transfers give up at the first break."""
        self.is_verified = False
        """Whether readers may have all of the object; it is published a moment later."""
        self.published = False
        self.was_told = False
        """Whether another gateway of the site has had the outcome, so that it must not count twice."""
        self.barred: Exception | None = None
        """Why the origin must not be asked: only the bucket is. None if it may be."""
        self.admitted_at = time.time()
        """When it was found that the origin may be asked, or not; Unix seconds."""
        self._expected = expected
        self._resources = resources
        self._obstacle = obstacle
        self._following = Following(
            resources.store, expected, expected.version if oldest is None else oldest, requester, self._look
        )
        self._begun_at = self._loop.time()
        self._attempts = WatchedAttempts(resources.upstream, resources.stall_window, self.report)
        self._test_head: Callable[[CvdHeader | None], object] | None = None
        """Is told what the origin sent instead of its header alone; None if it wasn't asked."""

    # For readers

    @property
    def object_id(self) -> ObjectId:
        """The object being fetched; final once the transfer is ready."""
        return self._arrival.object_id if self._arrival else self._expected

    @property
    def is_shared(self) -> bool:
        """Whether another process fetches the object for all, or has; then the origin isn't asked here."""
        return self._following.is_shared

    @property
    def requester(self) -> Requester:
        """The origin is asked on its behalf."""
        return self._following.requester

    @requester.setter
    def requester(self, requester: Requester) -> None:
        self._following.requester = requester

    @property
    def asked_at(self) -> float:
        """Loop time at which the object was first requested, here or by another process."""
        return min(self._begun_at, self._loop.time() - self._following.asked_for)

    @property
    def have(self) -> int:
        """Bytes that have arrived."""
        return self._arrival.partial.have if self._arrival else 0

    @property
    def metadata(self) -> Metadata:
        """What is known about the object. Complete once the transfer is ready."""
        header, now = self._arrival.header if self._arrival else None, time.time()
        modified = parse_http_date(self._validators.last_modified)
        return Metadata(
            size=self._validators.size or 0,
            fetched_at=now,
            # No file can have changed after it was fetched (RFC 9110 8.8.2.1).
            last_modified=None if modified is None else min(modified, now),
            header=header.raw.decode("ascii") if header else None,
        )

    async def finish(self) -> None:
        """Wait until the object is published."""
        await self.ready()
        while not self.published:
            if self._error is not None:
                raise self._error
            await self.wait()

    def source(self) -> FileSource:
        """A reader of everything that has arrived and will arrive. Only once the transfer is ready.

        Raises:
            SourceError: it has failed, or is published: the store has it then.
        """
        if self.published or self._error is not None or self._arrival is None:
            raise SourceError(str(self._error or "nothing to follow"))
        return FileSource(os.dup(self._arrival.partial.descriptor), self.metadata.size, self)

    def kick(self) -> None:
        """Report that another client wants the object: a connection that is silent is given up at once."""
        self._attempts.kick()

    # The task

    async def _fetch(self) -> None:
        if await self._claim() is None:
            return
        if self._resources.shared is None:
            await self.fetch_from_origin()
        else:
            await SiteFetch(self._resources.shared, self).run()

    def _readable(self, last: int | None) -> int:
        size = self._validators.size or 0
        if self._error is not None:
            return 0  # readers are cut off where they are
        if self.is_verified:
            return size
        return min(self.have, size - WITHHELD, size if last is None else last - 1)

    def _explain(self, error: BaseException) -> Exception:
        match error:
            case asyncio.CancelledError():
                return TransferError(FailureKind.LOCAL, STOPPING)
            case Exception() if error is self.barred:
                return error
            case NotFoundError() if self._expected.kind is Kind.CVD:
                # Its header was there a moment ago: the origin contradicts itself.
                return TransferError(
                    FailureKind.BAD_CONTENT, f"the header was delivered, but not the file: {error}"
                )
            case NotFoundError() | TransferError():
                return error
            case OriginError():
                return TransferError(error.failure, str(error), error.retry_after)
        return self._local_failure(error)

    def _end(self) -> None:
        """Release the partial file. What has arrived stays on disk, to be resumed."""
        if self._arrival:
            self._compare_with_head(self._arrival)
            if (ending := self._ending()) is not None:
                self._arrival.partial.leave(ending.to_json())
            self._arrival.partial.release()

    def _compare_with_head(self, arrival: Arrival) -> None:
        """Hold the origin to the header that it gave before it was asked for the file."""
        if self._test_head is None:
            return
        match self._error:
            case None if self.is_from_origin:
                self._test_head(arrival.header)
            case TransferError(failure=FailureKind.BAD_CONTENT | FailureKind.CHANGED):
                self._test_head(None)

    def _ending(self) -> TransferEnding | None:
        """What other processes that wait for the object have to know; None if one of them should go on."""
        return None if self.is_shared or self._error is None else self.ending_after(self._error)

    def ending_after(self, error: Exception) -> TransferEnding | None:
        """The ending of this transfer with an error; None if that concerns nobody else."""
        agent = self.requester.version
        match error:
            case Exception() if error is self.barred:
                return None
            case NotFoundError():
                return TransferEnding(str(error))
            case TransferError(failure=FailureKind.LOCAL):
                return None
            case TransferError(failure=FailureKind.INTERRUPTED) if not self.for_client:
                return None
            case TransferError():
                return TransferEnding(str(error), error.failure, agent, error.retry_after, error.needed)
        return None

    def _local_failure(self, error: BaseException) -> TransferError:
        """The TransferError for something that went wrong here, not at the origin."""
        if isinstance(error, NoRoomError):
            return TransferError(FailureKind.NO_ROOM, str(error), needed=error.needed)
        if self._resources.store.condition.failed(error):
            reason = f"the disk can't be written to: {error}"
            return self._filled_up(error, reason) or TransferError(FailureKind.LOCAL, reason)
        if isinstance(error, FileNotFoundError):
            return TransferError(FailureKind.LOCAL, f"somebody has deleted {error.filename}")
        logger.exception("Transfer of %s failed.", self.object_id.file_name, exc_info=error)
        return TransferError(FailureKind.LOCAL, f"{type(error).__name__}: {error}")

    def _filled_up(self, error: BaseException, reason: str) -> TransferError | None:
        """The TransferError for a disk that a large object has filled up; None if it is something else."""
        arrival = self._arrival
        if arrival is None or is_small(arrival.object_id) or arrival.partial.complete:
            return None
        if trouble_of(error) is not Trouble.FULL:
            return None
        # Nothing tells whether there is room within a quota again but another try, which costs a request.
        needed = arrival.partial.needed
        pause = OVER_QUOTA if self._resources.store.has_room(needed) else None
        return TransferError(FailureKind.NO_ROOM, reason, pause, needed)

    async def _claim(self) -> Arrival | None:
        """Claim the partial file; None if another process has published the object in the meantime."""
        arrival = await self._following.claim()
        if arrival is None:
            self.is_verified = self.published = True
        return arrival

    def _look(self) -> None:
        """Another process has added to the file: so may the readers here go on."""
        self._on_progress()
        self.wake()

    @property
    def is_from_origin(self) -> bool:
        """Whether all that has arrived came from the origin."""
        return self._arrival is None or self._arrival.shared_etag is None

    @property
    def arrival(self) -> Arrival:
        """What has arrived. Only while it is being fetched."""
        if self._arrival is None:
            raise RuntimeError("nothing is being fetched")
        return self._arrival

    def require_admission(self) -> None:
        """Raise `barred`, if it is set."""
        if self.barred is not None:
            raise self.barred

    async def fetch_from_origin(self) -> None:
        """Fetch the rest from the origin, verify and publish it."""
        if self._expected.kind is Kind.CVD:
            self._test_head = self._resources.put_to_test(self._expected.database)
        while not self.published:
            await self._fetch_all(self.arrival)
            await self.verify_and_publish()

    def withdraw(self, reason: str) -> None:
        """Forget what has arrived, because what came from the bucket is wrong.

        Raises:
            WithdrawnError: readers follow it already.
        """
        arrival, shared = self.arrival, self._resources.shared
        if shared is not None and arrival.shared_etag is not None:
            shared.reject(arrival.object_id, arrival.shared_etag)
        if arrival.followed:
            arrival.partial.discard()
            raise WithdrawnError(FailureKind.LOCAL, f"the object store's copy is wrong: {reason}")
        arrival.partial.begin(Validators(None, None, None))
        arrival.shared_etag = None

    async def _fetch_all(self, arrival: Arrival) -> None:
        breaks = Breaks(arrival)
        while not arrival.partial.complete:
            try:
                async with self._resources.slots:
                    # There may have been a long wait: for a slot, another gateway, or before this break.
                    self.barred = self._obstacle(self)
                    self.require_admission()
                    await self._attempts.run(arrival, self.requester)
                if not arrival.partial.complete:
                    raise OriginError(FailureKind.INTERRUPTED, "the answer ended early")
            except UnansweredError:
                logger.info("No answer for %s: asking again.", self.object_id.file_name)
            except StalledError:
                logger.info("%s stalled at byte %d: reconnecting.", self.object_id.file_name, self.have)
                breaks.count(OriginError(FailureKind.INTERRUPTED, "stalled"), for_client=self.for_client)
            except (OriginError, RangeError) as error:
                failure = as_origin_error(error, arrival)
                await asyncio.sleep(breaks.count(failure, for_client=self.for_client))
            except (OSError, NoRoomError) as error:
                self.go_on_in_memory(error)

    def go_on_in_memory(self, error: Exception) -> None:
        """The disk accepts no more: fetch a small object into memory, unless readers already follow it."""
        arrival, store = self.arrival, self._resources.store
        is_trouble = isinstance(error, NoRoomError) or store.condition.failed(error)
        is_possible = is_small(arrival.object_id) and not arrival.followed and not arrival.partial.is_unnamed
        if not (is_trouble and is_possible):
            raise error
        arrival.partial.discard()
        arrival.partial.release()
        arrival.partial = store.open_partial(arrival.object_id, unnamed=True)

    async def verify_and_publish(self) -> bool:
        """Verify what has arrived, and publish it.

        Returns:
            False if it is wrong because of the bucket, and has been forgotten.

        Raises:
            TransferError: it is wrong.
        """
        arrival = self.arrival
        partial, object_id, path = arrival.partial, arrival.object_id, arrival.partial.present_path
        store, writer, keys = self._resources.store, self._resources.writer, self._resources.keys
        self.wake()  # in the meantime, readers continue with what they may have

        def check() -> None:
            try:
                prove(store, path, object_id, keys, partial.payload)
            finally:
                store.disconnect()

        try:
            await in_thread("clamproxy-verify", check)
        except InvalidObject as error:
            reason = f"{error}{SOURCE if arrival.shared_etag else arrival.ray}"
            logger.warning("%s was rejected and quarantined: %s", object_id.file_name, reason)
            await writer.run(lambda: store.quarantine(object_id.file_name, path, reason))
            if arrival.shared_etag is not None:
                self.withdraw(str(error))
                return False
            partial.discard()
            raise TransferError(FailureKind.BAD_CONTENT, reason) from error
        self.is_verified = True  # readers may have the rest while it is synced to disk
        self.wake()
        metadata = self.metadata
        await writer.run(lambda: store.publish(object_id, path, metadata))
        self.published = True
        return True

    def _on_progress(self) -> None:
        self._attempts.heard()
        if self._arrival and self.have and (self._validators.size or 0) > WITHHELD:
            self._arrival.followed = True
            self._set_ready(None)

    @property
    def _arrival(self) -> Arrival | None:
        return self._following.arrival

    @property
    def _validators(self) -> Validators:
        return self._arrival.validators if self._arrival else Validators(None, None, None)
