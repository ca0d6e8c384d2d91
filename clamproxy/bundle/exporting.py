"""Writing a bundle."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clamproxy import __version__
from clamproxy.bundle.contents import CHANGED, BundleSelection, Contents, Reporter
from clamproxy.bundle.manifest import (
    MANIFEST_NAME,
    BundleError,
    ListedDatabase,
    ListedObject,
    Manifest,
    sha256_of,
)
from clamproxy.bundle.tar import PIECE, TarError, write_end, write_member
from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.files import is_named, sync, sync_directory, try_lock
from clamproxy.objects import ObjectId


def write_bundle(
    store: Store, selection: BundleSelection, stream: BinaryIO, progress: Reporter | None = None
) -> Manifest:
    """Write what was selected. Blocks; each object is read twice, to hash it and to write it.

    Args:
        stream: where the bundle goes; it need not be seekable.
        progress: is told how many bytes have been read.

    Raises:
        BundleError: nothing is selected, or an object has been dropped from the cache or replaced.
        OSError: the stream can't be written to.
    """
    if not selection.databases:
        raise BundleError("there is nothing to export")
    progress = progress or Reporter()
    progress.begin(_bytes_to_read(selection))
    signatures = tuple(_list_objects(store, selection.signatures, progress))
    manifest = Manifest(
        format=2 if signatures else 1,  # 1 whenever possible, for older versions of clamproxy
        created=int(time.time()),
        clamproxy=__version__,
        databases={name: _list(store, part, progress) for name, part in selection.databases.items()},
        signatures=signatures,
    )
    data = manifest.to_bytes()
    write_member(stream, MANIFEST_NAME, len(data), [data], manifest.created)
    for listed in manifest.objects.values():
        with _open(store, listed.object_id) as published:
            if published.size != listed.size or published.metadata.sha256 not in (None, listed.sha256):
                raise BundleError(CHANGED)  # a signature that didn't belong to its file is replaced
            written_at = listed.last_modified or manifest.created
            try:
                write_member(stream, listed.name, listed.size, _pieces(published, progress), written_at)
            except TarError as error:
                raise BundleError(f"the bundle {error}") from error
    write_end(stream)
    stream.flush()
    return manifest


def _bytes_to_read(selection: BundleSelection) -> Mapping[str, int]:
    """Bytes by database; each object is read twice."""
    totals = Counter({name: sum(part.sizes.values()) for name, part in selection.databases.items()})
    for signature, size in selection.signatures.items():
        totals[signature.database] += size
    return {name: 2 * total for name, total in totals.items()}


def _list(store: Store, part: Contents, progress: Reporter) -> ListedDatabase:
    listed = _list_objects(store, part.sizes, progress)
    return ListedDatabase(version=part.version, base=part.base, objects=tuple(listed))


def _list_objects(store: Store, sizes: Mapping[ObjectId, int], progress: Reporter) -> Iterator[ListedObject]:
    for object_id, size in sizes.items():
        yield _list_object(store, object_id, size, progress)


def _list_object(store: Store, object_id: ObjectId, size: int, progress: Reporter) -> ListedObject:
    with _open(store, object_id) as published:
        if published.size != size:  # an empty patch, for example, leads to no version
            raise BundleError(CHANGED)
        digest = sha256_of(_pieces(published, progress))
        if published.metadata.sha256 not in (None, digest):
            raise BundleError(f"{object_id.file_name} is damaged; run `clamproxy verify --repair`")
        return ListedObject(
            name=object_id.file_name,
            size=published.size,
            sha256=digest,
            version=object_id.version,
            built=published.metadata.built_at,
            last_modified=published.metadata.last_modified,
        )


def _open(store: Store, object_id: ObjectId) -> PublishedFile:
    published = store.open(object_id)
    if published is None:
        raise BundleError(f"{object_id.file_name} has just been dropped from the cache: try again")
    return published


def _pieces(published: PublishedFile, progress: Reporter) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(published.fileno(), PIECE, offset):
        offset += len(piece)
        progress.advance(published.object_id.database, len(piece))
        yield piece


@contextmanager
def written_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears complete or not at all, whatever happens in the meantime.

    Args:
        path: the file; until the end, the data are in ``<path>.part``. A pipe or device is just written to.

    Raises:
        BundleError: another process is writing the same file.
        OSError: it can't be written.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    part = path.with_name(f"{path.name}.part")
    with part.open("ab") as file:
        if not try_lock(file):
            raise BundleError(f"{part}: another process is writing it")
        # Between opening and locking it, another process may have renamed it.
        if not is_named(file, part):
            raise BundleError(f"{part}: another process has just written it")
        try:
            file.truncate(0)
            yield file
            sync(file)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)
