"""The cache of feeds: a request in, a response out. Knows nothing about mitmproxy.

freshclam treats all responses except 200, 304, 403 and 429 alike: the file isn't available now
(docs/protocol.md 2.2). 403 and 429 freeze its official updates for hours. So:

* 404 and 410 become 404, and are remembered for a minute;
* 401, 402, 403, 429, 451, anything else that is no file, and an unreachable server start a cool-down; the
  stored copy is served as long as that is allowed, and then 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from werkzeug.datastructures import Headers

from clamproxy.clock import Clock
from clamproxy.config.settings import Settings
from clamproxy.dates import parse_http_date
from clamproxy.downloads import FileSource
from clamproxy.feeds import pairs, sharing_rules
from clamproxy.feeds.counts import Counts
from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.feed_cooldowns import FeedCooldowns
from clamproxy.feeds.feed_responses import from_source, not_modified
from clamproxy.feeds.feed_store import FeedStore
from clamproxy.feeds.feed_transfer import FeedTransfer, FetchOutcome, HeldBackError
from clamproxy.feeds.fetch import Fetcher, forwarded
from clamproxy.feeds.plan import Plan
from clamproxy.feeds.target import Target, TargetError
from clamproxy.feeds.turns import Turns
from clamproxy.leases.leases import Leases
from clamproxy.messages import Request, Response, Result
from clamproxy.negative_cache import NegativeCache
from clamproxy.notes import Notes
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError
from clamproxy.origin.link import Link
from clamproxy.responses import plain
from clamproxy.single_flight import SingleFlight
from clamproxy.threads import Writer, in_thread

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""Simultaneous connections to feeds; further transfers wait."""
MAX_TRANSFERS = 256
"""Transfers that may run or wait for a connection."""
MISSING_TTL = 60.0
"""Seconds for which a 404 is remembered."""
UNSHAREABLE_TTL = 3600.0
"""Seconds for which clients don't wait for each other's transfer of a response that may not be shared."""

_REVALIDATED = "clamproxy; fwd=stale; fwd-status=304"
_FILES = "the feeds' files"
_BYPASS = "clamproxy; fwd=bypass"


@dataclass(frozen=True, slots=True)
class _Ask:
    """A parsed request."""

    request: Request
    target: Target
    sent: Headers
    """The fields that would be sent to the feed."""
    key: str


