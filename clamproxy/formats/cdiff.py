"""cdiff files: patches from one version of a database to the next.

A cdiff is ``ClamAV-Diff:<version>:<size>:``, a gzip stream with a script, ``:``, and a signature of
everything before that colon (docs/protocol.md 5.1, libclamav_rust/src/cdiff.rs). An empty file is a cdiff
too: with it the vendor tells clients to take the whole CVD (trap 15).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self

from clamproxy.formats.inflating import inflated
from clamproxy.formats.members import belongs_to
from clamproxy.formats.signatures import FilePart, InvalidObject, TrustedKeys
from clamproxy.objects import MAX_VERSION, ObjectId

CDIFF_MAGIC = b"ClamAV-Diff:"
"""The first bytes of every cdiff that isn't empty."""

SCRIPT_LIMIT = 128 * 2**20
"""The most bytes that an unpacked script may have; real ones have tens of MiB at most."""

COMMAND_LIMIT = 1_000_000
"""The most lines that a script may have. Until a file is closed, memory holds up to 150 bytes for each."""

LINE_LIMIT = 16 * 2**20
"""The longest line that a script may have, in bytes."""

_FOOTER_WINDOW = 350  # cdiff.rs: MAX_DSIG_SIZE; the last colon lies within these bytes
_HEADER = re.compile(rb"ClamAV-Diff:([0-9]{1,10}):([0-9]{1,10}):")
_HEADER_LIMIT = 64  # more than the longest match of `_HEADER`
# What freshclam 1.5 accepts. Up to 1.4 it refuses "_", and then takes the whole CVD (docs/protocol.md 5.2).
_FILE_NAME = re.compile(rb"[A-Za-z0-9._]{1,99}")
_LINE_NUMBER = re.compile(rb"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class CdiffContainer:
    """Where the parts of a cdiff are, and what its header says."""

    version: int
    """The version that the patch leads to."""
    script_size: int
    """Size of the unpacked script in bytes, as the header gives it; clients don't check it."""
    script_start: int
    """Offset of the gzip stream."""
    script_end: int
    """Offset of the colon after the gzip stream; the signature covers all bytes before it."""
    dsig: bytes
    """The signature in ClamAV's own base-64 digits."""

    @classmethod
    def parse(cls, file: BinaryIO) -> Self:
        """Read the header and the footer of a cdiff that isn't empty.

        Args:
            file: the whole file, seekable; its position is moved.

        Raises:
            InvalidObject: this is not a cdiff.
        """
        file.seek(0)
        header = file.read(_HEADER_LIMIT)
        if not header.startswith(CDIFF_MAGIC):
            raise InvalidObject(f"does not begin with {CDIFF_MAGIC.decode()}")
        match = _HEADER.match(header)
        if match is None or not 1 <= int(match[1]) <= MAX_VERSION:
            raise InvalidObject("malformed header")
        size = file.seek(0, os.SEEK_END)
        if size < _FOOTER_WINDOW:  # refused by cdiff.rs as well (docs/protocol.md 5.1)
            raise InvalidObject(f"cut off after {size} bytes")
        file.seek(size - _FOOTER_WINDOW)
        _, colon, dsig = file.read(_FOOTER_WINDOW).rpartition(b":")
        script_end = size - len(dsig) - 1
        if not colon or script_end <= match.end():
            raise InvalidObject("no script followed by a signature")
        return cls(int(match[1]), int(match[2]), match.end(), script_end, dsig)


@dataclass(frozen=True, slots=True)
class Open:
    """Begin to edit a file."""

    name: str


@dataclass(frozen=True, slots=True)
class Add:
    """Append a line to the open file, after all other edits."""

    line: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a line of the open file; it must begin with the prefix."""

    number: int
    prefix: bytes


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace a line of the open file; it must begin with the prefix."""

    number: int
    prefix: bytes
    line: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Carry out the edits of the open file."""


@dataclass(frozen=True, slots=True)
class Move:
    """Move the lines from `first` to `last`, both included, to the end of another file."""

    source: str
    target: str
    first: int
    first_prefix: bytes
    last: int
    last_prefix: bytes


@dataclass(frozen=True, slots=True)
class Unlink:
    """Delete a file."""

    name: str


type Command = Open | Add | Delete | Replace | Close | Move | Unlink


def iter_commands(file: BinaryIO, container: CdiffContainer, database: str) -> Iterator[Command]:
    """The commands of a cdiff's script, one at a time; line numbers count from 1.

    Args:
        file: the whole file, seekable; not to be used for anything else until the iterator has ended.
        container: what `CdiffContainer.parse` found in the file.
        database: the database whose files the script may touch.

    Raises:
        InvalidObject: the script is damaged, or belongs to another database. The commands before the
            damage have been yielded by then.
    """
    for line in _iter_lines(FilePart(file, container.script_start, container.script_end)):
        if line.startswith(b"#"):
            continue
        yield _parse_command(line, database)


def verify_cdiff(file: BinaryIO, expected: ObjectId, keys: TrustedKeys) -> None:
    """Prove that a file is the cdiff of the expected database and version.

    Clients compare neither the name nor the version. A well-signed cdiff under the wrong name makes each
    of them fetch a whole CVD (docs/protocol.md 5.2), so the gateway checks both.

    Args:
        file: the whole file, seekable; its position is moved.
        keys: the keys that the signature must verify with.

    Raises:
        InvalidObject: it is something else, or damaged.
    """
    if file.seek(0, os.SEEK_END) == 0:
        return  # the vendor's signal to take the whole CVD (trap 15)
    container = CdiffContainer.parse(file)
    if container.version != expected.version:
        raise InvalidObject(f"header names version {container.version}, not {expected.version}")
    signed = FilePart(file, 0, container.script_end)
    digest = hashlib.file_digest(signed, "sha256").digest()
    if not keys.cdiff.verifies_sha256(digest, container.dsig):
        raise InvalidObject("wrong signature")
    # Parsing to the end checks every command, and that each file name belongs to the database.
    for _ in iter_commands(file, container, expected.database):
        pass


def _iter_lines(script: FilePart) -> Iterator[bytes]:
    stream = inflated(script, SCRIPT_LIMIT, "script")
    count = 0
    while line := stream.readline(LINE_LIMIT):
        count += 1
        if count > COMMAND_LIMIT:
            raise InvalidObject(f"script of more than {COMMAND_LIMIT} lines")
        if not line.endswith(b"\n"):
            raise InvalidObject("script with an endless or unfinished line")
        yield line[:-1]


def _parse_command(line: bytes, database: str) -> Command:
    command, space, rest = line.partition(b" ")
    match command, space:
        case b"CLOSE", b"":
            return Close()
        case b"ADD", b" ":
            return Add(rest)
        case b"OPEN", b" ":
            return Open(_file_name(rest, database))
        case b"UNLINK", b" ":
            return Unlink(_file_name(rest, database))
        case b"DEL", b" ":
            number, prefix = _arguments(rest, 2, command)
            return Delete(_line_number(number), _first_word(prefix))
        case b"XCHG", b" ":
            number, prefix, new = _arguments(rest, 3, command)
            return Replace(_line_number(number), prefix, new)
        case b"MOVE", b" ":
            return _parse_move(rest, database)
    # This includes empty lines, which cdiff.rs refuses too (docs/protocol.md 5.2).
    raise InvalidObject(f"unknown command {command[:20].decode('ascii', 'backslashreplace')!r} in the script")


def _parse_move(rest: bytes, database: str) -> Move:
    source, target, first, first_prefix, last, last_prefix = _arguments(rest, 6, b"MOVE")
    return Move(
        _file_name(source, database),
        _file_name(target, database),
        _line_number(first),
        first_prefix,
        _line_number(last),
        _first_word(last_prefix),
    )


def _first_word(rest: bytes) -> bytes:
    # cdiff.rs: DelOp, MoveOp: a prefix ends at a space, and what follows it is ignored.
    return rest.partition(b" ")[0]


def _arguments(rest: bytes, count: int, command: bytes) -> list[bytes]:
    """Exactly `count` words; the last one is the whole rest of the line, spaces included."""
    words = rest.split(b" ", count - 1)
    if len(words) < count:
        raise InvalidObject(f"{command.decode()} with too few arguments in the script")
    return words


def _line_number(text: bytes) -> int:
    if not _LINE_NUMBER.fullmatch(text) or int(text) == 0:
        raise InvalidObject("malformed line number in the script")
    return int(text)


def _file_name(text: bytes, database: str) -> str:
    if not _FILE_NAME.fullmatch(text):
        raise InvalidObject("malformed file name in the script")
    name = text.decode("ascii")
    if not belongs_to(name, database):
        raise InvalidObject(f"script changes {name[:40]}, which is not a file of {database}")
    return name
