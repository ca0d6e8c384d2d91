"""Files of objects: named by what they are, so that the index can be made anew from them.

    index/objects/daily-27800.cdiff

Earlier versions left it to diskcache to name them (``index/3f/a0/….val``).
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from diskcache.core import DBNAME

from clamproxy.cache.published import Metadata
from clamproxy.formats.cdiff import CdiffContainer
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.formats.verification import verify
from clamproxy.objects import Kind, ObjectId

OBJECTS = "objects"

_NOT_LINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT)
_NO_FILE = (errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_DATABASES = ("daily", "main", "bytecode", "safebrowsing", "test", "valhalla")
"""Whose a nameless file may be."""


def file_name(object_id: ObjectId) -> str:
    """Where an object's file is, below the index's directory."""
    return f"{OBJECTS}/{object_id.file_name}"


def stays_inside(filename: str) -> bool:
    """Whether a name leads to a place below the index's directory."""
    path = PurePath(filename)
    return not path.is_absolute() and ".." not in path.parts


def place(directory: Path, object_id: ObjectId, path: Path) -> str:
    """Give a finished file its place, with another name or as a copy. Blocks.

    Args:
        directory: the index's.
        object_id: what it is.
        path: the file; it keeps this name, too.

    Returns:
        Its new name, see `file_name`. After a crash it is there, complete, or it isn't.

    Raises:
        OSError: the disk is full, for one.
    """
    target = directory / file_name(object_id)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = target.with_name(f".{object_id.file_name}.{secrets.token_hex(4)}")
    try:
        _link_or_copy(path, temporary)
        if target.is_dir():  # nothing can be renamed to that
            remove(target)
        temporary.replace(target)
    finally:
        # Renaming one name of a file to another name of the same file does nothing.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_directory(target.parent)
    return file_name(object_id)


def scan(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """All files below the index's directory but those of SQLite. Takes milliseconds for a thousand.

    What is neither a file nor a directory is left out: opening a FIFO may wait for ever.
    """
    for below, _, names in os.walk(directory):
        for name in names:
            path = Path(below) / name
            with suppress(OSError):
                status = path.stat()
                if not name.startswith(DBNAME) and stat.S_ISREG(status.st_mode):
                    yield str(path.relative_to(directory)), status


def open_to_read(path: Path) -> BinaryIO:
    """Open a file; what else has its name counts as no file. Quick.

    Raises:
        OSError: there is none, or it can't be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait
    except OSError as error:
        if error.errno in _NO_FILE:
            raise FileNotFoundError(errno.ENOENT, "not a file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
    return open(path, "rb", opener=lambda *_: descriptor)


def remove(path: Path) -> None:
    """Remove what has a name, even if that is a directory; nothing if nothing has it. Blocks.

    Raises:
        OSError: the disk is read-only, for one.
    """
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        shutil.rmtree(path)
    except NotADirectoryError:
        return


def identify(path: Path, keys: TrustedKeys) -> ObjectId | None:
    """What a file is that no row tells of, by its name or its content, verified. Blocks."""
    for object_id in _candidates(path):
        with suppress(InvalidObject, OSError):
            verify(path, object_id, keys)
            return object_id
    return None


def is_valid(path: Path, object_id: ObjectId, keys: TrustedKeys) -> bool:
    """Whether a file is the object that it should be. Blocks.

    Raises:
        OSError: it can't be read.
    """
    try:
        verify(path, object_id, keys)
    except InvalidObject:
        return False
    return True


def metadata_of(path: Path, object_id: ObjectId) -> Metadata:
    """What a verified file itself tells. Blocks: reads all of it.

    Raises:
        OSError: it can't be read.
    """
    status = path.stat()
    header = None
    if object_id.kind in (Kind.CVD, Kind.CLD):
        with path.open("rb") as file:
            header = file.read(HEADER_SIZE).decode("ascii", "replace")
    return Metadata(status.st_size, status.st_mtime, header=header, sha256=sha256_of(path))


def sha256_of(path: Path) -> str:
    """The digest of a file. Blocks.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_empty_directories(directory: Path) -> None:
    """What diskcache's names leave behind."""
    for below, _, _ in os.walk(directory, topdown=False):
        if Path(below) != directory:
            with suppress(OSError):  # it isn't empty
                Path(below).rmdir()


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _NOT_LINKABLE or not path.exists():
            raise
        with path.open("rb") as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())


def _candidates(path: Path) -> Iterator[ObjectId]:
    with suppress(ValueError):
        yield ObjectId.parse(path.name)
        return
    for kind, version_of in (
        (Kind.CDIFF, _cdiff_version),
        (Kind.CVD, _cvd_version),
        (Kind.CLD, _cvd_version),
    ):
        with suppress(InvalidObject, OSError), path.open("rb") as file:
            version = version_of(file)
            yield from (ObjectId(database, version, kind) for database in _DATABASES)


def _cdiff_version(file: BinaryIO) -> int:
    return CdiffContainer.parse(file).version


def _cvd_version(file: BinaryIO) -> int:
    return CvdHeader.parse(file.read(HEADER_SIZE)).version
