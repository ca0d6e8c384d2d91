"""Partial files: what has arrived of an object, kept so that a transfer can be resumed.

    <file>.part   the bytes; locked by the process that fetches them
    <file>.json   the sidecar: what the origin said about the file, and how the last transfer ended

Other processes read along. So bytes that are in a file stay as they are: a transfer that starts again from
zero gets a new file under the same name, and nobody reads a mixture.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from clamproxy.config.units import MIB
from clamproxy.files import is_named, try_lock, unlock
from clamproxy.formats.cvd import PayloadDigest
from clamproxy.objects import ObjectId
from clamproxy.storage.condition import LEAST_SPACE, free_bytes
from clamproxy.storage.growing_file import GrowingFile
from clamproxy.untrusted import parse_first_json

LONGEST_KEPT = 2 * 86400.0
"""Seconds after which an interrupted transfer is not worth resuming: a newer version is out by then."""


_DIGESTED_AT_A_TIME = MIB
_LARGEST_SIDECAR = 64 * 1024
_NEW = ".new"
"""Ends the name of an empty file for the moment until it takes the place of another."""


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
        is_size = type(self.size) is int and self.size >= 0
        return is_size and all(tag is None or isinstance(tag, str) for tag in tags)

    def allows(self, have: int) -> bool:
        """Whether that many bytes of the file can have arrived."""
        return self.size is not None and have <= self.size

    @property
    def if_range(self) -> str | None:
        """The If-Range field for resuming, or None if there can't be one (RFC 9110 13.1.5)."""
        if self.size is None:
            return None
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


