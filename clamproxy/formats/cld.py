"""CLD files: building them from a CVD and cdiffs as freshclam does, and verifying them.

A CLD's header carries no signature. The signed ``.info`` inside repeats the header and lists every other
file with its hash, so everything except COPYING is proven (docs/protocol.md 4.4 and 5.3, trap 42).
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from clamproxy.formats.cdiff import CdiffContainer, iter_commands
from clamproxy.formats.cvd import read_info
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.info import INFO_LIMIT, Info, verify_info
from clamproxy.formats.members import (
    BLOCK_SIZE,
    COPYING,
    MEMBER_LIMIT,
    UNPACKED_LIMIT,
    Member,
    iter_members,
    member_header,
    open_payload,
)
from clamproxy.formats.patching import apply_commands
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.objects import ObjectId

COPYING_LIMIT = 2**20
"""The most bytes that COPYING may have, which no signature covers; ClamAV's has 18 KiB."""

_PIECE = 256 * 2**10
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_GZIP_HEADER = re.compile(rb"\x1f\x8b\x08\x00{5}[\x00\x02\x04]\x03")  # what zlib writes at any level


def build_cld(
    base: BinaryIO,
    patches: Iterable[BinaryIO],
    expected: ObjectId,
    workspace: Path,
    target: Path,
    keys: TrustedKeys,
    *,
    level: int,
) -> CvdHeader:
    """Build the CLD of a version from an earlier version and the cdiffs in between.

    Memory use stays at a few MiB. The workspace needs room for the unpacked database, and for its largest
    file once more.

    Args:
        base: a verified CVD or CLD, seekable.
        patches: the verified cdiffs in order, from the version after the base's on; seekable.
        expected: the database and the version to build.
        workspace: an empty directory; what is left in it afterwards is of no use.
        target: the file to write; it doesn't exist after a failure.
        keys: the keys that the signature of ``.info`` must verify with.
        level: zlib's compression level; 0 for a plain tar, which is what freshclam writes.

    Returns:
        The header of the CLD.

    Raises:
        InvalidObject: base and patches do not lead to the expected version.
        OSError: files cannot be read or written.
    """
    database = expected.database
    _unpack(base, workspace)
    version = CvdHeader.parse(_read_at(base, 0, HEADER_SIZE)).version
    for patch in patches:
        version += 1
        _apply(patch, ObjectId(database, version, expected.kind), workspace)
    info = _verified_info(workspace, expected, keys)
    try:
        with target.open("wb") as file:
            file.write(info.header.raw)
            tar = _tar(workspace, info, database)
            for piece in _compressed(tar, level) if level else tar:
                file.write(piece)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return info.header


def verify_cld(file: BinaryIO, expected: ObjectId, keys: TrustedKeys) -> None:
    """Prove that a file is a CLD of the expected database and version.

    CLDs of the same version hold the same files but differ in their bytes: each builder orders and
    compresses the files in its own way. Nothing else may differ. COPYING, the licence, is the only
    content that is not signed.

    Args:
        file: the whole file, seekable; its position is moved.
        keys: the keys that the signature of ``.info`` must verify with.

    Raises:
        InvalidObject: it is something else, or damaged.
    """
    header = CvdHeader.parse(_read_at(file, 0, HEADER_SIZE))
    if header.version != expected.version:
        raise InvalidObject(f"header names version {header.version}, not {expected.version}")
    info = verify_info(read_info(file, expected.database), expected.database, keys)
    if header.raw != info.header.raw:
        raise InvalidObject("header differs from the first line of .info")
    # The optional fields of a gzip header would be bytes that nothing proves.
    beginning = _read_at(file, HEADER_SIZE, 10)
    if not beginning.startswith(COPYING.encode()) and not _GZIP_HEADER.fullmatch(beginning):
        raise InvalidObject("payload begins neither with COPYING nor with a usual gzip header")
    seen: set[str] = set()
    for member in iter_members(open_payload(file), exact=True):
        if member.name in seen or (member.name == COPYING) != (not seen):
            raise InvalidObject(f"{member.name} in the wrong place of the payload")
        seen.add(member.name)
        _check_member(member, info, expected.database)
    if missing := info.files.keys() - seen:
        raise InvalidObject(f"{min(missing)} is missing")


