"""All running transfers: single flight, cool-downs, remembered 404s, and cancellation at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from clamproxy.clock import Clock
from clamproxy.messages import Requester, SourceError
from clamproxy.negative_cache import NegativeCache
from clamproxy.notes import UNKEPT, Notes
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldown, Cooldowns, FailureKind
from clamproxy.origin.errors import (
    KnownMissingError,
    NotFoundError,
    OriginError,
    TransferError,
    WithdrawnError,
)
from clamproxy.origin.following import settled
from clamproxy.origin.transfer import Resources, Transfer

logger = logging.getLogger(__name__)

MAX_TRANSFERS = 1024
"""Transfers that may run or wait for a connection."""


class NotSharedError(NotFoundError):
    """The site's object store doesn't have it, and the origin isn't to be asked."""


class CooldownError(Exception):
    """The origin must not be asked now."""

    def __init__(self, cooldown: Cooldown) -> None:
        super().__init__(cooldown.reason)
        self.cooldown = cooldown
        self.failure = cooldown.failure


type OriginTrouble = OriginError | TransferError | NotFoundError | CooldownError | SourceError | TimeoutError
ORIGIN_TROUBLE = (OriginError, TransferError, NotFoundError, CooldownError, SourceError, TimeoutError)
"""Reasons why something isn't available from the origin now."""


