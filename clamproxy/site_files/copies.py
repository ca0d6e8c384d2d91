"""The published copies: which of them are intact, and which nobody needs any more."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clamproxy.files import file_sha256, sync_directory
from clamproxy.site_files.catalog import COPIES, Catalog, Edition, SiteFile, State

logger = logging.getLogger(__name__)

SPARED = 600.0
"""Seconds for which a copy is kept after it was replaced: other processes may still name it."""
CHECKS = "check-"
"""How the directories begin in which files are checked."""
_LOST = "its published copy is damaged or gone"


def path_of(place: Path, file: SiteFile) -> Path | None:
    """Where the published copy of a file is; None if nothing is published for it.

    Args:
        place: the directory of the catalog.
    """
    return None if file.served is None else place / COPIES / file.served.copy_name(file.name)


def without_lost(
    catalog: Catalog, place: Path, is_intact: Callable[[Path, Edition], bool], now: float
) -> Catalog:
    """The catalog without copies that were lost on the disk: their files are published again. Blocks.

    Args:
        place: the directory of the catalog.
        is_intact: `has_size`, which is quick, or `is_sound`.
    """
    for file in catalog.listed():
        path = path_of(place, file)
        if path is not None and file.served is not None and not is_intact(path, file.served):
            logger.warning("The published copy of %s is damaged or gone.", file.name)
            # `without` remembers its date.
            catalog = catalog.without(file.name).having(SiteFile(file.name, State.WAITING, now, _LOST))
    return catalog


def put(taken: Path, target: Path) -> None:
    """Give a checked file its place among the copies. Blocks."""
    taken.chmod(0o400)
    taken.replace(target)
    sync_directory(target.parent)


def is_sound(path: Path, edition: Edition) -> bool:
    try:
        return has_size(path, edition) and file_sha256(path) == edition.sha256
    except OSError:
        return False


def has_size(path: Path, edition: Edition) -> bool:
    try:
        return path.stat().st_size == edition.size
    except OSError:
        return False


def sweep(place: Path, catalog: Catalog) -> None:
    """Remove copies that nothing names any more, and what was left by checks that were killed."""
    named = {file.served.copy_name(file.name) for file in catalog.listed() if file.served is not None}
    old = time.time() - SPARED
    for entry in os.scandir(place / COPIES):
        with suppress(OSError):
            if entry.name not in named and entry.stat().st_ctime < old:
                Path(entry.path).unlink()
    for path in place.glob(f"{CHECKS}*"):
        with suppress(OSError):
            if path.stat().st_mtime < old:
                shutil.rmtree(path)
