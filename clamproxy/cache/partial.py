"""Partial files: what has arrived of an object, kept so that a transfer can be resumed."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from clamproxy.config.units import MIB
from clamproxy.files import identity_of, try_lock, unlock
from clamproxy.formats.cvd import PayloadDigest
from clamproxy.objects import ObjectId
from clamproxy.storage.condition import LEAST_SPACE, free_bytes
from clamproxy.storage.growing_file import GrowingFile

LONGEST_KEPT = 2 * 86400.0
"""Seconds after which an interrupted transfer is not worth resuming: a newer version is out by then."""


_DIGESTED_AT_A_TIME = MIB


class NoRoomError(Exception):
    """The disk has no room for the whole file.

    Args:
        needed: bytes for which there is no room.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"the disk has no room for {needed:,} bytes")
        self.needed = needed


class BusyError(Exception):
    """Another process is fetching this object into the same directory."""


@dataclass(frozen=True, slots=True)
class Validators:
    """Identifies the file at the origin, so that a resumed transfer never mixes two."""

    size: int | None
    etag: str | None
    last_modified: str | None

    @property
    def is_sound(self) -> bool:
        """Whether the values that were read back have the right types."""
        tags = (self.etag, self.last_modified)
        return isinstance(self.size, int) and all(tag is None or isinstance(tag, str) for tag in tags)

    @property
    def if_range(self) -> str | None:
        """The If-Range field for resuming, or None if there can't be one (RFC 9110 13.1.5)."""
        if self.size is None:
            return None
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


class PartialFile(GrowingFile):
    """A file that grows, with its validators in a second file. Locked against other processes."""

    is_unnamed = False
    """Whether it is in memory only."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self.validators: Validators | None = None
        self.payload = PayloadDigest()
        """For a CVD: the digest of what `digest_more` has read."""

    @classmethod
    def claim(cls, directory: Path, object_id: ObjectId) -> Self:
        """Open or create the partial file of an object. Quick.

        Raises:
            BusyError: another process has it.
        """
        path = directory / f"{object_id.file_name}.part"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # It may have been published, and its name removed, between open and lock.
            if not try_lock(descriptor) or identity_of(path) != identity_of(descriptor):
                raise BusyError(object_id.file_name)
        except BaseException:
            os.close(descriptor)
            raise
        partial = cls(path, descriptor)
        partial._load()
        return partial

    @property
    def resumable(self) -> bool:
        """Whether the rest can be requested by Range."""
        return self.have > 0 and self.validators is not None and self.validators.if_range is not None

    @property
    def complete(self) -> bool:
        return self.validators is not None and self.have == self.validators.size

    def begin(self, validators: Validators) -> None:
        """Start from zero with the file that the origin sends now.

        Raises:
            NoRoomError: it would fill the disk.
            OSError: the disk accepts nothing.
        """
        os.ftruncate(self.descriptor, 0)
        self.have = 0
        self.payload = PayloadDigest()
        needed = (validators.size or 0) + LEAST_SPACE
        if validators.size and free_bytes(self.path.parent) < needed:
            raise NoRoomError(needed)
        self.validators = validators
        self._sidecar.write_text(json.dumps(asdict(validators)))

    def end(self) -> None:
        """The origin has sent the whole file, so its size is known even if none was given."""
        if self.validators is not None and self.validators.size is None:
            self.validators = replace(self.validators, size=self.have)

    def digest_more(self) -> None:
        """Advance `payload` towards what has arrived, if that is worth a read. Takes milliseconds."""
        if self.have - self.payload.end >= _DIGESTED_AT_A_TIME:
            self.payload.follow(self._read, min(self.have, self.payload.end + 2 * _DIGESTED_AT_A_TIME))

    def _read(self, length: int, offset: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def read_beginning(self, length: int) -> bytes:
        return os.pread(self.descriptor, min(length, self.have), 0)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)

    def release(self) -> None:
        """Unlock and close the file, once; readers that duplicated the descriptor continue."""
        if self.descriptor < 0:
            return
        with suppress(OSError):  # the disk can't be written to any more; what stays is swept up later
            if self.have == 0:
                self.path.unlink(missing_ok=True)
            if not self.path.exists():
                self._sidecar.unlink(missing_ok=True)
        unlock(self.descriptor)
        self.close()

    @property
    def _sidecar(self) -> Path:
        return self.path.with_suffix(".json")

    def _load(self) -> None:
        """Take over what an earlier process left, if its validators exist and fit."""
        try:
            validators = Validators(**json.loads(self._sidecar.read_text()))
            size = os.fstat(self.descriptor).st_size
            if not validators.is_sound or validators.size is None or size > validators.size:
                return
        except (OSError, TypeError, ValueError):
            return
        self.validators = validators
        self.have = size


def sweep(directory: Path) -> None:
    """Delete the partial files that won't be resumed any more. Blocks."""
    for path in directory.glob("*.part"):
        with suppress(OSError, ValueError, BusyError):
            if path.stat().st_mtime + LONGEST_KEPT < time.time():
                partial = PartialFile.claim(directory, ObjectId.parse(path.stem))
                partial.discard()
                partial.release()
