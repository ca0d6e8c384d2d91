"""Finds the files in `files.directory`, and copies them for the check. Everything here blocks."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from clamproxy.config.units import GIB, KIB, MIB
from clamproxy.files import open_to_read, sync
from clamproxy.readable import shown_size
from clamproxy.site_files.catalog import COPIES, Catalog, Identity
from clamproxy.site_files.file_names import in_order, is_unfinished, why_skipped

MOST_FILES = 200
"""Files that are published; further ones, in alphabetical order, are refused."""
LARGEST_FILE = 512 * MIB
MOST_BYTES = 2 * GIB
"""Bytes of all published files together."""
MOST_NAMES = 1000
"""Names in the directory. With more, it is probably another one than was meant, and nothing changes."""
_PIECE = 256 * KIB


class ChangingError(Exception):
    """The file was changed while it was copied."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in the directory."""

    name: str
    identity: Identity
    skipped: str = ""
    """Why its name says that it is no database."""
    problem: str = ""
    """Why it can't be published, whatever is in it."""


def look_into(directory: Path, place: Path) -> tuple[list[FoundFile] | None, str]:
    """The files in the directory, or why it can't be read. None if there is nothing to do yet. Blocks.

    Args:
        place: the directory of the catalog.
    """
    try:
        found = find_files(directory)
    except FileNotFoundError:
        # Nobody has used it yet; unless it has disappeared, as a network drive can.
        has_published = bool(Catalog.load(place).files) if place.is_dir() else False
        return ([], f"{directory} doesn't exist") if has_published else (None, "")
    except OSError as error:
        found, trouble = [], f"{directory} can't be read: {error.strerror or error}"
    else:
        # A network drive that isn't mounted leaves an empty directory.
        trouble = ""
        if not found and Catalog.load(place).published:
            trouble = f"{directory} is empty; to withdraw the last file, put another one there"
    (place / COPIES).mkdir(mode=0o700, parents=True, exist_ok=True)
    return found, trouble


def find_files(directory: Path) -> list[FoundFile]:
    """The files in the directory, in the order in which they are published.

    Raises:
        OSError: the directory can't be read, or has too many files.
    """
    root = Path(os.path.realpath(directory))
    names = [name for name in os.listdir(root) if not is_unfinished(name)]  # noqa: PTH208
    if len(names) > MOST_NAMES:
        raise OSError(errno.E2BIG, f"it has more than {MOST_NAMES} files", str(directory))
    found = [_found(root, name) for name in names]
    by_name = {file.name: file for file in found if file is not None}
    count = total = 0
    kept = []
    for name in in_order(by_name):
        file = by_name[name]
        if not (file.skipped or file.problem):
            count, total = count + 1, total + file.identity[1]
            if count > MOST_FILES:
                file = FoundFile(name, file.identity, problem=f"there are more than {MOST_FILES} files")
            elif total > MOST_BYTES:
                total -= file.identity[1]
                file = FoundFile(
                    name, file.identity, problem=f"together, the files exceed {shown_size(MOST_BYTES)}"
                )
        kept.append(file)
    return kept


def copy(directory: Path, found: FoundFile, target: Path) -> str:
    """Copy a file; returns its SHA-256 in hexadecimal.

    Args:
        target: where to copy it; must not exist.

    Raises:
        ChangingError: it isn't the file that was found, or was written to in the meantime.
        OSError: it can't be read, or not copied.
    """
    path = directory / found.name
    digest = hashlib.sha256()
    with open_to_read(path) as source, target.open("xb") as output:
        left = found.identity[1] + 1
        while left > 0 and (piece := source.read(min(_PIECE, left))):
            left -= len(piece)
            digest.update(piece)
            output.write(piece)
        sync(output)
        is_same = _identity(os.fstat(source.fileno())) == found.identity == _identity(path.stat())
        # What was opened counts, not what a link leads to by now.
        if not is_same or _leads_out(source.fileno(), Path(os.path.realpath(directory))):
            raise ChangingError
    return digest.hexdigest()


def _found(root: Path, name: str) -> FoundFile | None:
    path = root / name
    skipped = why_skipped(_printable(name))
    try:
        if path.is_dir():
            return None if skipped else FoundFile(name, (0, 0, 0), problem="it is a directory")
        if skipped is not None:
            return FoundFile(_printable(name), (0, 0, 0), skipped=skipped)
        with open_to_read(path) as file:
            identity = _identity(os.fstat(file.fileno()))
            leads_out = _leads_out(file.fileno(), root)
    except FileNotFoundError as error:
        if not path.is_symlink() and not path.exists():
            return None  # it has just been removed
        what = "it is no regular file" if error.errno == errno.ENOENT and path.exists() else "a broken link"
        return FoundFile(name, (0, 0, 0), problem=what)
    except OSError as error:
        return FoundFile(name, (0, 0, 0), problem=f"it can't be read: {error.strerror or error}")
    if leads_out:
        return FoundFile(name, identity, problem="it is a link that leads out of files.directory")
    if identity[1] > LARGEST_FILE:
        return FoundFile(name, identity, problem=f"it is larger than {shown_size(LARGEST_FILE)}")
    return FoundFile(name, identity)


def _leads_out(descriptor: int, root: Path) -> bool:
    """Whether an open file is outside of a directory. Kubernetes' volumes have links within them."""
    real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
    return not real.is_relative_to(root)


def _identity(status: os.stat_result) -> Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _printable(name: str) -> str:
    return (
        name if name.isprintable() and name.isascii() else name.encode("unicode_escape", "replace").decode()
    )