class PartialFile(GrowingFile):
    """A file that grows, with its validators in a second file. Locked against other processes.

    One that was only opened may be another process's: `look` shows what has arrived.
    """

    is_unnamed = False
    """Whether it is in memory only."""

    def __init__(self, path: Path, descriptor: int, sidecar: int = -1) -> None:
        super().__init__(path, descriptor)
        self.validators: Validators | None = None
        self.payload = PayloadDigest()
        """For a CVD: the digest of what `digest_more` has read."""
        self._sidecar = sidecar
        self._is_ours = False

    @classmethod
    def open(cls, directory: Path, object_id: ObjectId) -> Self:
        """Open or create the partial file of an object, without a lock. Quick."""
        path, flags = directory / f"{object_id.file_name}.part", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        # In the opposite order to `discard`: a sidecar that is found is never younger than the file.
        sidecar = os.open(path.with_suffix(".json"), flags, 0o600)
        try:
            return cls(path, os.open(path, flags, 0o600), sidecar)
        except BaseException:
            os.close(sidecar)
            raise

    @classmethod
    def claim(cls, directory: Path, object_id: ObjectId) -> Self:
        """Open or create the partial file of an object, and lock it. Quick.

        Raises:
            BusyError: another process has it.
        """
        partial = cls.open(directory, object_id)
        try:
            if not (partial.lock() and partial.take()):
                raise BusyError(object_id.file_name)
        except BaseException:
            partial.close()
            raise
        return partial

    def lock(self) -> bool:
        """Lock it, unless another process has. Quick."""
        return try_lock(self.descriptor)

    def take(self) -> bool:
        """Make the locked file this process's own, with what an earlier one left in it. Quick.

        Returns:
            Whether that is possible. If not, its name is gone, or another file's, since it was opened.
        """
        if not is_named(self.descriptor, self.path):
            return False
        if not is_named(self._sidecar, self._sidecar_path):
            return False
        self._is_ours = True
        self._load()
        # Whoever looks at it sees by these times whether anything has arrived since.
        os.utime(self._sidecar)
        return True

    def look(self) -> None:
        """See what has arrived of a file that another process fetches. Quick.

        What is there counts from when that process has added to it: it may find that the rest of the file
        is no longer to be had, and start again.
        """
        status, sidecar = os.fstat(self.descriptor), os.fstat(self._sidecar)
        if self.have or (status.st_size and status.st_mtime_ns >= sidecar.st_mtime_ns):
            validators = self.validators or self._read_validators()
            if validators is not None and validators.allows(status.st_size):
                self.validators, self.have = validators, status.st_size

    @property
    def locked_for(self) -> float:
        """Seconds since another process has claimed the file, or the origin has answered it."""
        return max(0.0, time.time() - os.fstat(self._sidecar).st_mtime)

    @property
    def ending(self) -> Any:
        """What the last process that had the file left by `leave`; None if it left nothing."""
        values = self._read_sidecar()
        return values.get("ended") if isinstance(values, dict) else None

    def leave(self, ending: Mapping[str, Any]) -> None:
        """Tell those that follow how the transfer ended; then release or discard the file.

        Args:
            ending: in JSON.
        """
        with suppress(OSError):  # they find out for themselves
            self._write_sidecar({"ended": ending})

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
        if os.fstat(self.descriptor).st_size:
            self._replace()
        self.have = 0
        self.payload = PayloadDigest()
        self.validators = validators
        if validators.size:
            self.require_room()
        self._write_sidecar({})

    @property
    def needed(self) -> int:
        """Bytes that must be free on the disk for the rest of the file, as far as its size is known."""
        size = self.validators.size if self.validators else None
        return max(0, (size or 0) - self.have) + LEAST_SPACE

    def require_room(self) -> None:
        """Check that the disk has room for the rest of the file. Quick.

        Raises:
            NoRoomError: it would fill the disk.
        """
        if free_bytes(self.descriptor) < self.needed:
            raise NoRoomError(self.needed)

    def _replace(self) -> None:
        """Put an empty file in the place of this one, which others may be reading."""
        new_path = self.path.with_suffix(_NEW)
        empty = os.open(new_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try_lock(empty)
            new_path.replace(self.path)
            unlock(self.descriptor)
            os.dup2(empty, self.descriptor, inheritable=False)
        finally:
            os.close(empty)

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

    @property
    def present_path(self) -> Path:
        """The path of the file, even if its name is gone or has become another file's."""
        return self.path if is_named(self.descriptor, self.path) else Path(f"/proc/self/fd/{self.descriptor}")

    def read_beginning(self, length: int) -> bytes:
        return os.pread(self.descriptor, min(length, self.have), 0)

    def discard(self) -> None:
        self._sidecar_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Unlock and close the file, once; readers that duplicated the descriptor continue."""
        if self.descriptor < 0:
            return
        if self._is_ours:
            with suppress(OSError):  # the disk can't be written to any more; what stays is swept up later
                if self.have == 0 and is_named(self.descriptor, self.path):
                    self.discard()
                elif not self.path.exists():
                    self._sidecar_path.unlink(missing_ok=True)
        unlock(self.descriptor)
        self.close()

    def close(self) -> None:
        if self._sidecar >= 0:
            os.close(self._sidecar)
            self._sidecar = -1
        super().close()

    @property
    def _sidecar_path(self) -> Path:
        return self.path.with_suffix(".json")

    def _load(self) -> None:
        """Take over what an earlier process left, if its validators exist and fit."""
        validators, size = self._read_validators(), os.fstat(self.descriptor).st_size
        if validators is not None and validators.allows(size):
            self.validators, self.have = validators, size
        else:
            self.validators, self.have = None, 0

    def _read_validators(self) -> Validators | None:
        values = self._read_sidecar()
        try:
            validators = Validators(values["size"], values["etag"], values["last_modified"])
        except (KeyError, TypeError):
            return None
        return validators if validators.is_sound else None

    def _read_sidecar(self) -> Any:
        try:
            text = os.pread(self._sidecar, _LARGEST_SIDECAR, 0).decode()
        except (OSError, ValueError):
            return None
        # A process that was killed may have left the end of a longer text.
        return parse_first_json(text)

    def _write_sidecar(self, more: Mapping[str, Any]) -> None:
        if self._sidecar >= 0:
            known = self.validators or Validators(None, None, None)
            text = json.dumps({**asdict(known), **more}).encode()
            os.pwrite(self._sidecar, text, 0)
            os.ftruncate(self._sidecar, len(text))


@dataclass(frozen=True, slots=True)
class Arriving:
    """A partial file, as anybody can see it."""

    have: int
    """How many bytes are here."""
    size: int | None
    """Size of the whole file in bytes; None if unknown."""
    is_running: bool
    """Whether a process is fetching the file."""


def peek(path: Path) -> Arriving | None:
    """Look at a partial file without any effect on the process that has it; None if there is none. Quick."""
    try:
        with path.open("rb") as file:
            is_running, have = not try_lock(file, shared=True), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    try:
        values = parse_first_json(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        values = None
    size = values.get("size") if isinstance(values, dict) else None
    return Arriving(have, size if type(size) is int and size >= 0 else None, is_running)


def sweep(directory: Path, is_published: Callable[[ObjectId], bool], *, alone: bool = False) -> None:
    """Delete the partial files that won't be resumed any more. Blocks.

    Args:
        is_published: whether an object is in the cache. A kill after its publication leaves its partial file.
        alone: whether no other process is about to fetch: what has no content yet is left over then.
    """
    for path in list(directory.glob("*")):
        is_beside = path.suffix != ".part" and path.with_suffix(".part").exists()
        with suppress(OSError, ValueError, BusyError):
            object_id, status = ObjectId.parse(path.stem), path.stat()
            is_empty = path.suffix != ".part" or not status.st_size
            is_old = status.st_mtime + LONGEST_KEPT < time.time()
            if not is_beside and (is_old or is_published(object_id) or (alone and is_empty)):
                partial = PartialFile.claim(directory, object_id)
                partial.path.with_suffix(_NEW).unlink(missing_ok=True)
                partial.discard()
                partial.release()
