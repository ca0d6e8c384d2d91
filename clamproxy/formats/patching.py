"""Applying cdiffs: from the files of one version of a database to those of the next.

The rules are those of libclamav_rust/src/cdiff.rs (docs/protocol.md 5.2). Whether the result is right is
decided later, by the hashes in ``.info``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from clamproxy.formats.cdiff import SCRIPT_LIMIT, Add, Close, Command, Delete, Move, Open, Replace, Unlink
from clamproxy.formats.info import INFO_LIMIT
from clamproxy.formats.signatures import InvalidObject

REWRITE_LIMIT = 4 * 2**30
"""The most bytes that a script may have rewritten: each file of the largest database some ten times."""

STEP_LIMIT = 10_000
"""How often a script may open, move or delete a file; it usually opens each file once."""

_BLOCK = 2**20
_FEW_LINES = 16  # up to this many lines are found one by one
_LINE_GUESS = 128  # bytes; most lines of signatures are shorter
_SCRATCH = ".patched"  # no file of a database begins with a dot


def apply_commands(commands: Iterator[Command], directory: Path) -> None:
    """Carry out a script on the files of an unpacked database.

    Memory holds the edits of one file, but never a file. Files are not searched line by line, and a file
    that only grows is not rewritten.

    Args:
        commands: the script, from `clamproxy.formats.cdiff.iter_commands`.
        directory: where the files are; after a failure they are no longer usable.

    Raises:
        InvalidObject: the script is damaged, or doesn't fit these files.
        OSError: the files cannot be read or written.
    """
    rewriting = _Rewriting()
    for step in _steps(commands):
        try:
            rewriting.add(_rewritten(step, directory))
            _carry_out(step, directory)
        except FileNotFoundError as error:
            name = Path(str(error.filename)).name
            raise InvalidObject(f"script changes {name}, which does not exist") from None


def patch_info(info: bytes, commands: Iterator[Command], database: str) -> bytes:
    """Apply a script to the ``.info`` member of one version, which gives that of the next version.

    No other file is needed. So the signed list of contents of every later version follows from a base and
    the cdiffs alone.

    Args:
        info: the ``.info`` member of the version that the script starts from.
        commands: the script, from `clamproxy.formats.cdiff.iter_commands`.

    Raises:
        InvalidObject: the script is damaged, or doesn't fit this ``.info``.
    """
    name = f"{database}.info"
    rewriting = _Rewriting()
    for step in _steps(_touching(commands, name), INFO_LIMIT):
        if not isinstance(step, _Edits):
            raise InvalidObject(f"script moves or deletes {name}")
        rewriting.add(len(info))
        info = _edited(info, step)
        if len(info) > INFO_LIMIT:
            raise InvalidObject(f"script makes {name} longer than {INFO_LIMIT} bytes")
    return info


class _Rewriting:
    """Counts the bytes that a script has rewritten: a short one could rewrite a long file a million times."""

    def __init__(self) -> None:
        self._left = REWRITE_LIMIT

    def add(self, size: int) -> None:
        """Note that a file is to be rewritten.

        Raises:
            InvalidObject: that would be too much.
        """
        self._left -= size
        if self._left < 0:
            raise InvalidObject(f"script rewrites more than {REWRITE_LIMIT} bytes")


@dataclass(slots=True)
class _Edits:
    """What happens to a file between OPEN and CLOSE."""

    name: str
    changes: dict[int, Delete | Replace] = field(default_factory=dict)
    """Changes by line number in the original file; of two changes to a line the later one counts."""
    additions: bytearray = field(default_factory=bytearray)

    def note(self, command: Add | Delete | Replace, longest_addition: int) -> None:
        """Note one more change.

        Raises:
            InvalidObject: the file would grow by too many bytes.
        """
        if not isinstance(command, Add):
            self.changes[command.number] = command
            return
        self.additions += command.line + b"\n"
        if len(self.additions) > longest_addition:
            raise InvalidObject(f"script adds more than {longest_addition} bytes to {self.name}")


def _steps(
    commands: Iterator[Command], longest_addition: int = SCRIPT_LIMIT
) -> Iterator[_Edits | Move | Unlink]:
    """The script as whole steps, in order."""
    edits: _Edits | None = None
    count = 0
    for command in commands:
        if isinstance(command, Open | Move | Unlink) != (edits is None):
            raise InvalidObject(f"{type(command).__name__} in the wrong place of the script")
        if edits is None and (count := count + 1) > STEP_LIMIT:
            raise InvalidObject(f"script of more than {STEP_LIMIT} steps")
        if isinstance(command, Move | Unlink):
            yield command
        elif isinstance(command, Open):
            edits = _Edits(command.name)
        elif edits is not None:
            if isinstance(command, Close):
                yield edits
                edits = None
            else:
                edits.note(command, longest_addition)
    if edits is not None:
        raise InvalidObject(f"script ends while {edits.name} is open")


def _touching(commands: Iterator[Command], name: str) -> Iterator[Command]:
    touched = False
    for command in commands:
        match command:
            case Open() | Unlink():
                touched = command.name == name
            case Move():
                touched = name in (command.source, command.target)
        if touched:
            yield command


def _rewritten(step: _Edits | Move | Unlink, directory: Path) -> int:
    """How many bytes of a file a step copies; additions alone copy none."""
    match step:
        case _Edits() if step.changes:
            return (directory / step.name).stat().st_size
        case Move():
            return (directory / step.source).stat().st_size
    return 0


def _carry_out(step: _Edits | Move | Unlink, directory: Path) -> None:
    match step:
        case _Edits():
            _edit_file(directory, step)
        case Move():
            _move_lines(directory, step)
        case Unlink():
            (directory / step.name).unlink()


def _edit_file(directory: Path, edits: _Edits) -> None:
    path = directory / edits.name
    if edits.changes:
        scratch = directory / _SCRATCH
        with path.open("rb") as source, scratch.open("wb") as target:
            _change_lines(source, target, edits.changes)
        scratch.replace(path)
    if edits.additions:
        # Like cdiff.rs: a missing file is created, and an existing one may end without a newline.
        with path.open("ab") as target:
            target.write(edits.additions)


def _edited(contents: bytes, edits: _Edits) -> bytes:
    if edits.changes:
        target = io.BytesIO()
        _change_lines(io.BytesIO(contents), target, edits.changes)
        contents = target.getvalue()
    return contents + edits.additions


def _change_lines(source: BinaryIO, target: BinaryIO, changes: dict[int, Delete | Replace]) -> None:
    lines = _LineReader(source)
    next_number = 1
    for number in sorted(changes):
        change = changes[number]
        lines.copy(number - next_number, target)
        lines.expect(change.prefix)
        lines.copy(1, None)
        next_number = number + 1
        if isinstance(change, Replace):
            target.write(change.line + b"\n")
    lines.copy_rest(target)


def _move_lines(directory: Path, move: Move) -> None:
    # cdiff.rs looks for the last line only after the first one, so a range of one line would never end.
    if move.first >= move.last or move.source == move.target:
        raise InvalidObject("script moves lines in a way that cannot be carried out")
    source, target, scratch = directory / move.source, directory / move.target, directory / _SCRATCH
    # Not "ab", which would create a target that is missing: cdiff.rs demands that it exists.
    with source.open("rb") as file, target.open("r+b") as moved, scratch.open("wb") as rest:
        moved.seek(0, io.SEEK_END)
        lines = _LineReader(file)
        lines.copy(move.first - 1, rest)
        lines.expect(move.first_prefix)
        lines.copy(move.last - move.first, moved)
        lines.expect(move.last_prefix)
        lines.copy(1, moved)
        lines.copy_rest(rest)
    scratch.replace(source)


class _LineReader:
    """Copies the lines of a file by number, in large blocks, without looking at each line."""

    def __init__(self, file: BinaryIO) -> None:
        """Start at the first line.

        Raises:
            InvalidObject: the last line has no newline.
        """
        self._file = file
        self._block = b""
        self._start = 0  # offset in the block of what hasn't been copied yet
        self._newlines = 0  # how many there are from there on
        if file.seek(0, io.SEEK_END):
            file.seek(-1, io.SEEK_END)
            if file.read(1) != b"\n":
                raise InvalidObject("script edits a file whose last line does not end")
        file.seek(0)

    def expect(self, prefix: bytes) -> None:
        """Check how the next line begins; it remains the next line.

        Raises:
            InvalidObject: it begins differently, or the file has ended.
        """
        while len(self._block) - self._start < max(1, len(prefix)):
            self._read_block()
        # A prefix holds no newline, so it cannot match across two lines.
        if not self._block.startswith(prefix, self._start):
            raise InvalidObject("script edits a line that does not begin as it should")

    def copy(self, count: int, target: BinaryIO | None) -> None:
        """Copy the next lines, or skip them if there is no target.

        Raises:
            InvalidObject: the file has fewer lines.
        """
        while count > self._newlines:
            count -= self._newlines
            self._take(len(self._block), self._newlines, target)
            self._read_block()
        if count:
            self._take(self._offset_behind(count), count, target)

    def copy_rest(self, target: BinaryIO) -> None:
        self._take(len(self._block), self._newlines, target)
        while block := self._file.read(_BLOCK):
            target.write(block)

    def _read_block(self) -> None:
        block = self._file.read(_BLOCK)
        if not block:
            raise InvalidObject("script edits a line past the end of a file")
        self._block = self._block[self._start :] + block
        self._newlines += block.count(b"\n")
        self._start = 0

    def _take(self, end: int, newlines: int, target: BinaryIO | None) -> None:
        if target is not None:
            target.write(memoryview(self._block)[self._start : end])
        self._start = end
        self._newlines -= newlines

    def _offset_behind(self, count: int) -> int:
        """The offset in the block after `count` lines, all of which must be in the block."""
        start, end = self._start, len(self._block)
        # Narrow down by counting newlines, so that only the last few are looked for one by one.
        while count > _FEW_LINES:
            middle = min((start + end) // 2, start + count * _LINE_GUESS)
            newlines = self._block.count(b"\n", start, middle)
            if newlines < count:
                count -= newlines
                start = middle
            else:
                end = middle
        for _ in range(count):
            start = self._block.index(b"\n", start) + 1
        return start
