"""The application: a request in, a reply out. Knows nothing of mitmproxy."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.answers import from_head, from_object, plain, unavailable
from clamproxy.cache.store import Metadata, Store
from clamproxy.config.settings import Settings
from clamproxy.messages import CACHE_STATUS, Reply, Request, Requester, Result, Source, SourceError
from clamproxy.objects import Kind, Latest, ObjectId, parse_path
from clamproxy.origin.cooldown import Cooldowns, Failure
from clamproxy.origin.heads import Heads
from clamproxy.origin.transfer import TransferError
from clamproxy.origin.transfers import CooldownError, Transfers
from clamproxy.origin.upstream import KnownMissingError, NotFoundError, OriginError
from clamproxy.origin.versions import AdvertisedVersions
from clamproxy.policy import PLAUSIBLE_LEAD, Known, choose, must_probe

logger = logging.getLogger(__name__)

PATIENCE = 25.0
"""Seconds after which a client that waits for the origin gets a 503. freshclam's ReceiveTimeout
is 60 s by default, its ConnectTimeout 30 s (protocol.md 1.1)."""
PATIENCE_WITH_STALE = 5.0
"""The same where something older can be served instead."""

type OriginTrouble = OriginError | TransferError | NotFoundError | CooldownError | SourceError | TimeoutError
_ORIGIN_TROUBLE = (OriginError, TransferError, NotFoundError, CooldownError, SourceError, TimeoutError)

type Fetched = tuple[ObjectId, Metadata, Source, Result]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the gateway is made of."""

    settings: Settings
    store: Store
    versions: AdvertisedVersions
    heads: Heads
    transfers: Transfers
    cooldowns: Cooldowns
    pseudonym: str
    """This gateway's name in Via, by which it knows a loop."""


