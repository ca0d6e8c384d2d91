"""Turns at asking the origin for a head: of the processes of a site, one asks, and the others hear of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from clamproxy.bucket.bucket import Bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.leases.leases import Lease, Leases, WaitEnding
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.errors import NotFoundError, OriginError
from clamproxy.origin.learnt import ending_found, ending_left
from clamproxy.policy import plausible
from clamproxy.sharing.give_and_take import CLIENTS_WAIT
from clamproxy.untrusted import parse_json

logger = logging.getLogger(__name__)

type Ask = Callable[[], Awaitable[CvdHeader]]


class ProbeTurns:
    """Asks for a head under a lease, or takes over what another process has heard. Event loop only.

    Args:
        bucket: where the last head of each database is kept for the gateways of the site; None if there is
            no other gateway.
    """

    def __init__(self, leases: Leases, bucket: Bucket | None = None) -> None:
        self._leases = leases
        self._bucket = bucket
        self._asking: set[str] = set()

    async def run(self, database: str, agent: str, wanted: int, ask: Ask) -> tuple[CvdHeader, bool]:
        """A head, and whether this process has asked the origin for it.

        Args:
            agent: the client version on whose behalf it is asked.
            wanted: the version that is hoped for; 0 if unknown.
            ask: asks the origin.

        Raises:
            NotFoundError, OriginError: what the origin answered, maybe to another process.
        """
        name, deadline = f"probe {database}", time.monotonic() + CLIENTS_WAIT
        if database in self._asking:  # in vain so far; this is another connection
            return await ask(), True
        while (lease := await self._leases.take(name)) is None:
            outcome = await self._leases.wait(name, deadline - time.monotonic())
            if outcome.ending is not WaitEnding.RELEASED:
                return await ask(), True
            if (found := ending_found(outcome.learnt, agent)) is not None:
                found.turn(ObjectId(database, 0, Kind.CVD), 0)
            if (header := _header_in(outcome.learnt, wanted)) is not None:
                return header, False
        self._asking.add(database)
        try:
            return await self._run_for_all(lease, database, agent, wanted, ask)
        finally:
            self._asking.discard(database)

    async def _run_for_all(
        self, lease: Lease, database: str, agent: str, wanted: int, ask: Ask
    ) -> tuple[CvdHeader, bool]:
        learnt: dict[str, Any] = {}
        try:
            header, was_asked = await self._noted(database, wanted), False
            if header is None:
                header, was_asked = await ask(), True
                await self._note(database, header)
            learnt = _as_json(header)
        except NotFoundError as error:
            learnt = ending_left(TransferEnding(str(error)))
            raise
        except OriginError as error:
            learnt = ending_left(TransferEnding(str(error), error.failure, agent, error.retry_after))
            raise
        finally:
            lease.release(learnt)
        return header, was_asked

    async def _noted(self, database: str, wanted: int) -> CvdHeader | None:
        """The head that another gateway got last, if it is as new as it is hoped for, however old that is."""
        if self._bucket is None or not wanted:
            return None
        try:
            stored = await self._bucket.get(_path_of(database))
        except BucketError:
            return None
        header = None if stored is None else _header_in(parse_json(stored.content), wanted)
        return header if header is not None and header.version >= wanted else None

    async def _note(self, database: str, header: CvdHeader) -> None:
        if self._bucket is not None:
            with suppress(BucketError):
                await self._bucket.put(_path_of(database), json.dumps(_as_json(header)).encode())


def _path_of(database: str) -> str:
    return f"heads/{database}.json"


def _as_json(header: CvdHeader) -> dict[str, Any]:
    return {"header": header.raw.decode("ascii")}


def _header_in(saved: Any, wanted: int) -> CvdHeader | None:
    """A head that another process has left, unless nobody has heard of such a version."""
    match saved:
        case {"header": str(text)}:
            with suppress(InvalidObject, UnicodeEncodeError):
                header = CvdHeader.parse(text.encode("ascii"))
                if not wanted or plausible(header.version, wanted):
                    return header
    return None
