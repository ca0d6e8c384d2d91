"""Published objects: what the cache holds, open for reading."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Self

from clamproxy.files import link_or_copy, open_to_read
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.objects import ObjectId
from clamproxy.untrusted import parse_json

_LINKED_MODE = 0o444

type Mark = tuple[int, int, int]
"""Identifies a state of a file, to notice changes: its length, inode and time of change."""


def mark_of(file: int | str) -> Mark | None:
    """The mark of the regular file with this descriptor or name; None if there is none. Quick."""
    try:
        status = os.stat(file)  # noqa: PTH116 -- ten times quicker than a Path
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_ino, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known about a published object besides its bytes."""

    size: int
    fetched_at: float
    """When it was fetched, in Unix seconds."""
    last_modified: float | None = None
    """The origin's Last-Modified, in Unix seconds; None if it gave none."""
    header: str | None = None
    """The 512-byte header of a CVD."""
    sha256: str | None = None
    """SHA-256 of its bytes when they were verified; None if an earlier version of clamproxy published it."""

    @property
    def built_at(self) -> int | None:
        """When ClamAV built it, in Unix seconds; None except for CVDs and CLDs."""
        try:
            return CvdHeader.parse((self.header or "").encode("ascii")).stime or None
        except (InvalidObject, UnicodeEncodeError):
            return None

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @staticmethod
    @lru_cache(1024)
    def from_json(text: str) -> Metadata | None:
        """The inverse of `to_json`; None for anything else."""
        try:
            metadata = Metadata(**parse_json(text))
        except TypeError:
            return None
        return metadata if metadata._is_sound else None

    @property
    def _is_sound(self) -> bool:
        """Whether the values that were read back have the right types."""
        times = (self.fetched_at, 0 if self.last_modified is None else self.last_modified)
        texts = (self.header, self.sha256)
        return (
            type(self.size) is int
            and self.size >= 0
            and all(type(one) in (int, float) for one in times)
            and all(one is None or isinstance(one, str) for one in texts)
        )


def open_published(
    object_id: ObjectId, path: Path, text: str, distrusted: Callable[[ObjectId], object] = lambda _: None
) -> PublishedFile | None:
    """Open an object; None if there is no file, or one of another length. Quick.

    Args:
        object_id: the object.
        path: its file.
        text: its `Metadata`, as in the index.
        distrusted: see `PublishedFile`.

    Raises:
        OSError: there is a file, but it can't be read.
    """
    metadata = Metadata.from_json(text)
    try:
        file = open_to_read(path)
    except FileNotFoundError:
        return None
    if metadata is not None and os.fstat(file.fileno()).st_size == metadata.size:
        return PublishedFile(object_id, metadata, file, distrusted)
    file.close()
    return None


class PublishedFile:
    """A complete, verified object, open for reading: a `messages.Source`.

    Args:
        distrusted: is told the object if its file could not be read.
    """

    def __init__(
        self,
        object_id: ObjectId,
        metadata: Metadata,
        file: IO[bytes],
        distrusted: Callable[[ObjectId], object] = lambda _: None,
    ) -> None:
        self.object_id = object_id
        self.metadata = metadata
        self._file = file
        self._distrusted = distrusted

    @property
    def path(self) -> str:
        """The name of its file, which another file may have by now."""
        return str(self._file.name)

    @property
    def size(self) -> int:
        return self.metadata.size

    def fileno(self) -> int:
        """The descriptor; it stays readable when the object is dropped from the cache."""
        return self._file.fileno()

    async def wait(self, offset: int) -> int:
        """Return at once, because everything is there."""
        return self.size

    def distrust(self) -> None:
        """See `messages.Source`."""
        self._distrusted(self.object_id)

    def close(self) -> None:
        self._file.close()

    def has_changed(self) -> bool | None:
        """Whether its bytes differ from those that were published; None if unknown. Blocks: reads all of it.

        Raises:
            OSError: it can't be read.
        """
        if self.metadata.sha256 is None:
            return None
        return self.digest() != self.metadata.sha256

    def digest(self) -> str:
        """The SHA-256 of its bytes. Blocks.

        Raises:
            OSError: it can't be read.
        """
        # By a descriptor of its own: others read by this one, and move its position.
        with Path(f"/proc/self/fd/{self.fileno()}").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def link(self, target: Path) -> None:
        """Give the file another name, or copy it where links aren't possible. Blocks.

        Args:
            target: the new name, which must not exist.

        Raises:
            OSError: the file can't be put there.
        """
        link_or_copy(Path(self.path), target, self.fileno())
        # Both names are one file: what is set here holds for the cache's name, too. There nobody
        # else gets at it, as the cache directory admits its owner only; and nobody may write to
        # it under either name. Its date is what a web server sends as Last-Modified
        # (docs/protocol.md, trap 7).
        target.chmod(_LINKED_MODE)
        date = self.metadata.last_modified or self.metadata.built_at or self.metadata.fetched_at
        os.utime(target, (date, date))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
