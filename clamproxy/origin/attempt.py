"""One connection to the origin for a transfer: the part that blocks, in a separate thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clamproxy.cache.partial import BusyError, PartialFile, Validators
from clamproxy.config.units import GIB, MIB
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.verification import InvalidObject, check_beginning
from clamproxy.messages import Requester
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.errors import OriginError, RangeError
from clamproxy.origin.response import OriginResponse
from clamproxy.origin.scope import CancelScope
from clamproxy.origin.upstream import Upstream

LONGEST_MAGIC = 32
"""How many bytes it takes to tell a patch or a signature from an error page."""

LARGEST = {Kind.CVD: GIB, Kind.CLD: GIB, Kind.CDIFF: 128 * MIB, Kind.CVD_SIGN: MIB, Kind.CDIFF_SIGN: MIB}
"""The size in bytes beyond which no file is accepted, because a response without end must not fill the disk.
ClamAV's largest file is a sixth of it (main.cvd: 170 MB)."""


@dataclass(slots=True)
class Arrival:
    """What a transfer has so far. The attempt changes it; readers look at it."""

    object_id: ObjectId
    """What is expected; when the header of a whole CVD arrives, it may turn out to be another version."""
    oldest: int
    """The oldest version of a whole CVD that is of any use."""
    partial: PartialFile
    followed: bool = False
    """Whether there may be readers; from then on, what has arrived must not change."""

    ray: str = ""
    """The CDN's ID of the request that brought the file, for the log."""
    shared_etag: str | None = None
    """The ETag of the object in the bucket that some of it came from; None if all came from the origin."""

    @property
    def validators(self) -> Validators:
        """What the origin said about the file."""
        return self.partial.validators or Validators(None, None, None)

    @property
    def header(self) -> CvdHeader | None:
        """The header of a CVD or CLD, as soon as it has arrived."""
        if self.object_id.kind not in (Kind.CVD, Kind.CLD) or self.partial.have < HEADER_SIZE:
            return None
        try:
            return CvdHeader.parse(self.partial.read_beginning(HEADER_SIZE))
        except InvalidObject:  # damaged by a power failure; verification would find it
            return None


def turn_to(arrival: Arrival, object_id: ObjectId) -> None:
    """Expect another version of a CVD, of which readers have nothing yet. Quick.

    Raises:
        OriginError: that version is being fetched already.
    """
    if object_id == arrival.object_id:
        return
    try:
        partial = PartialFile.claim(arrival.partial.path.parent, object_id)
    except BusyError as error:
        reason = f"{object_id.file_name} is being fetched already"
        raise OriginError(FailureKind.CHANGED, reason) from error
    reason = f"version {object_id.version} is fetched instead"
    arrival.partial.leave(TransferEnding(reason, version=object_id.version).to_json())
    arrival.partial.discard()
    arrival.partial.release()
    arrival.object_id, arrival.partial = object_id, partial


