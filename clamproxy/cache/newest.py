"""The newest CVD of each database, which nearly every request is about."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clamproxy.cache.index import Index
from clamproxy.cache.published import Mark, Metadata, PublishedFile, mark_of
from clamproxy.cache.rows import OBJECT_PREFIX, IndexRow
from clamproxy.objects import Kind, ObjectId


@dataclass(slots=True)
class _Cvd:
    object_id: ObjectId
    row: IndexRow
    path: str
    metadata: Metadata
    refused: Mark | None = None
    """The mark of its file when it couldn't be opened."""


class NewestCvds:
    """The newest CVD of each database, in step with the index and the files. Thread-safe.

    Args:
        index: says which CVDs there are.
        path_of: returns the path of a CVD's file.
        open_object: opens an object, if its file is there and can be read.
    """

    def __init__(
        self,
        index: Index,
        path_of: Callable[[ObjectId, IndexRow], Path],
        open_object: Callable[[ObjectId], PublishedFile | None],
    ) -> None:
        self._index = index
        self._path_of = path_of
        self._open_object = open_object
        self._listed: tuple[int, dict[str, list[_Cvd]]] = (-1, {})

    def open(self, database: str, ceiling: int | None = None) -> PublishedFile | None:
        """Open the newest CVD of a database; None if there is none. Quick."""
        for cvd in self._up_to(ceiling, database):
            if (published := self._open_object(cvd.object_id)) is not None:
                return published
            cvd.refused = mark_of(cvd.path)
        return None

    def known(self, database: str, ceiling: int | None = None) -> tuple[ObjectId, Metadata] | None:
        """The newest CVD by the index alone. Opens nothing: one stat() tells whether the file is there."""
        for cvd in self._up_to(ceiling, database):
            mark = mark_of(cvd.path)
            if mark is not None and mark[0] == cvd.metadata.size and mark != cvd.refused:
                return cvd.object_id, cvd.metadata
        return None

    def _up_to(self, ceiling: int | None, database: str) -> list[_Cvd]:
        cvds = self._list().get(database, [])
        return cvds if ceiling is None else [cvd for cvd in cvds if cvd.object_id.version <= ceiling]

    def _list(self) -> dict[str, list[_Cvd]]:
        """The CVDs of each database, newest first."""
        generation, listed = self._listed
        if generation != (now := self._index.generation()):
            before = {cvd.object_id: cvd for cvds in listed.values() for cvd in cvds}
            listed = {}
            for key in self._index.keys(OBJECT_PREFIX, f".{Kind.CVD}"):
                with suppress(ValueError):
                    object_id = ObjectId.parse(key.removeprefix(OBJECT_PREFIX))
                    cvd = self._cvd(object_id, self._index.get(key), before.get(object_id))
                    if cvd is not None:
                        listed.setdefault(object_id.database, []).append(cvd)
            for cvds in listed.values():
                cvds.sort(key=lambda cvd: cvd.object_id.version, reverse=True)
            self._listed = now, listed
        return listed

    def _cvd(self, object_id: ObjectId, row: IndexRow | None, before: _Cvd | None) -> _Cvd | None:
        if before is not None and before.row == row:
            return before
        metadata = None if row is None else Metadata.from_json(row.text)
        if row is None or metadata is None:
            return None
        return _Cvd(object_id, row, str(self._path_of(object_id, row)), metadata)
