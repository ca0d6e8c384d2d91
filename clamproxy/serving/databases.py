"""Whole databases: ``/<db>.cvd`` and ``/<db>.cld``, from the cache, by patches or from the origin."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from functools import partial

from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.config.settings import Delta
from clamproxy.dates import parse_http_date
from clamproxy.downloads import FileSource
from clamproxy.formats.header import CvdHeader
from clamproxy.messages import Request, Response, Result
from clamproxy.objects import Kind, Latest, ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError, TransferError
from clamproxy.origin.header_probes import HeaderProbes, ProbedHeader
from clamproxy.origin.transfers import ORIGIN_TROUBLE, CooldownError
from clamproxy.policy import Choice, choose, shown_last_modified
from clamproxy.releases.builder import BuildError, CldBuilder
from clamproxy.releases.ceilings import Ceilings
from clamproxy.releases.lineage import ProvenLineage
from clamproxy.releases.prefetcher import Prefetcher
from clamproxy.responses import plain
from clamproxy.serving.database_responses import explain, from_header, from_metadata, from_object, held_back
from clamproxy.serving.delivery import Delivery
from clamproxy.serving.first_runs import FirstRuns
from clamproxy.serving.resolution import CurrentVersions, Patience, Resolution

PATIENCE_WITH_BUILD = 50.0
"""How many seconds a client waits for a CLD to be built; freshclam's ReceiveTimeout is 60 s."""
_BEFORE_SIGNATURES = re.compile(r"ClamAV/(0\.|1\.[0-4](?![0-9]))")
"""User-Agents of the versions without support for external signatures."""