class Gateway:
    """Answers requests on ClamAV hosts."""

    def __init__(self, parts: Parts) -> None:
        """Serve with the given parts; who makes them also stops them."""
        self._parts = parts
        self.via = f"1.1 {parts.pseudonym}"
        self._databases = frozenset(parts.settings.serving.databases)

    async def handle(self, request: Request) -> Reply:
        """Answer a request, whatever happens, and never with 403 or 429 (trap 20)."""
        try:
            reply = await self._dispatch(request)
        except KnownMissingError as error:
            reply = plain(404, Result.NEGATIVE, str(error))
        except NotFoundError:
            reply = plain(404, Result.MISS, "the origin has no such file")
        except _ORIGIN_TROUBLE as error:
            reply = unavailable(error)
        except Exception:
            logger.exception("%s %s failed.", request.method, request.path)
            reply = plain(503, Result.ERROR, "internal error; see the log of the gateway")
        return self.finish(reply)

    def is_loop(self, headers: Headers) -> bool:
        """Whether a request came through this gateway before."""
        return self._parts.pseudonym in ", ".join(headers.get_all("Via"))

    def refuse(self, status: int, reason: str) -> Reply:
        """An answer to a request that is not for the gateway to serve."""
        return self.finish(plain(status, Result.REFUSED, reason))

    def finish(self, reply: Reply) -> Reply:
        """Add the fields that every answer carries."""
        reply.headers["Cache-Status"] = CACHE_STATUS[reply.result]
        reply.headers["Via"] = self.via
        reply.headers["Date"] = http_date(time.time())
        return reply

    async def _dispatch(self, request: Request) -> Reply:
        if self.is_loop(request.headers):
            return plain(502, Result.REFUSED, "loop: this request came through this gateway before")
        if request.method not in ("GET", "HEAD"):
            reply = plain(405, Result.REFUSED, "only GET and HEAD")
            reply.headers["Allow"] = "GET, HEAD"
            return reply
        match parse_path(request.path, self._databases):
            case Latest(kind=Kind.CVD) as latest:
                return await self._answer_latest(request, latest)
            case ObjectId() as object_id:
                return await self._answer_object(request, object_id)
            case Latest():
                # The CDN has no CLDs; a client takes a 404 as the sign to ask for the CVD (trap 22).
                return plain(404, Result.NEGATIVE, "no such file")
            case _:
                return plain(404, Result.REFUSED, "no file of ClamAV's databases")

    # Patches and signatures

    async def _answer_object(self, request: Request, object_id: ObjectId) -> Reply:
        if (published := self._parts.store.open(object_id)) is not None:
            return from_object(request, object_id, published.metadata, published, Result.HIT)
        if await self._is_out_of_reach(object_id):
            return plain(404, Result.NEGATIVE, "no such version yet", object_id.version)
        until = asyncio.get_running_loop().time() + PATIENCE
        return from_object(request, *await self._fetch(request, object_id, None, until))

    async def _is_out_of_reach(self, object_id: ObjectId) -> bool:
        """Whether a version is so far ahead of a fresh DNS answer that a client must have made it up."""
        known = await self._ask_dns(Latest(object_id.database, Kind.CVD), Requester())
        return known.advertised_is_fresh and object_id.version > known.newest + PLAUSIBLE_LEAD

    async def _fetch(
        self, request: Request, object_id: ObjectId, oldest: int | None, until: float
    ) -> Fetched:
        """Start or join a transfer, and wait until it can be read from.

        Args:
            request: whose client waits.
            object_id: what it wants.
            oldest: see `Transfer`.
            until: loop time at which waiting ends with a TimeoutError.
        """
        async with asyncio.timeout_at(until):
            while True:
                transfer, joined = self._parts.transfers.join(object_id, request.requester, oldest)
                try:
                    await transfer.ready()
                except TransferError as error:
                    # An old client's 403 is not the others' (trap 20): ask under one's own name.
                    same = transfer.requester.version == request.requester.version
                    if not joined or same or error.failure is not Failure.FORBIDDEN:
                        raise
                    await asyncio.sleep(0)  # the failed transfer is leaving
                    continue
                result = Result.COLLAPSED if joined else Result.MISS
                found = transfer.object_id
                if not transfer.published:
                    return found, transfer.metadata, transfer.source(), result
                if (published := self._parts.store.open(found)) is not None:
                    return found, published.metadata, published, result
                raise TransferError(Failure.LOCAL, "dropped from the cache as soon as it was there")

    # Whole CVDs and their headers

    async def _answer_latest(self, request: Request, latest: Latest, *, again: bool = False) -> Reply:
        database, started_at = latest.database, asyncio.get_running_loop().time()
        known, probed, trouble = await self._find_out(request, latest, started_at)
        choice = choose(known)
        if choice is None:
            raise trouble or OriginError(Failure.UNREACHABLE, "no version is known")
        head = self._parts.heads.get(database)
        if not choice.is_cached and head is not None:
            result = Result.MISS if probed else Result.HIT
            is_newest = choice.version >= known.newest
            if reply := from_head(request, database, head, result, is_newest=is_newest):
                return reply
            try:
                object_id = ObjectId(database, choice.version, Kind.CVD)
                until = started_at + _patience(known)
                fetched = await self._fetch(request, object_id, (known.cached or 0) + 1, until)
                # An edge of the CDN may have sent an older version than its head announced.
                return from_object(request, *fetched, is_newest=fetched[0].version >= known.newest)
            except _ORIGIN_TROUBLE as error:
                if isinstance(error, TransferError) and error.failure is Failure.CHANGED and not again:
                    # A release in this very moment: look what is current now.
                    return await self._answer_latest(request, latest, again=True)
                trouble = error
        published = self._parts.store.open_newest(database)
        if published is None:
            raise trouble or TransferError(Failure.LOCAL, "dropped from the cache just now")
        object_id = published.object_id
        result = Result.STALE if choice.stale or trouble else Result.HIT
        is_newest = object_id.version >= known.newest
        return from_object(request, object_id, published.metadata, published, result, is_newest=is_newest)

    async def _find_out(
        self, request: Request, latest: Latest, started_at: float
    ) -> tuple[Known, bool, OriginTrouble | None]:
        """Learn what is current, from DNS and if need be from the origin.

        Returns:
            What is known, whether the origin was asked, and why it didn't answer.
        """
        known = await self._ask_dns(latest, request.requester)
        if not must_probe(known):
            return known, False, None
        trouble: OriginTrouble | None = None
        try:
            async with asyncio.timeout_at(started_at + _patience(known)):
                await self._parts.heads.probe(
                    latest.database, request.requester, known.advertised or 0, known.wanted
                )
        except _ORIGIN_TROUBLE as error:
            trouble = error
        return self._known(latest, request.requester), True, trouble

    async def _ask_dns(self, latest: Latest, requester: Requester) -> Known:
        if self._parts.settings.versions.dns:
            await self._parts.versions.get(latest.database)
        return self._known(latest, requester)

    def _known(self, latest: Latest, requester: Requester) -> Known:
        database, parts = latest.database, self._parts
        advertised = parts.versions.last_known(database) if parts.settings.versions.dns else None
        head, sighting = parts.heads.get(database), parts.heads.sighting(database)
        return Known(
            now=time.time(),
            refresh=parts.settings.versions.refresh,
            advertised=advertised.version if advertised else None,
            advertised_is_fresh=advertised is not None and advertised.fresh,
            demanded=latest.demanded,
            cached=parts.store.newest_version(database),
            seen=head.header.version if head else None,
            seen_at=sighting.at,
            probed_advertised=sighting.advertised,
            probed_for=sighting.wanted,
            can_fetch=parts.cooldowns.check(latest.upstream_path, requester.version) is None,
        )


def _patience(known: Known) -> float:
    """Seconds that a client may wait for the origin."""
    return PATIENCE_WITH_STALE if known.cached else PATIENCE