def _check_member(member: Member, info: Info, database: str) -> None:
    if member.name == COPYING:
        if member.size > COPYING_LIMIT:
            raise InvalidObject(f"{COPYING} of {member.size} bytes")
    elif member.name != f"{database}.info":  # verified already, with its signature
        for _ in _checked(member.pieces(), member.name, member.size, info):
            pass


def _checked(pieces: Iterable[bytes], name: str, size: int, info: Info) -> Iterator[bytes]:
    """Pass on the contents of a file; raise at their end if they are not what ``.info`` lists."""
    listed = info.files.get(name)
    if listed is None:
        raise InvalidObject(f"{name} is not listed in .info")
    if size != listed.size:
        raise InvalidObject(f"{name} has {size} bytes, not {listed.size}")
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != listed.sha256:
        raise InvalidObject(f"{name} differs from its hash in .info")


def _unpack(base: BinaryIO, workspace: Path) -> None:
    total = 0
    for member in iter_members(open_payload(base)):
        total += member.size
        if total > UNPACKED_LIMIT:  # before anything of it is written
            raise InvalidObject(f"payload of more than {UNPACKED_LIMIT} bytes")
        if not _FILE_NAME.fullmatch(member.name) or (workspace / member.name).exists():
            raise InvalidObject("unusual or repeated name in the payload")
        with (workspace / member.name).open("xb") as file:
            file.writelines(member.pieces())


def _apply(patch: BinaryIO, result: ObjectId, workspace: Path) -> None:
    container = CdiffContainer.parse(patch)
    if container.version != result.version:
        raise InvalidObject(f"patch to version {container.version} instead of {result.version}")
    try:
        apply_commands(iter_commands(patch, container, result.database), workspace)
        _check_extent(workspace)
    except InvalidObject as error:
        raise InvalidObject(f"patch to version {result.version}: {error}") from None


def _check_extent(workspace: Path) -> None:
    sizes = [entry.stat().st_size for entry in workspace.iterdir()]
    if sum(sizes) > UNPACKED_LIMIT or len(sizes) > MEMBER_LIMIT:
        raise InvalidObject(f"it leads to {len(sizes)} files of {sum(sizes)} bytes")


def _verified_info(workspace: Path, expected: ObjectId, keys: TrustedKeys) -> Info:
    """The ``.info`` of the unpacked files; it matches their names, but their contents are not checked yet."""
    path = workspace / f"{expected.database}.info"
    if not path.is_file() or path.stat().st_size > INFO_LIMIT:
        raise InvalidObject(f"no {path.name}, or a huge one")
    info = verify_info(path.read_bytes(), expected.database, keys)
    if info.header.version != expected.version:
        raise InvalidObject(f".info names version {info.header.version}, not {expected.version}")
    present = {entry.name for entry in workspace.iterdir()}
    if strays := present ^ {COPYING, path.name, *info.files}:
        raise InvalidObject(f"{min(strays)} is either missing or not listed in .info")
    return info


def _tar(workspace: Path, info: Info, database: str) -> Iterator[bytes]:
    """The tar of a CLD in freshclam's order; where freshclam has none, sorted by name."""
    unlisted = [COPYING, f"{database}.info"]
    config = f"{database}.cfg"
    for name in unlisted + sorted(info.files, key=lambda name: (name != config, name)):
        with (workspace / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            yield member_header(name, size)
            pieces = _pieces(file)
            yield from pieces if name in unlisted else _checked(pieces, name, size, info)
            yield bytes(-size % BLOCK_SIZE)


def _compressed(pieces: Iterable[bytes], level: int) -> Iterator[bytes]:
    """One gzip member without a timestamp: the same contents always give the same bytes."""
    compressor = zlib.compressobj(level, wbits=zlib.MAX_WBITS | 16)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
