"""Identification: what a file is if no row of the index names it. Each result is verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from clamproxy.cache.published import Metadata
from clamproxy.files import file_sha256
from clamproxy.formats.cdiff import CdiffContainer
from clamproxy.formats.codesign import verify_sign
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.formats.verification import verify
from clamproxy.objects import Kind, ObjectId

_DATABASES = ("daily", "main", "bytecode", "safebrowsing", "test", "valhalla")
"""The databases to which a nameless file may belong."""


def identify(path: Path, keys: TrustedKeys) -> ObjectId | None:
    """The object in a file without a row, by its name or content, verified; else None. Blocks.

    A signature counts only beside the file that it signs.
    """
    for object_id in _candidates(path):
        with suppress(InvalidObject, OSError):
            verify(path, object_id, keys)
            if object_id.kind.is_signature:
                # By itself, a signature proves nothing.
                signed = path.with_name(object_id.signed.file_name)
                with path.open("rb") as file, signed.open("rb") as content:
                    verify_sign(file, object_id, keys.roots, content)
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
    """The metadata that a verified file itself gives. Blocks: reads all of it.

    Raises:
        OSError: it can't be read.
    """
    status = path.stat()
    header = None
    if object_id.kind in (Kind.CVD, Kind.CLD):
        with path.open("rb") as file:
            header = file.read(HEADER_SIZE).decode("ascii", "replace")
    return Metadata(status.st_size, status.st_mtime, header=header, sha256=file_sha256(path))


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
