"""What may be on a disk after a power failure, made from a log of what programs have changed.

Whatever was synced is there: the content of a file up to its last fsync, the names in a directory up to
that directory's. All else may be there or not, and in parts, as POSIX allows: `Loss` lists what may happen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from tests.support.disk_shim import Change

SECTOR = 512
"""Bytes that a disk writes at once or not at all."""


class Loss(StrEnum):
    """What becomes of changes that were not synced."""

    NOTHING = "nothing is lost"
    ALL = "all is lost"
    NEW_DATA = "names are there, files are as long as at their last sync"
    ZEROS = "names are there, files have the right length but zeros in them"
    NAMES = "data are there, names are not"
    ORDERED = "names up to some moment, as by a journal, and any of the data, in parts"
    ANY = "any of the names, and any of the data, in parts"


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


type Content = bytes | Link | None
"""What has a name: a file, a symbolic link, or (None) a directory."""
type Tree = dict[str, Content]
"""By path, relative to the directory that was watched."""


@dataclass(slots=True)
class _File:
    changes: list[tuple[int, Change]] = field(default_factory=list)
    synced: int = -1

    def content(self, loss: Loss, choose: random.Random) -> bytes:
        data = bytearray()
        for at, change in self.changes:
            is_safe = at <= self.synced or loss in (Loss.NOTHING, Loss.NAMES)
            if is_safe or loss is Loss.ZEROS:
                _apply(data, change, None if is_safe else b"")
            elif loss in (Loss.ORDERED, Loss.ANY):
                fate = choose.random()
                if fate < 0.4:
                    _apply(data, change, None)
                elif fate < 0.7:
                    _apply(
                        data, change, change.data[: SECTOR * choose.randint(0, len(change.data) // SECTOR)]
                    )
        return bytes(data)


def _apply(data: bytearray, change: Change, kept: bytes | None) -> None:
    """Make a change, with zeros for what isn't kept of the data; None: all of them are."""
    if change.what == "truncate":
        del data[change.offset :]
        data.extend(bytes(change.offset - len(data)))
        return
    end = change.offset + len(change.data)
    data.extend(bytes(max(0, end - len(data))))
    data[change.offset : end] = (change.data if kept is None else kept).ljust(len(change.data), b"\0")


type _Target = _File | Link | None
"""What a name stands for; None: a directory."""


class _Gone:
    """Nothing."""


type _Named = tuple[str, _Target | type[_Gone]]


@dataclass(frozen=True, slots=True)
class _Naming:
    """A change of names, which a disk makes at once or not at all."""

    at: int
    names: tuple[_Named, ...]


class Replay:
    """The disk of programs whose changes are replayed, one after the other."""

    def __init__(self, root: Path, changes: Sequence[Change]) -> None:
        self._root = str(root)
        self._changes = changes
        self._next = 0
        self._names: dict[str, _Target] = {"": None}
        self._inodes: dict[int, _File] = {}
        self._namings: list[_Naming] = []
        self._synced_names: dict[str, int] = {}
        self._last_sync = -1
        self.marks: list[str] = []
        """What had been achieved by now."""

    def advance(self) -> bool:
        """Make the next change; returns whether there was one."""
        if self._next == len(self._changes):
            return False
        change, at = self._changes[self._next], self._next
        self._next += 1
        match change.what:
            case "mark":
                self.marks.append(change.path)
            case "write" | "truncate":
                self._inodes.setdefault(change.inode, _File()).changes.append((at, change))
            case "sync":
                self._sync(at, change)
            case _:
                self._name(at, *self._naming(change))
        return True

    def _sync(self, at: int, change: Change) -> None:
        self._last_sync, path = at, self._relative(change.path)
        if path in self._names and self._names[path] is None:
            self._synced_names[path] = at
        elif change.inode in self._inodes:
            self._inodes[change.inode].synced = at

    def _naming(self, change: Change) -> Sequence[_Named]:
        path, second = self._relative(change.path), self._relative(change.second)
        match change.what:
            case "create" if self._names.get(path, _Gone) is not self._inodes.get(change.inode):
                self._inodes[change.inode] = _File()
                return [(path, self._inodes[change.inode])]
            case "mkdir":
                return [(path, None)]
            case "symlink":
                return [(second, Link(change.path))]
            case "unlink":
                return [(path, _Gone)]
            case "link":
                return [(second, self._names[path])]
            case "rename" if self._names.get(path) is not self._names.get(second, _Gone):
                return [(second, self._names[path]), (path, _Gone)]
        return []  # nothing has changed: it was there, or both names were one file's

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root).lstrip("/") if path.startswith(self._root) else path

    def _name(self, at: int, *names: _Named) -> None:
        self._namings.append(_Naming(at, names))
        _rename(self._names, names)

    def after_power_failure(self, loss: Loss, choose: random.Random) -> Tree:
        """What may be there if the power fails now."""
        names: dict[str, _Target] = {"": None}
        for naming in self._kept_namings(loss, choose):
            _rename(names, naming.names)
        contents: dict[int, bytes] = {}  # a file has the same content under each of its names
        tree: Tree = {}
        for path, target in names.items():
            if isinstance(target, _File):
                if id(target) not in contents:
                    contents[id(target)] = target.content(loss, choose)
                tree[path] = contents[id(target)]
            else:
                tree[path] = target
        # SQLite makes it anew from the log; what was in it never went through `write`.
        return {path: content for path, content in tree.items() if not path.endswith("-shm")}

    def _kept_namings(self, loss: Loss, choose: random.Random) -> Iterator[_Naming]:
        if loss is Loss.ORDERED:
            # A journal has what was changed before it was last written, whatever asked for that.
            safe = [one for one in self._namings if one.at <= self._last_sync]
            yield from self._namings[: choose.randint(len(safe), len(self._namings))]
            return
        for naming in self._namings:
            parents = {str(PurePosixPath(path).parent) for path, _ in naming.names}
            is_safe = all(
                self._synced_names.get("" if one == "." else one, -1) > naming.at for one in parents
            )
            is_lucky = loss is Loss.ANY and choose.random() < 0.5
            if is_safe or is_lucky or loss in (Loss.NOTHING, Loss.NEW_DATA, Loss.ZEROS):
                yield naming


def _rename(names: dict[str, _Target], changes: tuple[_Named, ...]) -> None:
    for path, target in changes:
        if isinstance(target, type):
            names.pop(path, None)
        else:
            names[path] = target


def write_tree(tree: Tree, directory: Path) -> None:
    """Put what is there into an empty directory; what is in a directory that was lost is lost as well."""
    for path in sorted(tree):
        target, content = directory / path, tree[path]
        if target.parent.is_dir() and not target.is_symlink():
            if content is None:
                target.mkdir(exist_ok=True)
            elif isinstance(content, Link):
                target.symlink_to(content.target)
            else:
                target.write_bytes(content)