class Feeds:
    """Answers requests on feeds' hosts. Event loop only.

    Args:
        directory: for the files of feeds, below the cache directory; created when it is needed.
        settings: the configuration.
        notes: gives the notes on a topic, where cool-downs and what is missing are kept.
        count_upstream: called with the requests to feeds and the bytes of their bodies, from any thread.
        via: names this gateway in the Via field of requests to feeds.
        link: what files are read over; by default, one without a limit.
        machine: the leases of the processes that share the directory; None: there are no others.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        notes: Callable[[str], Notes],
        count_upstream: Callable[[int, int], None],
        via: str,
        clock: Clock = time,
        link: Link | None = None,
        machine: Leases | None = None,
    ) -> None:
        self._via = via
        self._clock = clock
        self._settings = settings
        self._fetcher = Fetcher(settings, count_upstream, link)
        self._writer = Writer()
        self._store = FeedStore(directory, settings.feeds.size_limit, self._writer.submit)
        self._turns = None if machine is None else Turns(machine, self._store)
        self._cooldowns = FeedCooldowns(notes("feed/cooldown"), clock.time)
        self._counts = Counts()
        self._missing = NegativeCache[str](clock.monotonic, notes("feed/missing"), now=clock.time)
        self._unshareable = NegativeCache[str](clock.monotonic)
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._running: dict[str, FeedTransfer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_loaded = False
        self._loading = SingleFlight[str, None]("read")
        self._checks = SingleFlight[str, bool]("check")

    # Life

    def start(self) -> None:
        """Read what is on the disk, in the background; requests wait for that."""
        if not self._is_loaded:
            _ = self._loading.start(_FILES, self._load)

    def under_way(self) -> bool:
        """Whether anything is being fetched: `stop` would cut off its readers."""
        return bool(self._tasks)

    def stop(self) -> None:
        """Stop all transfers; takes milliseconds."""
        for task in self._tasks:
            task.cancel()
        self._loading.stop()
        self._writer.close()
        self._fetcher.close()

    def figures(self) -> dict[str, Any]:
        """What status.json says about feeds. The counts start with the process."""
        self._store.catch_up()
        return {
            "objects": len(self._store),
            "bytes": self._store.size,
            "hosts": self._counts.figures(self._held_until),
        }

    def _held_until(self, place: str) -> float | None:
        """When a host's cool-down ends; None if there is none."""
        ends = [self._cooldowns.until(f"{scheme}://{place}") for scheme in ("http", "https")]
        return max((end for end in ends if end is not None), default=None)

    async def _load(self) -> None:
        try:
            await in_thread("clamproxy-feeds", self._store.load)
        except OSError as error:
            logger.error("The directory of feeds can't be used: %s", error.strerror)  # noqa: TRY400
        self._is_loaded = True

    # Requests

    async def handle(self, request: Request) -> Response:
        """Answer a GET or HEAD, whatever happens, and never with 403 or 429."""
        place = "-"
        try:
            target = Target.parse(request.url)
            place = target.place
            if not self._settings.feeds.covers(target.host):
                raise TargetError("not in feeds.hosts")  # whichever host the caller took it for
            response = await self._answer(request, target)
        except TargetError as error:
            response = plain(502, Result.REFUSED, f"not a feed: {error}")
        except Exception as error:
            # A traceback would end with the error's text, which may hold the URL.
            where = traceback.extract_tb(error.__traceback__)[-1]
            logger.error(  # noqa: TRY400
                "A request for %s failed: %s in %s:%s",
                place,
                type(error).__name__,
                where.filename,
                where.lineno,
            )
            response = plain(503, Result.ERROR, "internal error; see the gateway's log")
            response.headers["Retry-After"] = "1"
        if response.result is not Result.REFUSED:
            self._counts.add(place, response.result)
        return response

    async def _answer(self, request: Request, target: Target) -> Response:
        if not self._is_loaded:
            await self._loading.run(_FILES, self._load)
        sent = forwarded(request.headers, target, self._via)
        ask = _Ask(request, target, sent, target.key(sent.get("Authorization")))
        entry = await self._find(ask)
        if entry is not None and self._is_fresh(ask, entry):
            if (response := self._from_entry(ask, entry, Result.HIT)) is not None:
                return response
            entry = None
        wants = sharing_rules.request_directives(request.headers)
        if wants.only_if_cached:
            return plain(504, Result.ERROR, "nothing fresh is cached, and the request accepts nothing else")
        if ask.key in self._missing and not wants.no_cache:
            return plain(404, Result.NEGATIVE, "the feed has no such file")
        if wants.no_cache:
            ask.sent["Cache-Control"] = "no-cache"  # caches on the way may have the same old copy
        return await self._ask_feed(ask, entry)

    async def _ask_feed(self, ask: _Ask, entry: StoredResponse | None) -> Response:
        """Answer with what the feed has, or with a substitute."""
        if self._settings.upstream.offline:
            return self._without_feed(ask, entry, "the gateway is offline")
        cooldown = self._cooldowns.check(ask.target.server, ask.key)
        if cooldown is not None:
            return self._without_feed(ask, entry, cooldown.reason)
        try:
            return await self._fetch(ask, entry)
        except (NotFoundError, OriginError) as error:
            # Once a client has its answer, it may ask another process, which must know why as well.
            await self._missing.written()
            if isinstance(error, NotFoundError):
                return plain(404, Result.MISS, "the feed has no such file")
            return self._without_feed(ask, entry, str(error))

    def _without_feed(self, ask: _Ask, entry: StoredResponse | None, reason: str) -> Response:
        """The feed can't be asked or doesn't deliver: answer with the stored copy, else with 503."""
        limit = self._settings.feeds.stale_if_error
        if entry is not None and sharing_rules.serves_on_error(entry.head, self._clock.time(), limit):
            response = self._from_entry(ask, entry, Result.STALE)
            if response is not None:
                response.reason = reason
                return response
        response = plain(503, Result.ERROR, f"{ask.target.place} does not deliver: {reason}")
        cooldown = self._cooldowns.check(ask.target.server, ask.key)
        wait = math.ceil(cooldown.until - self._clock.time()) if cooldown else 1
        response.headers["Retry-After"] = str(max(1, wait))
        return response

    # What is stored

    async def _find(self, ask: _Ask) -> StoredResponse | None:
        """The stored response to a request, fresh or not, and undamaged."""
        entry = self._store.get(ask.key)
        if entry is None or not sharing_rules.is_selected(entry.selection, ask.sent):
            return None
        if self._store.is_checked(entry):
            return entry
        return entry if await self._checks.run(ask.key, partial(self._check, entry)) else None

    async def _check(self, entry: StoredResponse) -> bool:
        return await in_thread("clamproxy-feeds", lambda: self._store.check(entry))

    def _is_fresh(self, ask: _Ask, entry: StoredResponse) -> bool:
        """Whether this stored response, and those beside it, allow answering without asking the feed."""
        now, authorization = self._clock.time(), ask.sent.get("Authorization")
        if not sharing_rules.is_fresh(entry.head, ask.request.headers, now):
            return False
        keys = self._store.among(target.key(authorization) for target in pairs.beside(ask.target))
        return all(self._keeps_step(entry, key, now) for key in keys)

    def _keeps_step(self, entry: StoredResponse, key: str, now: float) -> bool:
        """Like `pairs.keeps_step`, but also counts what clients were given that is not stored, or not yet."""
        given_at, other = self._store.given.at(key), self._store.get(key)
        if entry.head.requested_at < given_at:
            return False
        return other is None or pairs.keeps_step(entry, other, now)

    def _from_entry(self, ask: _Ask, entry: StoredResponse, result: Result) -> Response | None:
        descriptor = self._store.open(entry)
        if descriptor is None:
            return None
        closed = partial(self._store.sent, entry.key, entry.obtained_at)
        distrusted = partial(self._store.distrust, entry)
        source = FileSource(descriptor, entry.size, closed=closed, distrusted=distrusted)
        try:
            return from_source(ask.request, entry.head, source, result, entry.is_not_newer)
        except OSError:  # it can't be read, and is checked before the next client gets it
            return None

    # What is fetched

    async def _fetch(self, ask: _Ask, entry: StoredResponse | None) -> Response:
        """Fetch the response, once for all clients that ask in the meantime.

        Raises:
            NotFoundError, OriginError: as `FeedTransfer.ready` does.
        """
        if ask.key not in self._unshareable and not sharing_rules.wants_no_store(ask.request.headers):
            running = self._running.get(ask.key)
            transfer = running or self._begin(Plan(ask.target, ask.key, ask.sent, ask.request.headers, entry))
            with transfer:
                outcome = await transfer.ready()
                if running is None or self._is_for(ask, outcome, transfer):
                    collapsed = running is not None or outcome.is_collapsed
                    return self._from_outcome(ask, transfer, outcome, collapsed=collapsed)
        # The feed can judge the client's own copy only if such copies never come from here.
        own = _conditions(ask.request.headers) if ask.key in self._unshareable else None
        plan = Plan(ask.target, ask.key, ask.sent, ask.request.headers, conditions=own)
        with self._begin(plan, shared=False) as transfer:
            outcome = await transfer.ready()
            response = self._from_outcome(ask, transfer, outcome, collapsed=False)
        response.headers["Cache-Status"] = _BYPASS
        return response

    def _is_for(self, ask: _Ask, outcome: FetchOutcome, transfer: FeedTransfer) -> bool:
        """Whether the response to another client's request answers this request as well."""
        selection = sharing_rules.selection(outcome.head, transfer.plan.sent)
        return outcome.shareable and sharing_rules.is_selected(selection, ask.sent)

    def _from_outcome(
        self, ask: _Ask, transfer: FeedTransfer, outcome: FetchOutcome, *, collapsed: bool
    ) -> Response:
        if outcome.status == 304:
            return not_modified(outcome.head, Result.MISS)
        if outcome.confirmed is None:
            result = Result.COLLAPSED if collapsed else Result.MISS
            modified = parse_http_date(outcome.head.headers.get("Last-Modified"))
            return from_source(
                ask.request,
                outcome.head,
                transfer.source(outcome),
                result,
                # Whatever the client has, it didn't get it here: see `StoredResponse.is_not_newer`.
                lambda since: since == modified,
            )
        result = Result.COLLAPSED if collapsed else Result.HIT
        response = self._from_entry(ask, outcome.confirmed, result)
        if response is None:
            raise OriginError(FailureKind.LOCAL, "the stored file is gone")
        stored = transfer.plan.stored
        if stored is not None and stored.body_name == outcome.confirmed.body_name:
            response.headers["Cache-Status"] = _REVALIDATED + ("; collapsed" if collapsed else "")
        return response

    def _begin(self, plan: Plan, *, shared: bool = True) -> FeedTransfer:
        if len(self._tasks) >= MAX_TRANSFERS:
            raise OriginError(FailureKind.LOCAL, "too many transfers at once")
        turns = self._turns if shared else None
        check = partial(self._cooldowns.check, plan.target.server, plan.key)
        transfer = FeedTransfer(plan, self._fetcher, self._store, self._slots, check, turns)
        if shared:
            self._running[plan.key] = transfer
        task = asyncio.create_task(self._run(transfer), name=f"transfer from {plan.target.place}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return transfer

    async def _run(self, transfer: FeedTransfer) -> None:
        target, key, asked_at = transfer.plan.target, transfer.plan.key, self._clock.time()
        try:
            outcome = await transfer.run()
        except NotFoundError:
            self._cooldowns.succeeded(target.server, key, asked_at)
            self._missing.add(key, MISSING_TTL)
        except HeldBackError:
            pass
        except OriginError as error:
            if transfer.is_collapsed and self._cooldowns.check(target.server, key) is not None:
                return  # the process that has asked has noted it for all
            delay = self._cooldowns.failed(target.server, key, error.failure, str(error), error.retry_after)
            logger.warning("%s does not deliver (%s); next try in %.0f s.", target.place, error, delay)
        else:
            self._cooldowns.succeeded(target.server, key, asked_at)
            self._missing.discard(key)
            self._note_shareable(transfer.plan, outcome)
        finally:
            if self._running.get(key) is transfer:
                del self._running[key]

    def _note_shareable(self, plan: Plan, outcome: FetchOutcome) -> None:
        if outcome.shareable:
            self._unshareable.discard(plan.key)
        elif outcome.status != 304 and not sharing_rules.wants_no_store(plan.request):
            self._unshareable.add(plan.key, UNSHAREABLE_TTL)


def _conditions(headers: Headers) -> dict[str, str]:
    """A client's own validators, for a response that is fetched for it alone."""
    names = ("If-None-Match", "If-Modified-Since")
    return {name: headers[name] for name in names if headers.get(name, "").isprintable() and name in headers}
