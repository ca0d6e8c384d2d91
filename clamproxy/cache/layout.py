"""Where objects are: each under its own name, in the directory of its database.

    objects/daily/daily-27800.cdiff
    objects/daily/daily-27800.cdiff.sign

The place follows from what an object is. So an administrator can find it, and the index can be rebuilt
from the files. Earlier versions kept the files in ``index/objects``, before that in ``index`` under
diskcache's names (``3f/a0/….val``); they are served from there until a start moves them.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from diskcache.core import DBNAME

from clamproxy.files import remove, replacing, sync_directory
from clamproxy.objects import ObjectId

INDEX = "index"
OBJECTS = "objects"
PARTIAL = "partial"
QUARANTINE = "quarantine"
NEWEST_PROVEN = "newest-proven"

_BY_DISKCACHE = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]+\.val")


def file_name(object_id: ObjectId) -> str:
    """The path of an object's file, relative to the cache directory."""
    return f"{OBJECTS}/{object_id.database}/{object_id.file_name}"


def is_former(filename: str, object_id: ObjectId) -> bool:
    """Whether a row names a file as earlier versions did, relative to the directory of the index.

    Nothing else that a row says is followed: one flipped bit could lead to another object's file.
    """
    return filename == f"{OBJECTS}/{object_id.file_name}" or _BY_DISKCACHE.fullmatch(filename) is not None


def locate(root: Path, object_id: ObjectId, filename: str | None) -> Path:
    """The path of an object's file, which need not exist. Quick.

    Args:
        root: the cache directory.
        filename: the file's name in the object's row.
    """
    name = file_name(object_id)
    own = root / name
    if filename is None or filename == name or not is_former(filename, object_id):
        return own
    former = root / INDEX / filename
    # A start that was killed may have moved it without updating its row.
    has_moved = os.path.lexists(own) and not os.path.lexists(former)
    return own if has_moved else former


def place(root: Path, object_id: ObjectId, path: Path) -> str:
    """Put a finished file in its place, with another name or as a copy. Blocks.

    Args:
        root: the cache directory.
        path: the file, which also keeps this name.

    Returns:
        Its new name, relative to the cache directory. After a crash it is there, complete, or it isn't.

    Raises:
        OSError: for example, the disk is full.
    """
    target = _prepared(root, object_id)
    try:
        os.link(path, target)
    except OSError:  # links don't work here, or a process that was killed left a file without a row
        with path.open("rb") as original, replacing(target) as copy:
            shutil.copyfileobj(original, copy)
    else:
        sync_directory(target.parent)
    return file_name(object_id)


def move(root: Path, object_id: ObjectId, path: Path) -> str:
    """Move a file within the cache to its place, unless it is there already. Quick: copies nothing.

    The caller syncs the directory before it relies on the new name.

    Raises:
        OSError: the disk is read-only, or the directories are on different ones.
    """
    if path != root / file_name(object_id):
        path.rename(_prepared(root, object_id))
    return file_name(object_id)


def _prepared(root: Path, object_id: ObjectId) -> Path:
    target = root / file_name(object_id)
    if not target.parent.is_dir():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(target.parent.parent)
        sync_directory(root)
    if target.is_dir():  # a file can't be renamed to that
        remove(target)
    return target


def name_in_row(root: Path, object_id: ObjectId, path: Path) -> str | None:
    """The name by which a row refers to an object's file where it is now; None if it can't."""
    if path == root / file_name(object_id):
        return file_name(object_id)
    if not path.is_relative_to(root / INDEX):
        return None
    former = str(path.relative_to(root / INDEX))
    return former if is_former(former, object_id) else None


def is_cache(root: Path) -> bool:
    """Whether a directory has been used as a cache. Quick."""
    return any((root / name).is_dir() for name in (INDEX, OBJECTS))


def require_readable(root: Path) -> None:
    """Check that the cache can be read: otherwise it would look empty. Quick.

    Raises:
        PermissionError: this user can't read it.
    """
    for directory in (root / INDEX, root / OBJECTS):
        if directory.is_dir():
            list(directory.iterdir())
    if (database := root / INDEX / DBNAME).is_file():
        database.open("rb").close()


def scan(root: Path) -> Iterator[Path]:
    """All files of objects, and any others among them. Takes milliseconds for a thousand.

    Anything that is neither a file nor a directory is left out: opening a FIFO may wait forever.
    """
    for top in (root / OBJECTS, root / INDEX):
        for below, _, names in os.walk(top):
            for name in names:
                path = Path(below) / name
                with suppress(OSError):
                    if not name.startswith(DBNAME) and stat.S_ISREG(path.stat().st_mode):
                        yield path


def tidy(root: Path) -> None:
    """Remove empty directories, and let the previous version find the objects as well. Blocks."""
    for top in (root / OBJECTS, root / INDEX):
        for below, _, _ in os.walk(top, topdown=False):
            if Path(below) != top:
                with suppress(OSError):  # it isn't empty
                    Path(below).rmdir()
    link_for_former(root)


def link_for_former(root: Path) -> None:
    """Let the previous version find the objects, too. Quick.

    It resolves the names in rows below ``index``, as diskcache does: after a downgrade, nothing has to be
    fetched again.
    """
    with suppress(OSError):  # it is there
        (root / INDEX / OBJECTS).symlink_to(f"../{OBJECTS}")
