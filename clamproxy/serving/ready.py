"""Ready answers: responses with small files, kept in memory to be sent again.

When a fleet wakes, thousands of machines ask for the same patch and its signature within a second. A
ready answer costs one look at the index, which tells whether the cache still holds the same object. Once
this or another process has dropped or replaced an object, it isn't answered from here any more.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass

from werkzeug.datastructures import Headers

from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.config.units import MIB
from clamproxy.messages import Request, Response, Result
from clamproxy.objects import ObjectId
from clamproxy.releases.signs import Signs

LIMIT = 32 * MIB
"""Bytes in all: some 90 patches and their signatures for each of five databases, far more than are requested
at the same time."""
_OVERHEAD = 1024
"""Approximate bytes that an answer uses besides its content."""
_CONDITIONS = frozenset(
    ("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range")
)


@dataclass(slots=True)
class _Ready:
    object_id: ObjectId
    sources: tuple[ObjectId, ...]
    """The object; for a signature, also the file that it signs."""
    known: tuple[Metadata | None, ...]
    """Their metadata when the answer was made."""
    headers: list[tuple[str, str]]
    body: bytes
    generation: int
    """The generation of the store in which that metadata was last seen."""
    response: Response | None = None
    """The response to all requests within the same second."""
    second: int = 0
    """That second in Unix time, which is the Date of the response."""

    @property
    def size(self) -> int:
        return len(self.body) + _OVERHEAD


class ReadyAnswers:
    """The answers that were requested last, up to a limit. Event loop only.

    Args:
        store: tells whether an object is still the same.
        signs: tells which signatures may be handed out without another look.
        limit: bytes; the least recently used answer is dropped first.
    """

    def __init__(self, store: Store, signs: Signs, limit: int = LIMIT) -> None:
        self._store = store
        self._signs = signs
        self._limit = limit
        self._size = 0
        self._answers: OrderedDict[str, _Ready] = OrderedDict()
        self._generation = -1
        """The generation of the store in which all answers were last looked at."""

    def find(self, request: Request) -> tuple[ObjectId, Response] | None:
        """The response to a request and the object in it; None if none is ready."""
        ready = self._answers.get(request.path)
        if ready is None or not _is_plain(request):
            return None
        if ready.generation != (generation := self._store.generation()):
            if self._store.metadata(*ready.sources) != ready.known:
                self._drop(request.path)
                return None
            ready.generation = generation
        self._answers.move_to_end(request.path)
        return ready.object_id, self._response(ready, request.method)

    def _response(self, ready: _Ready, method: str) -> Response:
        second = int(time.time())
        if method == "GET" and ready.response is not None and ready.second == second:
            return ready.response
        response = Response(200, Result.HIT, Headers(ready.headers), ready.body, ready.object_id.version)
        if method == "GET":
            ready.response, ready.second = response, second
        return response

    def keep(self, request: Request, object_id: ObjectId, response: Response) -> bool:
        """Keep the response to a request, if it can be given to others.

        Args:
            object_id: the requested patch or signature.
            response: from the cache, with nothing in it yet that belongs to this request only.

        Returns:
            False if these aren't the bytes that were published: the file has been damaged since.
        """
        body, path = response.body, object_id.upstream_path
        if request.method != "GET" or not _is_plain(request) or not isinstance(body, bytes):
            return True
        is_signature = object_id.kind.is_signature
        sources = (object_id, object_id.signed) if is_signature else (object_id,)
        generation, known = self._store.generation(), self._store.metadata(*sources)
        # An object held in memory, while the disk accepts nothing, has no digest and no long life.
        if known[0] is None or known[0].sha256 is None:
            return True
        if hashlib.sha256(body).hexdigest() != known[0].sha256:
            return False
        if is_signature and not self._signs.is_proven(object_id):
            return True  # it must be compared with its file as soon as the file is here
        self._drop(path)
        self._drop_gone(generation)
        self._answers[path] = ready = _Ready(
            object_id, sources, known, list(response.headers), body, generation
        )
        self._size += ready.size
        while self._size > self._limit:
            self._drop(next(iter(self._answers)))
        return True

    def _drop_gone(self, generation: int) -> None:
        """Make room where the cache has dropped the object: nobody gets its answer any more."""
        if generation != self._generation:
            self._generation = generation
            for path in [one for one, ready in self._answers.items() if not self._store.has(ready.object_id)]:
                self._drop(path)

    def _drop(self, path: str) -> None:
        ready = self._answers.pop(path, None)
        if ready is not None:
            self._size -= ready.size


def _is_plain(request: Request) -> bool:
    """Whether the whole file is requested, whatever the client already has."""
    return _CONDITIONS.isdisjoint(request.fields)
