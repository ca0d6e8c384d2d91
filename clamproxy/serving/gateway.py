"""The application: takes a request and returns a response. Knows nothing of mitmproxy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from clamproxy.cache.soundness import Soundness
from clamproxy.cache.store import Store
from clamproxy.messages import Request, Requester, Response, Result
from clamproxy.objects import Kind, Latest, ObjectId, parse_path
from clamproxy.origin.errors import KnownMissingError, NotFoundError, TransferError
from clamproxy.origin.transfers import ORIGIN_TROUBLE, CooldownError
from clamproxy.policy import OLDEST_CDIFF, PLAUSIBLE_LEAD
from clamproxy.releases.ceilings import Ceilings
from clamproxy.releases.stuck import StuckPatches
from clamproxy.responses import plain
from clamproxy.serving.database_responses import from_object, held_back, take_the_whole, unavailable
from clamproxy.serving.databases import WholeDatabases, is_freshclam
from clamproxy.serving.delivery import Delivery
from clamproxy.serving.ready import ReadyAnswers
from clamproxy.serving.resolution import PATIENCE, CurrentVersions
from clamproxy.storage.condition import is_out_of_descriptors, trouble_of

logger = logging.getLogger(__name__)


class Gateway:
    """Responds to requests on ClamAV hosts.

    Args:
        databases: the names of the databases that are served.
        stuck: the patches that clients should no longer wait for.
        notice: is told the database and the User-Agent of each request, except the doctor's.
        offline: whether the origin is never asked.
    """

    def __init__(
        self,
        databases: frozenset[str],
        store: Store,
        soundness: Soundness,
        current: CurrentVersions,
        delivery: Delivery,
        ready: ReadyAnswers,
        whole: WholeDatabases,
        stuck: StuckPatches,
        notice: Callable[[str, str | None], object],
        ceilings: Ceilings,
        *,
        offline: bool = False,
    ) -> None:
        self._databases = databases
        self._store = store
        self._soundness = soundness
        self._current = current
        self._delivery = delivery
        self._ready = ready
        self._whole = whole
        self._stuck = stuck
        self._notice = notice
        self._ceilings = ceilings
        self._offline = offline

    async def handle(self, request: Request) -> Response:
        """Respond to a GET or HEAD, whatever happens, and never with 403 or 429.

        Source: docs/protocol.md, trap 20.
        """
        try:
            await self._ceilings.known()
            return self.answer_at_once(request) or await self._dispatch(request)
        except NotFoundError as error:
            return self._missing(error)
        except ORIGIN_TROUBLE as error:
            return unavailable(error)
        except Exception as error:
            if isinstance(error, OSError) and self._store.condition.failed(error):  # which logs it
                return unavailable(error)
            logger.exception("%s %s failed.", request.method, request.path)
            if is_out_of_descriptors(error):
                return unavailable(error)
            return plain(503, Result.ERROR, "internal error; see the gateway's log")

    def _missing(self, error: NotFoundError) -> Response:
        if self._offline:  # nobody has said that there is none
            return plain(404, Result.MISS, "not in the cache, and this gateway is offline")
        if isinstance(error, KnownMissingError):
            return plain(404, Result.NEGATIVE, str(error))
        return plain(404, Result.MISS, "the origin has no such file")

    def answer_at_once(self, request: Request) -> Response | None:
        """Respond to a GET or HEAD if the response is ready in memory; None otherwise."""
        if (ready := self._ready.find(request)) is None:
            return None
        object_id, response = ready
        if self._is_hidden(object_id, request):
            return None
        self._see(request, object_id.database)
        return response

    async def _dispatch(self, request: Request) -> Response:
        target = parse_path(request.path, self._databases)
        if target is None:
            return plain(404, Result.REFUSED, "not a file of ClamAV's databases")
        self._see(request, target.database)
        try:
            return await self._answer(request, target)
        except OSError as error:
            if trouble_of(error) is None:
                raise
            # A file could not be read. It is checked now, and dropped if it still can't be.
            return await self._answer(request, target)

    async def _answer(self, request: Request, target: ObjectId | Latest) -> Response:
        await self._soundness.ensure(target.database)
        match target:
            case ObjectId():
                return await self._answer_object(request, target)
            case Latest(kind=Kind.CVD):
                return await self._whole.answer_cvd(request, target)
            case Latest():
                return await self._whole.answer_cld(request, target)

    def _see(self, request: Request, database: str) -> None:
        if not request.is_doctors:
            self._notice(database, request.fields.get("user-agent"))

    async def _answer_object(self, request: Request, object_id: ObjectId) -> Response:
        """Respond to a request for a patch or a signature."""
        if self._is_hidden(object_id, request):
            # Not through `ready` or the memory of missing files: canaries get it, and soon all others.
            return held_back(object_id.version)
        until = asyncio.get_running_loop().time() + PATIENCE
        self._delivery.require_not_missing(object_id)
        await self._soundness.ensure_object(object_id)
        while (published := await self._delivery.open(object_id)) is not None:
            response = from_object(request, object_id, published.metadata, published, Result.HIT)
            if self._ready.keep(request, object_id, response):
                return response
            await self._soundness.recheck(object_id)
        if await self._is_out_of_reach(object_id):
            return plain(404, Result.NEGATIVE, "no such version yet", object_id.version)
        try:
            return from_object(request, *await self._delivery.fetch(object_id, request.requester, until))
        except (CooldownError, TransferError):
            if not self._is_better_whole(request, object_id):
                raise
            return take_the_whole(object_id)

    def _is_hidden(self, object_id: ObjectId, request: Request) -> bool:
        """Whether the client isn't shown this version yet."""
        ceiling = self._ceilings.of(object_id.database, request.address)
        return ceiling is not None and object_id.version > ceiling

    def _is_better_whole(self, request: Request, cdiff: ObjectId) -> bool:
        """Whether a freshclam that can't get a patch can continue with a CVD that is cached.

        Only freshclam: other programs and gateways would keep the empty cdiff and pass it on.
        """
        newest = self._store.newest_version(cdiff.database) or 0
        return newest >= cdiff.version and is_freshclam(request) and self._stuck.is_stuck(cdiff)

    async def _is_out_of_reach(self, object_id: ObjectId) -> bool:
        """Whether a version is so far from a fresh DNS answer that the client must have made it up."""
        if self._offline:  # nobody knows which versions there are
            return False
        known = await self._current.ask_dns(Latest(object_id.database, Kind.CVD), Requester())
        # DNS may be wrong: what is near the newest version that was seen is asked for as well.
        newest = [one for one in (known.best, known.wanted) if one]
        return known.advertised_is_fresh and not any(_is_near(object_id, one) for one in newest)


def _is_near(object_id: ObjectId, newest: int) -> bool:
    """Whether an object may exist if a version is the newest."""
    oldest = newest - OLDEST_CDIFF if object_id.kind is Kind.CDIFF else 0
    return oldest <= object_id.version <= newest + PLAUSIBLE_LEAD