class Transfers:
    """Starts and joins transfers. Owns their tasks. Event loop only.

    Not a `SingleFlight`: callers join a transfer under way to read along, and may know it by another name
    once it has turned out to be another version.

    Args:
        resources: what the transfers work with.
        cooldowns: asked before each transfer, and told the result.
        negative_ttl: seconds for which a 404 is remembered.
        after_publishing: called when the store has received an object.
        after_failure: called when an object could not be fetched.
        missing: where the objects are kept that the origin doesn't have.
    """

    def __init__(
        self,
        resources: Resources,
        cooldowns: Cooldowns,
        negative_ttl: Callable[[ObjectId], float],
        after_publishing: Callable[[ObjectId], object],
        after_failure: Callable[[ObjectId, FailureKind], object],
        clock: Clock = time,
        missing: Notes = UNKEPT,
    ) -> None:
        self._resources = resources
        self._cooldowns = cooldowns
        self._negative_ttl = negative_ttl
        self._after_publishing = after_publishing
        self._after_failure = after_failure
        self._clock = clock
        self._running: dict[ObjectId, Transfer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._missing = NegativeCache[ObjectId](
            clock.monotonic, missing, lambda object_id: object_id.file_name, clock.time
        )
        self._needed: dict[str, int] = {}
        """Bytes that the disk must have room for before a file is requested again, by its path."""

    def join(
        self,
        object_id: ObjectId,
        requester: Requester,
        oldest: int | None = None,
        *,
        for_client: bool = True,
    ) -> tuple[Transfer, bool]:
        """The transfer of an object, started if it isn't under way.

        In a site with an object store, it is started even if the origin must not be asked now. It fails
        with CooldownError, then, unless the object store has the object, or somebody joins on whose behalf
        the origin may be asked.

        Args:
            object_id: the wanted object.
            requester: the origin is asked on its behalf if this starts the transfer.
            oldest: as in `Transfer`.
            for_client: whether a client is waiting.

        Returns:
            The transfer, and whether it was under way already.

        Raises:
            KnownMissingError: the origin said a short while ago that it doesn't have this object.
            CooldownError: the origin must not be asked now.
        """
        self.require_not_missing(object_id)
        transfer = self._running.get(object_id) or self._turned_to(object_id)
        if transfer is not None:
            transfer.for_client |= for_client
            if transfer.barred is not None:
                barred = self._bar(object_id, requester)
                if barred is None or isinstance(transfer.barred, NotSharedError):
                    self._admit(transfer, requester, barred)
            transfer.kick()
            return transfer, True
        if len(self._running) >= MAX_TRANSFERS:
            raise CooldownError(
                Cooldown(self._clock.time() + 1, 1, FailureKind.LOCAL, "too many transfers at once")
            )
        barred = self._bar(object_id, requester)
        if barred is not None and self._resources.shared is None:
            raise barred
        return self._start(object_id, requester, oldest, for_client=for_client, barred=barred), False

    async def take_shared(self, object_id: ObjectId) -> bool:
        """Bring an object from the site's object store, without asking the origin for it.

        Returns:
            Whether it is published. If it was wrong there, the log says so.
        """
        if self._resources.shared is None or self._resources.store.holds(object_id):
            return self._resources.store.holds(object_id)
        transfer = self._running.get(object_id)
        if transfer is None:
            barred = NotSharedError(f"the object store has no {object_id.file_name}")
            transfer = self._start(object_id, Requester(), None, for_client=False, barred=barred)
        try:
            await transfer.finish()
        except ORIGIN_TROUBLE:
            return False
        return True

    def _start(
        self,
        object_id: ObjectId,
        requester: Requester,
        oldest: int | None,
        *,
        for_client: bool,
        barred: Exception | None,
    ) -> Transfer:
        transfer = Transfer(object_id, requester, self._resources, oldest, self._obstacle)
        transfer.for_client = for_client
        self._admit(transfer, requester, barred)
        self._running[object_id] = transfer
        task = asyncio.create_task(self._run(object_id, transfer), name=f"transfer {object_id.file_name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return transfer

    def _admit(self, transfer: Transfer, requester: Requester, barred: Exception | None) -> None:
        transfer.requester, transfer.barred, transfer.admitted_at = requester, barred, self._clock.time()

    def _obstacle(self, transfer: Transfer) -> CooldownError | None:
        """What has come to forbid going on with a transfer since it was admitted."""
        path, agent = transfer.object_id.upstream_path, transfer.requester.version
        cooldown = self._cooldowns.refused_since(path, agent, transfer.admitted_at)
        if cooldown is not None:
            return CooldownError(cooldown)
        transfer.admitted_at = self._clock.time()  # what has ended by now doesn't count for what is asked now
        return None

    def _bar(self, object_id: ObjectId, requester: Requester) -> CooldownError | None:
        """Why the origin must not be asked now; None if it is asked at once."""
        path, agent = object_id.upstream_path, requester.version
        cooldown = (
            self._cooldowns.check(path, agent)
            or self._without_room(object_id, requester)
            or self._cooldowns.admit(path, agent)
        )
        return None if cooldown is None else CooldownError(cooldown)

    def require_not_missing(self, object_id: ObjectId) -> None:
        """Raise KnownMissingError if the origin said a short while ago that it lacks this object. Quick."""
        if object_id in self._missing:
            raise KnownMissingError(f"the origin has no {object_id.file_name}")

    def _without_room(self, object_id: ObjectId, requester: Requester) -> Cooldown | None:
        """A cool-down for an object without room on the disk, so that it isn't requested in vain."""
        path = object_id.upstream_path
        needed = self._needed.get(path, 0)
        if not needed or self._resources.store.has_room(needed):
            self._needed.pop(path, None)
            return None
        reason = f"the disk has no room for {needed:,} bytes"
        return self._cooldowns.failed(FailureKind.NO_ROOM, path, requester.version, reason)

    def under_way(self) -> list[tuple[ObjectId, int, int]]:
        """The objects being fetched, with their bytes that have arrived and their size (0 if unknown)."""
        return [(one.object_id, one.have, one.metadata.size) for one in self._running.values()]

    def is_running(self, object_id: ObjectId) -> bool:
        return object_id in self._running

    def asked_at(self, object_ids: Iterable[ObjectId]) -> float | None:
        """The earliest loop time at which one of these was requested that can't be read from yet.

        None if there are none.
        """
        running = (self._running.get(object_id) or self._turned_to(object_id) for object_id in object_ids)
        return min((one.asked_at for one in running if one is not None and not one.is_ready), default=None)

    async def settle(self, object_id: ObjectId) -> None:
        """Wait until an object is published, if its readers may already have all of it."""
        transfer = self._running.get(object_id) or self._turned_to(object_id)
        if transfer is None or transfer.is_shared:
            await settled(self._resources.store, object_id)
        elif transfer.is_verified:
            with suppress(NotFoundError, TransferError):
                await transfer.finish()

    async def ready(
        self,
        object_id: ObjectId,
        requester: Requester,
        oldest: int | None = None,
        *,
        for_client: bool = True,
    ) -> tuple[Transfer, bool]:
        """Like `join`, but waits until the transfer can be read from. See `Transfer.ready` for errors."""
        while True:
            transfer, joined = self.join(object_id, requester, oldest, for_client=for_client)
            try:
                await transfer.ready()
            except (NotFoundError, TransferError, CooldownError) as error:
                await asyncio.sleep(0)  # the failed transfer is leaving
                # Once a client has its answer, it may ask another process, which must know why as well.
                await self._missing.written()
                # An old client's 403 doesn't apply to others (docs/protocol.md, trap 20): ask for this one.
                is_refusal = not isinstance(error, NotFoundError) and error.failure is FailureKind.FORBIDDEN
                if not (joined and is_refusal and transfer.requester.version != requester.version):
                    raise
            else:
                return transfer, joined

    def _turned_to(self, object_id: ObjectId) -> Transfer | None:
        """A transfer that was started for another version of a CVD, and turned out to be this one."""
        return next((one for one in self._running.values() if one.object_id == object_id), None)

    async def _run(self, object_id: ObjectId, transfer: Transfer) -> None:
        path = object_id.upstream_path
        try:
            await transfer.run()
        except (CooldownError, NotSharedError, WithdrawnError) as error:
            logger.debug("%s: %s", object_id.file_name, error)
        except NotFoundError as error:
            logger.info("The origin has no %s: %s", object_id.file_name, error)
            self._cooldowns.forgive_proxy(transfer.admitted_at)
            self._missing.add(object_id, self._negative_ttl(object_id))
        except TransferError as error:
            self._note_failure(object_id, transfer, error)
            if not (transfer.is_shared or transfer.was_told):
                self._after_failure(object_id, error.failure)
        else:
            if transfer.is_from_origin and not transfer.is_shared:
                agent, asked_at = transfer.requester.version, transfer.admitted_at
                self._cooldowns.succeeded(path, agent, asked_at=asked_at)
            self._after_publishing(transfer.object_id)
        finally:
            del self._running[object_id]

    def _note_failure(self, object_id: ObjectId, transfer: Transfer, error: TransferError) -> None:
        if error.failure is FailureKind.INTERRUPTED and not transfer.for_client:
            # No client has to wait because of this; what the gateway does by itself has its own budget.
            logger.info("%s was not prefetched: %s", object_id.file_name, error)
            return
        path, agent = object_id.upstream_path, transfer.requester.version
        if error.needed:
            self._needed[path] = error.needed
        if (transfer.is_shared or transfer.was_told) and self._is_noted(error, path, agent):
            return
        cooldown = self._cooldowns.failed(
            error.failure, path, agent, str(error), error.retry_after, transfer.admitted_at
        )
        wait = cooldown.until - self._clock.time()
        logger.warning("%s could not be fetched (%s); next try in %.0f s.", object_id.file_name, error, wait)

    def _is_noted(self, error: TransferError, path: str, agent: str) -> bool:
        """Whether a failure that another process has met, and notes for all, needs no note here."""
        return error.failure is FailureKind.CHANGED or self._cooldowns.check(path, agent) is not None

    def stop(self) -> None:
        """Cancel all transfers. What has arrived stays on disk and is resumed after the next start."""
        for task in self._tasks:
            task.cancel()
