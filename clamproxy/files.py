"""Files: locks, atomic replacement, and damaged SQLite files set aside.

Whatever is written here survives a kill -9 at any moment: each name has either the former file or the new
one, and nothing in between.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

type Identity = tuple[int, int]
"""Identifies a file, whatever its name: device and inode."""

type Stamp = tuple[int, int, int]
"""Tells a changed or replaced file from the previous one: inode, time of change and size."""

_NOT_LINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT)
"""Another file system, one without links, too many links, or a name that has just disappeared."""
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EINTR)
"""Errors of reading that are due to this process, not to the file."""

_UNFINISHED = ".part"
_NO_FILE = (errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


# Locks


def try_lock(file: int | IO[bytes], *, shared: bool = False) -> bool:
    """Lock a file against other processes, unless one of them has locked it. Quick.

    The lock belongs to the open file: it ends with the last descriptor, however the process ends.

    Args:
        file: the file, or its descriptor.
        shared: whether others may hold such a lock as well.

    Returns:
        Whether it is locked now.

    Raises:
        OSError: for example, the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(file: int | IO[bytes]) -> None:
    """Lock a file as soon as no other process has locked it. Blocks.

    Raises:
        OSError: for example, the file system has no locks.
    """
    fcntl.flock(file, fcntl.LOCK_EX)


def open_lock(path: Path) -> BinaryIO:
    """Open a file that is there to be locked; it is made, for its owner alone, if it doesn't exist.

    Raises:
        OSError: it can't be opened.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def make_database(path: Path) -> None:
    """Make an empty file for SQLite, for its owner alone; SQLite itself would let others read it.

    A file that is there isn't opened: closing it would end the locks that SQLite has on it in this process
    (sqlite.org/howtocorrupt.html, 2.2), and another process would delete its -wal.

    Raises:
        OSError: it can't be made.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def share_lock(file: int | IO[bytes]) -> None:
    """Take a shared lock as soon as no process holds an exclusive one. Blocks.

    Raises:
        OSError: for example, the file system has no locks.
    """
    fcntl.flock(file, fcntl.LOCK_SH)


def unlock(file: int | IO[bytes]) -> None:
    """Release a lock even if duplicates of the descriptor stay open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def identity_of(file: int | Path) -> Identity | None:
    """The identity of the file with this descriptor or, at the moment, this name; None if there is none."""
    try:
        status = os.stat(file)  # noqa: PTH116 -- a descriptor, too
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_named(file: int | IO[bytes], path: Path) -> bool:
    """Whether an open file has this name now; another process may have removed or replaced it. Quick.

    Args:
        file: the file, or its descriptor.
        path: the name that it was opened by.
    """
    return identity_of(file if isinstance(file, int) else file.fileno()) == identity_of(path)


def stamp_of(path: Path | str) -> Stamp | None:
    """The stamp of the file with this name; None if there is none, or if it can't be looked at. Quick."""
    try:
        status = os.stat(path)  # noqa: PTH116 -- called all the time
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


# Writing


def open_unfinished(path: Path) -> int:
    """Make a file that nobody sweeps up as long as it is open. Blocks for a moment.

    Returns:
        Its descriptor, for reading and writing, which holds a lock.

    Raises:
        OSError: it can't be made, or exists.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system without locks, where nothing is swept up
            lock(descriptor)
        if is_named(descriptor, path):
            return descriptor
        os.close(descriptor)  # it was swept up before it was locked


def remove_abandoned(path: Path) -> None:
    """Remove an unfinished file, unless a process is still writing it. Blocks.

    It also stays where it can't be read or locked.
    """
    with suppress(OSError), open_to_read(path) as file:
        # Under the lock nobody begins to write it; but after another sweep it may be new.
        if try_lock(file, shared=True) and is_named(file, path):
            path.unlink()


@contextmanager
def replacing(path: Path, *, mode: int = 0o600, suffix: str = _UNFINISHED) -> Iterator[BinaryIO]:
    """Write a file that gets its name when it is complete and synced. Blocks.

    Args:
        path: the file. Until then, it is in the same directory, under a name that nobody else chooses.
        mode: the rights of the new file.
        suffix: of the temporary name; it identifies what is left after a kill.

    Raises:
        OSError: it can't be written; the former file is unchanged then. Or the directory can't be synced.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")
    try:
        with os.fdopen(open_unfinished(part), "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            sync(file)
            part.replace(path)  # while it is open, and so locked
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    sync_directory(path.parent)


def sweep_unfinished(directory: Path) -> None:
    """Remove what killed processes had begun to write by `replacing`, also further down. Blocks."""
    for below, _, names in os.walk(directory):  # unlike rglob, goes on where a directory can't be read
        for name in fnmatch.filter(names, f".*{_UNFINISHED}"):
            remove_abandoned(Path(below, name))


def link_or_copy(path: Path, target: Path, content: int) -> None:
    """Give a file another name, or copy it, for its owner alone, where links don't work. Blocks.

    Args:
        target: the new name, which must not exist.
        content: a descriptor of the file; it is copied from there even if `path` has disappeared by then.

    Raises:
        OSError: the file can't be put there.
    """
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _NOT_LINKABLE:
            raise
        # With a separate descriptor: others read from this one, and move its position.
        source = Path(f"/proc/self/fd/{content}")
        with source.open("rb") as original, os.fdopen(open_unfinished(target), "wb") as copy:
            shutil.copyfileobj(original, copy)
            sync(copy)


def sync(file: IO[bytes]) -> None:
    """Make what was written to a file survive a power failure. Blocks."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power failure. Blocks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading


def open_to_read(path: Path) -> BinaryIO:
    """Open a regular file; anything else with its name counts as no file. Quick.

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


def file_sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal. Blocks.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Removing


def remove(path: Path) -> None:
    """Remove a file or directory, if it exists. Blocks.

    Raises:
        OSError: for example, the disk is read-only.
    """
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        shutil.rmtree(path)
    except NotADirectoryError:
        return


def set_aside(database: Path, damaged: Identity | None, aside: Path) -> bool:
    """Move a damaged SQLite file out of the way, unless another process has done so. Blocks.

    Args:
        damaged: the identity of the damaged file; another file with that name stays.
        aside: its new name; whatever is there is removed, even a directory.

    Returns:
        Whether it was moved.

    Raises:
        OSError: for example, the disk is read-only.
    """
    if damaged is None or identity_of(database) != damaged:
        return False
    # A log that is left behind would be applied to the next file with that name.
    for suffix in ("-wal", "-shm"):
        remove(database.with_name(database.name + suffix))
    remove(aside)
    database.replace(aside)
    return True