class WholeDatabases:
    """Answers requests for whole databases and for their headers."""

    def __init__(
        self,
        limits: Delta,
        store: Store,
        heads: HeaderProbes,
        current: CurrentVersions,
        delivery: Delivery,
        prefetcher: Prefetcher,
        builder: CldBuilder,
        ceilings: Ceilings,
    ) -> None:
        self._limits = limits
        self._ceilings = ceilings
        self._first_runs = FirstRuns(store.directory / "first-runs")
        self._store = store
        self._heads = heads
        self._current = current
        self._delivery = delivery
        self._prefetcher = prefetcher
        self._builder = builder

    async def answer_cvd(
        self, request: Request, latest: Latest, *, patience: Patience | None = None
    ) -> Response:
        """Respond to a request for a CVD.

        Args:
            patience: what is left of the client's patience on a second try, after a release interrupted
                the first.

        Raises:
            OriginTrouble: there is nothing to serve, and the origin doesn't deliver.
        """
        ceiling = self._ceilings.of(latest.database, request.address)
        if (response := self._answer_exactly(request, latest, ceiling)) is not None:
            return response
        with_patches = self._limits.enabled and latest.demanded is None
        finding = await self._current.find_out(
            latest,
            request.requester,
            with_patches=with_patches,
            needs_patches=_is_for_new_client(request),
            patience=patience,
            ceiling=ceiling,
        )
        choice = choose(finding.known)
        if choice is not None and choice.by_patches and finding.proven is not None:
            whole = await self._find_signed(request, latest, finding, finding.proven)
            if whole is None and (
                response := self._answer_by_patches(request, latest, finding, finding.proven, choice)
            ):
                return _with_reason(response, finding)
            shown = choice.version
            finding = whole or await self._find_whole(request, latest, finding)
            choice = choose(finding.known)
            if finding.known.hidden and _may_go_back(request) and (choice is None or choice.version < shown):
                reason = f"no whole file of version {shown} is cached, and newer ones are held back"
                raise OriginError(FailureKind.LOCAL, reason)
        if finding.known.hidden and (choice.version if choice else 0) < (latest.demanded or 0):
            # cvdupdate would put an older CVD in place of a newer one that it has, or fetch it at each check.
            return held_back(latest.demanded or 0)
        if choice is None:
            raise finding.trouble or OriginError(FailureKind.UNREACHABLE, _why_none(finding))
        if choice.is_cached:
            response = self._answer_from_cache(request, latest, finding, choice)
        else:
            is_second = patience is not None
            response = await self._answer_from_origin(request, latest, finding, choice, again=is_second)
        given = response.version or 0
        if _is_for_new_client(request) and finding.known.may_be_behind(given):
            self._first_runs.note(request, ObjectId(latest.database, given, Kind.CVD))
        return response

    async def _find_whole(self, request: Request, latest: Latest, finding: Resolution) -> Resolution:
        """Find out what is current if patches don't count; what they lead to is kept."""
        whole = await self._current.find_out(
            latest,
            request.requester,
            with_patches=False,
            patience=finding.patience,
            ceiling=finding.ceiling,
        )
        return replace(whole, proven=finding.proven)

    async def _find_signed(
        self, request: Request, latest: Latest, finding: Resolution, proven: ProvenLineage
    ) -> Resolution | None:
        """Find a newer CVD with an external signature, for a client that may refuse a base without one.

        None if the client can start from the base, or if no other CVD would serve it better.
        """
        if not (_is_for_new_client(request) and _wants_signatures(request)):
            return None
        base = ObjectId(latest.database, proven.lineage.base, Kind.CVD)
        if not await self._lacks_signature(base, request, finding):
            return None
        whole = await self._find_whole(request, latest, finding)
        choice = choose(whole.known)
        if choice is None or choice.is_cached:
            return None
        newer = ObjectId(latest.database, choice.version, Kind.CVD)
        return None if await self._lacks_signature(newer, request, whole) else whole

    async def _lacks_signature(self, cvd: ObjectId, request: Request, finding: Resolution) -> bool:
        """Whether a CVD is known to have no valid signature. Fetches the signature if there is one.

        The client asks for it next in any case.
        """
        published = await self._delivery.open(cvd.signature)
        try:
            if published is None:
                until = finding.patience.until(self._delivery.asked_at(cvd.signature))
                delivered = await self._delivery.fetch(cvd.signature, request.requester, until)
                delivered[2].close()
            else:
                published.close()
        except NotFoundError:
            return True
        except (CooldownError, TransferError) as error:
            return error.failure is FailureKind.BAD_CONTENT
        except ORIGIN_TROUBLE:
            return False
        return False

    def _answer_exactly(self, request: Request, latest: Latest, ceiling: int | None) -> Response | None:
        """The exact version that cvdupdate asks for, if it is cached (docs/protocol.md 9.5)."""
        if latest.demanded is None or (ceiling is not None and latest.demanded > ceiling):
            return None
        object_id = ObjectId(latest.database, latest.demanded, Kind.CVD)
        published = self._store.open(object_id)
        if published is None:
            return None
        return from_object(request, object_id, published.metadata, published, Result.HIT)

    def _answer_by_patches(
        self, request: Request, latest: Latest, finding: Resolution, proven: ProvenLineage, choice: Choice
    ) -> Response | None:
        """Respond with what the patches lead to; None if only the whole file of that version will do."""
        result = _result_of(choice)
        if _is_for_new_client(request):
            is_last = proven.lineage.base == self._store.newest_version(latest.database)
            if is_last and not proven.lineage.is_within(self._limits):
                self._prefetcher.renew_soon(latest.database, request.requester)
            base = self._store.open_newest(latest.database, finding.ceiling)
            if base is None:
                return None
            return from_object(request, base.object_id, base.metadata, base, result, is_newest=False)
        since = parse_http_date(request.headers.get("If-Modified-Since"))
        # For a time between build and upload, only the origin's own header can tell; see `is_not_modified`.
        if since is not None and since > proven.header.stime:
            return None
        object_id = ObjectId(latest.database, choice.version, Kind.CVD)
        head = ProbedHeader(proven.header, is_proven=True)
        is_newest = _is_newest(finding, choice)
        return from_header(request, object_id, head, result, is_newest=is_newest)

    def _answer_from_cache(
        self, request: Request, latest: Latest, finding: Resolution, choice: Choice
    ) -> Response:
        result = Result.STALE if choice.stale or finding.trouble else Result.HIT
        known = finding.known
        if again := self._answer_again(request, latest, finding, result):
            return again
        if (found := self._store.newest(latest.database, finding.ceiling)) is not None:
            is_newest = known.is_newest(found[0].version)
            if (response := from_metadata(request, *found, result, is_newest=is_newest)) is not None:
                return _with_reason(response, finding)
        published = self._store.open_newest(latest.database, finding.ceiling)
        if published is None:
            raise finding.trouble or TransferError(FailureKind.LOCAL, "dropped from the cache just now")
        object_id, is_newest = published.object_id, known.is_newest(published.object_id.version)
        response = from_object(request, object_id, published.metadata, published, result, is_newest=is_newest)
        return _with_reason(response, finding)

    def _answer_again(
        self, request: Request, latest: Latest, finding: Resolution, result: Result
    ) -> Response | None:
        """The whole CVD, without regard to the client's condition; see `first_runs`."""
        found, proven = self._store.newest(latest.database, finding.ceiling), finding.proven
        is_whole = request.method == "GET" and "Range" not in request.headers
        if found is None or not (is_whole and is_freshclam(request) and _has(request, found[1])):
            return None
        version, reached = found[0].version, proven.lineage.reached if proven is not None else 0
        if reached > version or not finding.known.may_be_behind(version):
            return None
        if not self._first_runs.take(request, found[0]) or not (published := self._store.open(found[0])):
            return None
        plain_request = Request(request.method, request.path, ())
        response = from_object(plain_request, found[0], published.metadata, published, result)
        # libcurl would compare it with the condition, and throw the content away (trap 7).
        del response.headers["Last-Modified"]
        return _with_reason(response, finding)

    async def _answer_from_origin(
        self, request: Request, latest: Latest, finding: Resolution, choice: Choice, *, again: bool
    ) -> Response:
        object_id = ObjectId(latest.database, choice.version, Kind.CVD)
        is_newest = finding.known.is_newest(choice.version)
        head = self._heads.get(latest.database)
        if head is not None and not _is_above(head.header.version, finding):
            result = Result.MISS if finding.was_origin_asked else Result.HIT
            if response := from_header(request, object_id, head, result, is_newest=is_newest):
                return response
        try:
            oldest = max((finding.known.cached or 0) + 1, finding.known.proven)
            until = finding.patience.until(self._delivery.asked_at(object_id))
            fetch = partial(self._delivery.fetch, object_id, request.requester, until, oldest)
            delivered = await fetch()
            if _is_above(delivered[0].version, finding):
                # There was a release just now. It stays in the cache, but isn't for this client.
                delivered[2].close()
                raise TransferError(FailureKind.CHANGED, f"{delivered[0].file_name} came instead")
            # An edge of the CDN may have sent an older version than its head announced.
            is_newest = finding.known.is_newest(delivered[0].version)
            response = from_object(request, *delivered, is_newest=is_newest)
            if response.status == 304 and isinstance(delivered[2], FileSource):
                # The 304 relies on the header of a file that is still arriving and not yet verified.
                response = from_object(request, *await fetch(verified=True), is_newest=is_newest)
            return response
        except ORIGIN_TROUBLE as error:
            if isinstance(error, TransferError) and error.failure is FailureKind.CHANGED and not again:
                # There was a release just now: find out again what is current.
                return await self.answer_cvd(request, latest, patience=finding.patience)
            return self._answer_from_cache(request, latest, replace(finding, trouble=error), choice)

    async def answer_cld(self, request: Request, latest: Latest) -> Response:
        """Respond to a request for a CLD: 404 unless patches lead further than the cached CVD.

        After a 404, the client asks for the CVD (trap 22).
        """
        nothing = plain(404, Result.NEGATIVE, "no such file")
        self._builder.note_demand(latest.database)
        ceiling = self._ceilings.of(latest.database, request.address)
        await self._current.bring(latest.database, ceiling)
        if not self._limits.enabled or self._store.newest_version(latest.database, ceiling) is None:
            return nothing
        finding = await self._current.find_out(
            latest, request.requester, with_patches=True, needs_patches=True, ceiling=ceiling
        )
        choice, proven = choose(finding.known), finding.proven
        if choice is None:
            return nothing
        object_id = ObjectId(latest.database, choice.version, Kind.CLD)
        # The CLD may exist beside a CVD of the same version if the base was renewed after a client's probe.
        published = self._store.open(object_id)
        if published is None:
            if proven is None or not choice.by_patches or not self._builder.can_build(object_id):
                return nothing
            result = _result_of(choice)
            # A client that asks for the header asks for the whole file next, if that is newer than its own.
            self._builder.start(latest.database, proven)
            head = ProbedHeader(proven.header, is_proven=True)
            is_newest = _is_newest(finding, choice)
            if response := from_header(request, object_id, head, result, is_newest=is_newest):
                return _with_reason(response, finding)
            try:
                async with asyncio.timeout(PATIENCE_WITH_BUILD):
                    published = await self._builder.open(latest.database, proven)
            except BuildError:
                return nothing
            except TimeoutError:
                return plain(503, Result.ERROR, f"{object_id.file_name} is still being built")
        is_newest = _is_newest(finding, choice)
        response = from_object(
            request, object_id, published.metadata, published, _result_of(choice), is_newest=is_newest
        )
        return _with_reason(response, finding)


