"""Responses: how an object, its header or a failure becomes a response."""

from __future__ import annotations

import math
import time
from functools import lru_cache, partial

from werkzeug.datastructures import Headers

from clamproxy.cache.published import Metadata
from clamproxy.downloads import FileSource
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.messages import FORBIDDEN_BEYOND, HELD_BACK, Request, Response, Result, Source
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import LONGEST_RETRY_AFTER, FailureKind
from clamproxy.origin.errors import OriginError, TransferError
from clamproxy.origin.header_probes import ProbedHeader
from clamproxy.origin.transfers import CooldownError
from clamproxy.policy import is_not_modified, shown_last_modified
from clamproxy.ranges import Representation, Selection, is_precondition_met, select
from clamproxy.responses import content, describe, plain
from clamproxy.storage.condition import is_out_of_descriptors, trouble_of

_IMMUTABLE = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"
_ENDS_EARLY = (FailureKind.FORBIDDEN, FailureKind.PROXY_AUTHENTICATION)
"""Cool-downs during which the file may come all the same: for another client, or with the right password."""
SOON = 60.0
"""Seconds after which it is worthwhile to ask this gateway again, then. It spares the origin itself."""


def take_the_whole(cdiff: ObjectId) -> Response:
    """An empty cdiff, which is how the vendor tells freshclam to fetch the whole CVD.

    Source: docs/protocol.md, trap 15.

    Here the gateway itself decides so, for this moment only. No cache on the way to the client may keep
    it.
    """
    response = Response(200, Result.STALE, version=cdiff.version)
    response.headers["Content-Type"] = "application/octet-stream"
    response.headers["Content-Length"] = "0"
    response.headers["Cache-Control"] = "no-store"
    return response


def held_back(version: int) -> Response:
    """A 404 for a version that a hold or a delay hides from this client, for this moment only."""
    response = plain(404, Result.NEGATIVE, "no such version yet", version)
    response.reason = HELD_BACK
    return response


def unavailable(error: Exception) -> Response:
    """A 503, after which freshclam tries again: the origin can't be asked or doesn't deliver, for example.

    A 403 or 429 is never passed on, because it would stop the client for hours (trap 20).
    """
    response = plain(503, Result.ERROR, explain(error))
    wait, failure = None, None
    if isinstance(error, CooldownError):
        wait, failure = error.cooldown.until - time.time(), error.failure
    elif isinstance(error, TransferError | OriginError):
        wait, failure = error.retry_after, error.failure
    longest = SOON if failure in _ENDS_EARLY else LONGEST_RETRY_AFTER
    response.headers["Retry-After"] = str(max(1, math.ceil(min(wait or 1, longest))))
    if failure is FailureKind.FORBIDDEN:
        response.headers["Cache-Status"] = FORBIDDEN_BEYOND
    return response


def from_object(
    request: Request,
    object_id: ObjectId,
    metadata: Metadata,
    source: Source,
    result: Result,
    *,
    is_newest: bool = True,
) -> Response:
    """Respond with an object, or with the part of it that was asked for.

    Args:
        source: the object's bytes; closed here unless they become the body of the response.
        result: how the object got here.
        is_newest: whether no newer version is advertised.
    """
    try:
        return _from_source(request, object_id, metadata, source, result, is_newest=is_newest)
    except BaseException:
        source.close()
        raise


def _from_source(
    request: Request,
    object_id: ObjectId,
    metadata: Metadata,
    source: Source,
    result: Result,
    *,
    is_newest: bool,
) -> Response:
    selection, response = _selected(request, object_id, metadata, result, is_newest=is_newest)
    wanted = selection.length if request.method == "GET" else 0
    is_arriving = isinstance(source, FileSource) and source.is_arriving
    if isinstance(source, FileSource):
        source.last = selection.start + wanted
    response.body = content(source, selection.start, wanted, is_arriving=is_arriving)
    return response


def from_metadata(
    request: Request, object_id: ObjectId, metadata: Metadata, result: Result, *, is_newest: bool = True
) -> Response | None:
    """Respond like `from_object`, but without opening the object; None if more than its header is needed."""
    selection, response = _selected(request, object_id, metadata, result, is_newest=is_newest)
    end = selection.start + selection.length
    if request.method == "GET" and selection.length:
        if metadata.header is None or end > HEADER_SIZE:
            return None
        response.body = metadata.header.encode("ascii")[selection.start : end]
    return response


def _selected(
    request: Request, object_id: ObjectId, metadata: Metadata, result: Result, *, is_newest: bool
) -> tuple[Selection, Response]:
    """Which bytes of an object are wanted, and the response without its body."""
    header = _parsed(metadata.header) if metadata.header else None
    last_modified = _last_modified(metadata.last_modified, header)
    representation = Representation(metadata.size, object_id.file_name, last_modified)
    selection = _select(request, representation, header, is_newest=is_newest)
    return selection, _response(selection, representation, result, object_id)


@lru_cache(64)
def _parsed(header: str) -> CvdHeader:
    return CvdHeader.parse(header.encode("ascii"))


def from_header(
    request: Request, object_id: ObjectId, head: ProbedHeader, result: Result, *, is_newest: bool
) -> Response | None:
    """Respond to a probe for the header of a CVD or CLD that isn't here; None for all other requests.

    The length of the file isn't known. Nor is its content: if the header was computed from patches, the
    origin's file begins differently. So there is no ETag. A header that the origin only claims gives no
    Last-Modified and never leads to a 304 either; the client compares the version in the header itself.
    """
    header = head.header if head.is_proven else None
    representation = Representation(None, None, _last_modified(None, header))
    selection = _select(request, representation, header, is_newest=is_newest)
    end = selection.start + selection.length
    if request.method == "GET" and (end > HEADER_SIZE or selection.status == 200):
        return None
    response = _response(selection, representation, result, object_id)
    if request.method == "GET":
        response.body = head.header.raw[selection.start : end]
    return response


def _response(
    selection: Selection, representation: Representation, result: Result, object_id: ObjectId
) -> Response:
    headers = Headers(representation.headers)
    is_mutable_url = object_id.kind in (Kind.CVD, Kind.CLD)
    headers["Cache-Control"] = _REVALIDATE if is_mutable_url else _IMMUTABLE
    if selection.status != 304:
        headers["Content-Type"] = "application/octet-stream"
    describe(headers, selection, representation.size)
    return Response(selection.status, result, headers, version=object_id.version)


def _last_modified(origin: float | None, header: CvdHeader | None) -> float | None:
    return origin if header is None else shown_last_modified(origin, header.stime)


def _select(
    request: Request, representation: Representation, header: CvdHeader | None, *, is_newest: bool
) -> Selection:
    if not is_precondition_met(request.headers, representation):
        return Selection(412)
    last_modified, condition = representation.last_modified, None
    if header is not None and last_modified is not None:
        condition = partial(
            is_not_modified, stime=header.stime, last_modified=last_modified, is_newest=is_newest
        )
    return select(request.headers, representation, condition, method=request.method)


def explain(error: Exception) -> str:
    """Say in words why the origin doesn't deliver, or what else is in the way for the moment."""
    if is_out_of_descriptors(error):
        return "the gateway has too many files open"
    if isinstance(error, OSError) and trouble_of(error) is not None:
        return "the cache can't be read"
    if isinstance(error, CooldownError):
        cooldown = error.cooldown
        return f"the origin is not asked until {time.ctime(cooldown.until)}: {cooldown.reason}"
    if isinstance(error, TimeoutError):
        return "the origin has not answered in time"
    return f"the origin does not deliver: {error}"
