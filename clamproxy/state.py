"""Where records are, and how those of earlier versions get there: they were kept in the cache."""

from __future__ import annotations

import errno
import logging
import sqlite3
from pathlib import Path

from clamproxy.cache.owners import claim
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.files import replacing
from clamproxy.fleet.table import FILE_NAME as FLEET
from clamproxy.releases.holds import FILE_NAME as HOLDS
from clamproxy.releases.holds import Holds, HoldsError, find_holds, merge
from clamproxy.site_files.ignoring import HISTORY as IGNORED
from clamproxy.storage.records import FILE_NAME as COUNTERS
from clamproxy.storage.records import Records
from clamproxy.storage.records_file import copy_file

logger = logging.getLogger(__name__)

_SUFFIX = "-state"
_DATABASES = (FLEET, COUNTERS)


def state_directory(settings: Settings) -> Path:
    """The directory of the records: as configured, else next to the cache, else in it. Creates nothing."""
    if settings.state.directory is not None:
        return settings.state.directory
    beside = _beside(settings)
    return beside if beside.is_dir() else settings.cache.directory


def open_store(settings: Settings) -> Store:
    """Open the cache with its records for a command, without tidying up. Blocks for some milliseconds.

    Raises:
        OSError: the cache directory can't be used.
    """
    return Store(settings.cache.directory, tidy=False, records=Records(state_directory(settings)))


def directory_for_changes(settings: Settings) -> Path:
    """The directory of the records for a command, which may come before the first start.

    A gateway that is running may have had no place beside the cache: then, no other directory is made now.

    Raises:
        OSError: see `make_state_directory`.
    """
    directory = state_directory(settings)
    is_used = any((directory / name).exists() for name in (*_DATABASES, HOLDS, IGNORED))
    return directory if is_used else make_state_directory(settings)


def make_state_directory(settings: Settings) -> Path:
    """The directory of the records, created if it doesn't exist.

    Raises:
        OSError: the configured one can't be created, and not because the disk is full or read-only; or it is
            to be in a cache directory that others need.
    """
    configured, cache = settings.state.directory, settings.cache.directory
    directory = configured or _beside(settings)
    claim(cache, directory)
    try:
        directory.mkdir(mode=0o700, parents=configured is not None, exist_ok=True)
    except OSError as error:
        if configured is None:
            # With a nonsensical path the cache can't be created either, and reports that.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR):
                reason = f"{directory} can't be made ({error.strerror})"
                logger.warning("Records stay in the cache directory: %s; set state.directory.", reason)
            claim(cache, cache)
            return cache
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
    return directory


def move_records(store: Store, cache: Path) -> None:
    """Move counters and machines that are in the cache to where they belong. Blocks.

    Nothing is lost or counted twice if this is killed at any point: the next start continues.

    Args:
        store: the cache with its records.
        cache: the cache directory.
    """
    for name in _DATABASES:
        _move_file(cache / name, store.records.directory / name)
    store.hand_over_counters()


def move_choices(state: Path, cache: Path) -> Holds | None:
    """Move what somebody has held or ignored while the records had to be in the cache. Blocks.

    What there is in both places is merged.

    Args:
        state: the state directory.
        cache: the cache directory.

    Returns:
        What was held, if the disk doesn't let it be moved; None if the state directory tells.

    Raises:
        HoldsError: nobody knows what is held. A bad release may be, so nothing must be served.
    """
    if state == cache:
        return None
    _move_history(cache / IGNORED, state / IGNORED)
    if (held := find_holds(cache)) is None:
        return None
    try:
        merge(state, held)
    except HoldsError as error:
        if (state / HOLDS).exists():
            raise HoldsError(f"what is held can't be moved from {cache}: {error}") from error
        logger.warning("What is held can't be moved to %s: %s", state, error)
        return held
    try:
        (cache / HOLDS).unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:  # it is merged again at the next start, which changes nothing
        logger.warning("%s can't be removed: %s", cache / HOLDS, error)
    else:
        logger.info("What is held has been moved to %s.", state)
    return None


def _move_history(old: Path, new: Path) -> None:
    try:
        former = old.read_bytes().splitlines(keepends=True)
        later = new.read_bytes().splitlines(keepends=True) if new.exists() else []
        if missing := [line for line in former if line not in later]:
            with replacing(new) as file:
                file.writelines([*missing, *later])
        old.unlink()
    except FileNotFoundError:
        pass  # there is none, or another process was faster
    except OSError as error:
        logger.warning("%s can't be moved to %s: %s", old, new.parent, error)


def _move_file(old: Path, new: Path) -> None:
    if old == new or not old.exists() or new.exists():
        return
    try:
        copy_file(old, new)
        for suffix in ("", "-wal", "-shm"):
            old.with_name(old.name + suffix).unlink(missing_ok=True)
    except (sqlite3.Error, OSError) as error:
        logger.warning("%s can't be moved to %s: %s", old, new.parent, error)
    else:
        logger.info("%s has been moved to %s.", old, new.parent)


def _beside(settings: Settings) -> Path:
    cache = settings.cache.directory
    return cache.with_name(cache.name + _SUFFIX)
