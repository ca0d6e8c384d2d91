"""Reconciliation: index and files are brought together again, after a crash or a loss of either.

The files tell what they are, so the index can be made anew from them; each is verified before that.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from clamproxy.cache import object_files
from clamproxy.cache.index import Index
from clamproxy.cache.rows import OBJECT_PREFIX, IndexRow, object_key
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.objects import ObjectId

logger = logging.getLogger(__name__)


def reconcile(
    index: Index, directory: Path, keys: TrustedKeys, spoilt: Collection[str], *, alone: bool
) -> None:
    """Take in files without a row, or remove them. Blocks: reads and verifies each of them.

    Args:
        index: the rows; none is left that has no file.
        directory: where the files are.
        keys: whose signatures count.
        spoilt: files that are not as long as their rows said. A signature verifies by itself, cut or not.
        alone: whether no other process is about to publish: its file is there before its row.
    """
    if not alone and index.was_complete:
        return
    rows = _object_rows(index)
    named = {row.filename for row in rows.values()}
    found: dict[str, IndexRow | None] = {}
    for filename, _ in list(object_files.scan(directory)):
        if filename in named:
            continue
        path = directory / filename
        object_id = None if filename in spoilt else object_files.identify(path, keys)
        if object_id is not None and object_key(object_id) not in rows | found:
            with suppress(OSError):
                found[object_key(object_id)] = IndexRow(
                    object_files.metadata_of(path, object_id).to_json(), filename
                )
        elif alone:
            with suppress(OSError):
                path.unlink()
    if found:
        index.change_later(found)
        logger.warning("Files that were missing from the index, verified and added: %d.", len(found))
    if alone:
        _name(index, directory)
        object_files.remove_empty_directories(directory)


def _name(index: Index, directory: Path) -> None:
    """Give the files of earlier versions their names."""
    changes: dict[str, IndexRow | None] = {}
    old: list[Path] = []
    with suppress(OSError):
        for key, row in _object_rows(index).items():
            object_id = ObjectId.parse(key.removeprefix(OBJECT_PREFIX))
            if row.filename not in (None, object_files.file_name(object_id)) and object_files.stays_inside(
                row.filename
            ):
                path = directory / row.filename
                changes[key] = IndexRow(row.text, object_files.place(directory, object_id, path))
                old.append(path)
    if changes:
        index.change(changes)
        for path in old:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _object_rows(index: Index) -> dict[str, IndexRow]:
    return {key: row for key in index.keys(OBJECT_PREFIX) if (row := index.get(key)) is not None}