def _with_reason(response: Response, finding: Resolution) -> Response:
    """Add to a stale response why something older is served, for the log."""
    if response.result is Result.STALE:
        newer = f"{finding.known.newest} is advertised, but the origin has not delivered it yet"
        response.reason = explain(finding.trouble) if finding.trouble else newer
    return response


def _result_of(choice: Choice) -> Result:
    return Result.STALE if choice.stale else Result.HIT


def _is_newest(finding: Resolution, choice: Choice) -> bool:
    """Whether no client can have a newer version than the chosen one."""
    return not (choice.stale or finding.known.hidden)


def _is_above(version: int, finding: Resolution) -> bool:
    return finding.ceiling is not None and version > finding.ceiling


def _why_none(finding: Resolution) -> str:
    known = finding.known
    if known.hidden:
        return f"no version up to {finding.ceiling} is cached, and newer ones are held back"
    if known.seen and known.seen < known.proven:
        return f"the origin has only version {known.seen}, but version {known.proven} was here before"
    if known.proven:
        return f"version {known.proven} was here before, and is no longer cached"
    return "no version is known"


def is_freshclam(request: Request) -> bool:
    """Whether the request comes from freshclam itself, without another gateway in between."""
    return request.is_freshclams and not request.is_relayed


def _is_for_new_client(request: Request) -> bool:
    """Whether the client is a freshclam without this database, which will go on with the patches by itself.

    All others would keep the older version: programs other than freshclam, and gateways, which a header
    promised the advertised version. A client that sends If-Modified-Since already has some version and
    wants a whole file nevertheless.
    """
    headers = request.headers
    return (
        request.method == "GET"
        and "Range" not in headers
        and "If-Modified-Since" not in headers
        and "If-None-Match" not in headers
        and is_freshclam(request)
    )


def _has(request: Request, metadata: Metadata) -> bool:
    """Whether the client's condition says that it has just this CVD.

    Another machine behind the same address may have a newer one, which freshclam would replace.
    """
    since = parse_http_date(request.headers.get("If-Modified-Since"))
    if since is None or metadata.header is None:
        return False
    stime = CvdHeader.parse(metadata.header.encode("ascii")).stime
    return since in (stime, shown_last_modified(metadata.last_modified, stime))


def _may_go_back(request: Request) -> bool:
    """Whether the client takes any whole file that it gets, even one older than its own.

    freshclam and gateways go on from it with patches, and a condition prevents it.
    """
    return not request.is_freshclams and "If-Modified-Since" not in request.headers


def _wants_signatures(request: Request) -> bool:
    """Whether this freshclam asks for external signatures, and may refuse a CVD without one.

    ClamAV does so since 1.5; with FIPSCryptoHashLimits it accepts nothing else (docs/protocol.md 6). A client
    that doesn't give its version is treated as a newer one.
    """
    return _BEFORE_SIGNATURES.match(request.headers.get("User-Agent") or "") is None
