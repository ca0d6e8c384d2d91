"""The newest CVD of each database, which nearly every request is about."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from clamproxy.cache.index import Index
from clamproxy.cache.published import Metadata, PublishedFile
from clamproxy.cache.rows import OBJECT_PREFIX, IndexRow
from clamproxy.objects import Kind, ObjectId

type _Mark = tuple[int, int, int]
"""What tells whether a file has changed since: its inode, length and time of change."""


@dataclass(slots=True)
class _Cvd:
    object_id: ObjectId
    row: IndexRow | None
    path: str = ""
    mark: _Mark | None = None
    """That of its file when it was last opened."""
    metadata: Metadata | None = None


class NewestCvds:
    """The newest CVD of each database, in step with the index and the files. Thread-safe."""

    def __init__(self, index: Index, open_object: Callable[[ObjectId], PublishedFile | None]) -> None:
        """Read nothing yet.

        Args:
            index: says which CVDs there are.
            open_object: opens one, if its file is there and can be read.
        """
        self._index = index
        self._open_object = open_object
        self._listed: tuple[int, dict[str, list[_Cvd]]] = (-1, {})

    def open(self, database: str) -> PublishedFile | None:
        """The newest one of a database for reading, or None. Quick."""
        for cvd in self._list().get(database, ()):
            if (published := self._open(cvd)) is not None:
                return published
        return None

    def known(self, database: str) -> tuple[ObjectId, Metadata] | None:
        """The same without its content. Quicker: for a file that was opened before, one stat() is enough."""
        for cvd in self._list().get(database, ()):
            if cvd.metadata is not None and cvd.mark == _mark_of(cvd.path):
                return cvd.object_id, cvd.metadata
            if (published := self._open(cvd)) is not None:
                with published:
                    return cvd.object_id, published.metadata
        return None

    def _open(self, cvd: _Cvd) -> PublishedFile | None:
        published = self._open_object(cvd.object_id)
        if published is not None:
            cvd.path, cvd.metadata = published.path, published.metadata
            cvd.mark = _mark_of(published.fileno())
        return published

    def _list(self) -> dict[str, list[_Cvd]]:
        """The CVDs of each database, the newest first."""
        generation, listed = self._listed
        if generation != (now := self._index.generation()):
            before = {cvd.object_id: cvd for cvds in listed.values() for cvd in cvds}
            listed = {}
            for key in self._index.keys(OBJECT_PREFIX, f".{Kind.CVD}"):
                with suppress(ValueError):
                    object_id, row = ObjectId.parse(key.removeprefix(OBJECT_PREFIX)), self._index.get(key)
                    known = before.get(object_id)
                    if known is None or known.row != row:
                        known = _Cvd(object_id, row)
                    listed.setdefault(object_id.database, []).append(known)
            for cvds in listed.values():
                cvds.sort(key=lambda cvd: cvd.object_id.version, reverse=True)
            self._listed = now, listed
        return listed


def _mark_of(file: str | int) -> _Mark | None:
    try:
        status = os.stat(file)  # noqa: PTH116 -- a descriptor, too, and ten times quicker than a Path
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_ctime_ns
