"""Puts a library between programs and their disk: it notes each change, and makes changes and reads fail.

A preloaded library (`disk_shim.c`, compiled when it is first needed) sees all that programs change in files
below a directory, SQLite included, but not what is mapped into memory: here only SQLite's ``-shm``.
Programs that root runs obey the permissions of files, as any other user's do.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import gettempdir

from tests.support.programs import require_program

_SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True, slots=True)
class Change:
    """One change, as it was made."""

    what: str
    """create, write, truncate, sync, rename, link, symlink, unlink, mkdir; or mark: see `DiskShim.mark`."""
    inode: int
    offset: int
    """For write: where. For truncate: the new length."""
    path: str
    second: str
    data: bytes


class DiskShim:
    """The library, for programs that change files below a directory."""

    def __init__(self, root: Path, directory: Path) -> None:
        """Nothing is watched yet.

        Args:
            root: what is watched.
            directory: for the library, the log and the file of faults; outside `root`.
        """
        self.root = root
        self._library = _compiled(directory)
        self._log = directory / "changes.log"
        self._fault = directory / "fault"
        self._unreadable = directory / "unreadable"

    @property
    def environment(self) -> dict[str, str]:
        """What programs need in their environment."""
        return {
            "LD_PRELOAD": str(self._library),
            "DISK_SHIM_ROOT": str(self.root),
            "DISK_SHIM_LOG": str(self._log),
            "DISK_SHIM_FAULT": str(self._fault),
            "DISK_SHIM_UNREADABLE": str(self._unreadable),
            "DISK_SHIM_UNPRIVILEGED": "1",
        }

    def fail(self, error: int = 0, *, delay: float = 0.0) -> None:
        """From now on, each change fails with an errno (0: it doesn't), or takes some seconds longer."""
        self._fault.write_text(f"{error} {round(delay * 1e6)}")

    def fail_reads(self, paths: Iterable[Path]) -> None:
        """From now on, these files can be opened, but not read. New ones with their names can."""
        self._unreadable.write_text("".join(f" {path.stat().st_ino} " for path in paths))

    def heal(self) -> None:
        self._fault.unlink(missing_ok=True)
        self._unreadable.unlink(missing_ok=True)

    def mark(self, text: str) -> None:
        """Note in the log that something has been achieved by now."""
        with self._log.open("ab") as log:
            log.write(f"mark\t0\t0\t0\t{text}\t\n".encode())

    def changes(self) -> list[Change]:
        """The log."""
        content, position, found = self._log.read_bytes(), 0, []
        while position < len(content):
            end = content.index(b"\n", position)
            what, inode, offset, length, path, second = content[position:end].decode().split("\t")
            position = end + 1 + int(length)
            found.append(Change(what, int(inode), int(offset), path, second, content[end + 1 : position]))
        return found


@cache
def _compiled(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / "disk_shim.so"
    command = [require_program("gcc"), "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True, cwd=gettempdir())
    return library