class Attempt:
    """Fetches the rest of an arrival over one connection.

    Args:
        arrival: what is here, and where the rest goes.
        requester: on whose behalf.
        progress: called from the thread after bytes have arrived.
    """

    def __init__(
        self, upstream: Upstream, arrival: Arrival, requester: Requester, progress: Callable[[], None]
    ) -> None:
        self.begun = False
        """Whether the origin has responded."""
        self.received = 0
        """How many bytes of body have come over this connection, wanted or not."""
        self._upstream = upstream
        self._arrival = arrival
        self._requester = requester
        self._progress = progress
        self._scope = CancelScope()

    def run(self) -> None:
        """Fetch until the file is complete.

        Raises:
            NotFoundError: see `Upstream.get`.
            RangeError: see `Upstream.get`.
            OriginError: see `Upstream.get`.
            OSError, NoRoomError: the file can't be written, or there is no room for the rest of it.
        """
        partial = self._arrival.partial
        wanted: dict[str, str] = {}
        if partial.resumable:
            partial.require_room()  # or else the origin would be asked in vain, again and again
            wanted = {"Range": f"bytes={partial.have}-", "If-Range": self._arrival.validators.if_range or ""}
        path = self._arrival.object_id.upstream_path
        with self._upstream.get(path, self._requester, wanted, self._scope) as answer:
            self.begun = True
            self._arrival.ray = answer.ray
            if answer.partial:
                self._check_continuation(answer)
                self._receive(answer, 0)
            else:
                self._receive_whole(answer)

    @property
    def held_back(self) -> float:
        """Seconds for which the gateway itself didn't read, to keep to `upstream.rate_limit`."""
        return self._scope.held_back

    def abandon(self) -> None:
        """Write nothing more, and end whatever blocks. Any thread; idempotent."""
        self._scope.cancel()

    def _check_continuation(self, answer: OriginResponse) -> None:
        """Refuse a 206 that doesn't continue the very file that is partly here."""
        partial, known = self._arrival.partial, self._arrival.validators
        same = answer.etag is None or known.etag is None or answer.etag == known.etag
        if not partial.resumable or answer.start != partial.have or answer.size != known.size or not same:
            raise RangeError("the answer does not continue the partial file")

    def _receive_whole(self, answer: OriginResponse) -> None:
        """Receive a 200: the file from its beginning, whether or not that was asked for."""
        chunks = answer.chunks()
        beginning = bytearray()
        needed = HEADER_SIZE if self._arrival.object_id.kind is Kind.CVD else LONGEST_MAGIC
        while len(beginning) < needed and (chunk := next(chunks, b"")):
            beginning += chunk
        self.received = len(beginning)
        self._admit(bytes(beginning), answer)
        validators = Validators(answer.size, answer.etag, answer.last_modified)
        skip = self._restart_or_skip(validators, bytes(beginning[:HEADER_SIZE]))
        self._append(bytes(beginning[skip:]))
        self._receive(answer, max(0, skip - len(beginning)))

    def _admit(self, beginning: bytes, answer: OriginResponse) -> None:
        """Look at the first bytes, because error pages may come with status 200.

        Source: docs/protocol.md, trap 19.
        """
        arrival = self._arrival
        # An empty cdiff is the vendor's signal, but only if it is certain that it is complete
        # (RFC 9112 8). If only the end of the connection ends the body, the content may have been lost.
        if not beginning and answer.size != 0 and not answer.is_chunked:
            raise OriginError(FailureKind.BAD_CONTENT, f"an empty answer without a length{answer.ray}")
        try:
            check_beginning(arrival.object_id.kind, beginning)
            version = CvdHeader.parse(beginning).version if arrival.object_id.kind is Kind.CVD else None
        except InvalidObject as error:
            raise OriginError(FailureKind.BAD_CONTENT, f"{error}{answer.ray}") from error
        if version is not None and version != arrival.object_id.version:
            self._turn_to(version, answer)

    def _turn_to(self, version: int, answer: OriginResponse) -> None:
        """Switch to the version that the origin sends instead of the one that its header probe announced."""
        arrival = self._arrival
        if version < arrival.oldest:
            reason = f"the origin sends version {version}, older than announced{answer.ray}"
            raise OriginError(FailureKind.BAD_CONTENT, reason)
        if arrival.followed:
            raise RangeError(f"the origin now has version {version}")
        with self._scope.unless_cancelled():
            turn_to(arrival, ObjectId(arrival.object_id.database, version, Kind.CVD))

    def _restart_or_skip(self, validators: Validators, beginning: bytes) -> int:
        """Prepare for a file that comes from its beginning; returns how many bytes are here already."""
        partial, known = self._arrival.partial, self._arrival.validators
        same_tags = validators == known and (known.etag or known.last_modified) is not None
        # A CVD's header holds the digest of all the rest: with the same header and size, it is the same file.
        same_header = self._arrival.header is not None and self._arrival.header.raw == beginning
        if partial.have and validators.size == known.size and (same_tags or same_header):
            return partial.have
        if self._arrival.followed:
            raise RangeError("the file changed at the origin")
        with self._scope.unless_cancelled():
            self._check_size(validators.size or 0)
            partial.begin(validators)
        return 0

    def _receive(self, answer: OriginResponse, skip: int) -> None:
        for chunk in answer.chunks():
            self.received += len(chunk)
            self._append(chunk[skip:])
            skip = max(0, skip - len(chunk))
        with self._scope.unless_cancelled():
            self._arrival.partial.end()
        self._progress()

    def _append(self, data: bytes) -> None:
        with self._scope.unless_cancelled():
            self._check_size(self._arrival.partial.have + len(data))
            self._arrival.partial.append(data)
            if self._arrival.object_id.kind is Kind.CVD:
                self._arrival.partial.digest_more()
        self._progress()

    def _check_size(self, size: int) -> None:
        largest = LARGEST[self._arrival.object_id.kind]
        if size > largest:
            self._arrival.partial.begin(Validators(None, None, None))
            raise OriginError(FailureKind.BAD_CONTENT, f"more than {largest} bytes")
