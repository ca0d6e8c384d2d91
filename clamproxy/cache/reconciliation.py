"""Reconciliation: brings index and files together again, after a crash or the loss of either.

Each file shows what it is, so the index can be rebuilt from the files. Each is verified first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from clamproxy.cache import layout
from clamproxy.cache.identification import identify, metadata_of
from clamproxy.cache.index import Index
from clamproxy.cache.published import open_published
from clamproxy.cache.rows import OBJECT_PREFIX, IndexRow, object_key
from clamproxy.files import sync_directory
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.objects import ObjectId

logger = logging.getLogger(__name__)


def reconcile(index: Index, root: Path, keys: TrustedKeys, *, alone: bool) -> None:
    """Forget lost files, add files without a row or remove them, and put all files in their places.

    Blocks: verifies the files that it adds.

    Args:
        index: the rows; afterwards, each has its file.
        root: the cache directory.
        keys: whose signatures count.
        alone: whether no other process is about to publish: its file is there before its row.
    """
    known = _objects(index)
    spoilt = _forget_lost(index, root, known)
    if not alone and index.was_complete:
        return
    named = {layout.locate(root, one, row.filename) for one, row in known.items()}
    found: dict[ObjectId, IndexRow] = {}
    for path in _unnamed(root, named):
        if path in named:  # a file that was found has just replaced it
            continue
        object_id = None if path in spoilt else identify(path, keys)
        if object_id is not None and object_id not in known and object_id not in found:
            with suppress(OSError):
                text = metadata_of(path, object_id).to_json()
                move = layout.move if alone else layout.name_in_row
                if (filename := move(root, object_id, path)) is not None:
                    found[object_id] = IndexRow(text, filename)
                    named.add(layout.locate(root, object_id, filename))
        elif alone and os.access(path, os.R_OK):  # otherwise it is unknown what the file is
            with suppress(OSError):
                path.unlink()
    if found:
        index.change_later({object_key(object_id): row for object_id, row in found.items()})
        logger.warning("Files that were missing from the index, verified and added: %d.", len(found))
    if alone:
        _take_over(index, root, known)
        layout.tidy(root)


def _forget_lost(index: Index, root: Path, known: dict[ObjectId, IndexRow]) -> set[Path]:
    """Forget the objects whose files are gone, or have another size than before.

    Args:
        known: all objects; afterwards, those that are left.

    Returns:
        The files of these objects. A signature would verify on its own, truncated or not.
    """
    spoilt: dict[Path, ObjectId] = {}
    for object_id, row in known.items():
        path = layout.locate(root, object_id, row.filename)
        with suppress(OSError):  # a file that can't be read now is not lost
            published = open_published(object_id, path, row.text)
            if published is not None:
                published.close()
                continue
            logger.warning(
                "%s was missing or truncated, and has been dropped from the cache.", object_id.file_name
            )
            spoilt[path] = object_id
    for object_id in spoilt.values():
        del known[object_id]
    index.change_later({object_key(object_id): None for object_id in spoilt.values()})
    return set(spoilt)


def _unnamed(root: Path, named: set[Path]) -> list[Path]:
    """The files that no row names, by whichever of their names."""
    unnamed = [path for path in layout.scan(root) if path not in named]
    # Only now, because there are usually none: it takes longer than all else for each file.
    resolved = {os.path.realpath(path) for path in named} if unnamed else set[str]()
    return [path for path in unnamed if os.path.realpath(path) not in resolved]


def _take_over(index: Index, root: Path, known: Mapping[ObjectId, IndexRow]) -> None:
    """Move the files of earlier versions to their places: first by renaming, then in their rows.

    If this is interrupted between the two, the next start finds them in either place.
    """
    moved: dict[ObjectId, IndexRow] = {}
    for object_id, row in known.items():
        if row.filename is not None and layout.is_former(row.filename, object_id):
            path = layout.locate(root, object_id, row.filename)
            with suppress(OSError):  # on a read-only disk, they are served from their old places
                moved[object_id] = IndexRow(row.text, layout.move(root, object_id, path))
    with suppress(OSError):
        for directory in {(root / row.filename).parent for row in moved.values() if row.filename}:
            sync_directory(directory)
    if moved:
        index.change({object_key(object_id): row for object_id, row in moved.items()})
        logger.info("Moved from %s to %s: %d objects.", layout.INDEX, layout.OBJECTS, len(moved))


def _objects(index: Index) -> dict[ObjectId, IndexRow]:
    objects = {}
    keys = index.keys(OBJECT_PREFIX)
    for key, row in zip(keys, index.get_all(keys), strict=True):
        with suppress(ValueError):  # not the name of an object; dropped when it is listed
            if row is not None:
                objects[ObjectId.parse(key.removeprefix(OBJECT_PREFIX))] = row
    return objects
