"""Objects held in memory while the disk can't take them, and the partial files that they arrive in.

A cdiff or a signature is small. Rather than refusing it, or fetching it again for each client, the
gateway verifies it, serves it from memory, and publishes it when the disk can be written to again.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from clamproxy.cache.partial import PartialFile, Validators
from clamproxy.cache.published import Metadata, PublishedFile
from clamproxy.objects import Kind, ObjectId


def is_small(object_id: ObjectId) -> bool:
    """Whether such an object may be held in memory, as all but whole databases may."""
    return object_id.kind not in (Kind.CVD, Kind.CLD)


class UnnamedPartial(PartialFile):
    """A partial file without a name on the disk. It ends with its last reader."""

    is_unnamed = True

    @classmethod
    def create(cls, object_id: ObjectId) -> Self:
        descriptor = _memory_file(object_id.file_name)
        return cls(_path_of(descriptor), descriptor)

    def lock(self) -> bool:
        """Nobody else can have it."""
        return True

    def take(self) -> bool:
        return True

    def begin(self, validators: Validators) -> None:
        """Start over with what the origin sends now."""
        os.ftruncate(self.descriptor, 0)
        self.have = 0
        self.validators = validators

    def require_room(self) -> None:
        """It takes none on the disk."""

    def discard(self) -> None:
        """Do nothing: the file vanishes when it is closed."""

    def release(self) -> None:
        """Close the file, once; readers that duplicated the descriptor can go on."""
        self.close()


class HeldObjects:
    """Verified objects in memory, up to a limit. Thread-safe.

    Args:
        limit: in bytes; the oldest objects go first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: dict[ObjectId, tuple[int, Metadata]] = {}

    def take(self, object_id: ObjectId, path: Path, metadata: Metadata) -> bool:
        """Copy a file into memory; returns whether there is room for it.

        Raises:
            OSError: it can't be read.
        """
        if metadata.size > self._limit:
            return False
        descriptor = _memory_file(object_id.file_name)
        with path.open("rb") as source, open(descriptor, "wb", closefd=False) as copy:
            shutil.copyfileobj(source, copy)
        with self._lock:
            self._drop(object_id)
            self._held[object_id] = (descriptor, metadata)
            while sum(one.size for _, one in self._held.values()) > self._limit:
                self._drop(next(iter(self._held)))
        return True

    def open(self, object_id: ObjectId) -> PublishedFile | None:
        """Open a held object for reading; None if it isn't held. Quick."""
        with self._lock:
            if object_id not in self._held:
                return None
            descriptor, metadata = self._held[object_id]
            return PublishedFile(object_id, metadata, _path_of(descriptor).open("rb"))

    def metadata(self, object_id: ObjectId) -> Metadata | None:
        """The metadata of a held object; None if it isn't held. Quick."""
        _, metadata = self._held.get(object_id, (None, None))
        return metadata

    def drop(self, object_id: ObjectId) -> None:
        """Forget an object, if it is held. Readers can go on reading it."""
        with self._lock:
            self._drop(object_id)

    def __contains__(self, object_id: ObjectId) -> bool:
        return object_id in self._held

    def __iter__(self) -> Iterator[ObjectId]:
        return iter(list(self._held))

    def __len__(self) -> int:
        return len(self._held)

    def close(self) -> None:
        for object_id in self:
            self.drop(object_id)

    def _drop(self, object_id: ObjectId) -> None:
        descriptor, _ = self._held.pop(object_id, (None, None))
        if descriptor is not None:
            os.close(descriptor)


def _memory_file(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")
