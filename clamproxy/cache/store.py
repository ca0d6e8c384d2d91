"""The store: published objects, partial files and quarantine below one directory.

    index/        diskcache: rows, and the published files
    partial/      transfers that are under way or were interrupted
    quarantine/   what failed verification, with the reason

Reads are quick enough for the event loop (SQLite in WAL mode: readers never wait for
writers). Whatever writes, syncs or deletes blocks, and belongs into a thread.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from clamproxy.cache.index import (
    FinishedFile,
    get_number,
    get_text,
    open_index,
    open_value,
    sync_directory,
)
from clamproxy.cache.published import Metadata, PublishedFile
from clamproxy.cache.retention import is_spared, over_limit, superseded
from clamproxy.objects import Kind, ObjectId

logger = logging.getLogger(__name__)

QUARANTINE_LIMIT = 5
"""Rejected files that are kept for a look; each may be as large as main.cvd."""

_OBJECT_PREFIX = "object/"
_NEWEST_PREFIX = "newest/"
_NOTE_PREFIX = "note/"
_COUNTER_PREFIX = "counter/"


class Store:
    """Objects, notes and counters on disk. Safe to share between threads and processes."""

    def __init__(self, directory: Path, *, tidy: bool = True) -> None:
        """Open or create the store. Blocks for some milliseconds.

        Args:
            directory: the cache directory.
            tidy: repair what a crash may have left, unless another process has the store open.

        Raises:
            OSError: the directory can't be used.
        """
        self.directory = directory
        self.partials = directory / "partial"
        self._quarantine = directory / "quarantine"
        for path in (directory, self.partials, self._quarantine, directory / "index"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever can write here can choose what the site's scanners load.
        directory.chmod(0o700)
        self._lock = (directory / "owners.lock").open("ab")
        try:
            alone = tidy and _lock_alone(self._lock)
            self._index = open_index(directory / "index", may_replace=alone)
            if alone:
                self._repair()
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except BaseException:
            self._lock.close()
            raise

    def disconnect(self) -> None:
        """Close the database connection of this thread."""
        self._index.close()

    def close(self) -> None:
        """Close the database connection of this thread and leave the directory's owners."""
        self.disconnect()
        self._lock.close()

    # Objects

    def open(self, object_id: ObjectId) -> PublishedFile | None:
        """An object for reading, or None if the cache doesn't hold it. Quick."""
        found = open_value(self._index, _OBJECT_PREFIX + object_id.file_name)
        if found is None:
            return None
        file, tag = found
        metadata = Metadata.from_json(tag)
        if metadata is None or os.fstat(file.fileno()).st_size != metadata.size:
            file.close()
            return None
        return PublishedFile(object_id, metadata, file)

    def has(self, object_id: ObjectId) -> bool:
        """Whether the cache holds an object, by the index alone. Quick."""
        return _OBJECT_PREFIX + object_id.file_name in self._index

    def link(self, object_id: ObjectId, target: Path) -> bool:
        """Give a published object another name outside of the cache, or copy it there. Blocks.

        Args:
            object_id: the object.
            target: the new name, which nobody has; readable by all, writable by nobody.

        Returns:
            Whether the cache holds the object.

        Raises:
            OSError: the file can't be put there.
        """
        published = self.open(object_id)
        if published is None:
            return False
        with published:
            published.link(target)
        return True

    def holds(self, object_id: ObjectId) -> bool:
        """The same, by its file too, which may have been lost. Quick."""
        published = self.open(object_id)
        if published is not None:
            published.close()
        return published is not None

    def open_newest(self, database: str) -> PublishedFile | None:
        """The newest CVD of a database, or None. Quick."""
        version = get_text(self._index, _NEWEST_PREFIX + database)
        if version is None or not version.isdecimal():
            return None
        return self.open(ObjectId(database, int(version), Kind.CVD))

    def newest_version(self, database: str) -> int | None:
        """The version of the newest CVD of a database, or None. Quick."""
        newest = self.open_newest(database)
        if newest is None:
            return None
        with newest:
            return newest.object_id.version

    def reached_version(self, database: str) -> int | None:
        """The version that clients get to: the newest CVD's, or that of the last patch after it.

        None if there is no CVD. Opens each of these patches: some milliseconds for a hundred.
        """
        version = self.newest_version(database)
        while version is not None and self._leads_on(ObjectId(database, version + 1, Kind.CDIFF)):
            version += 1
        return version

    def _leads_on(self, cdiff: ObjectId) -> bool:
        """Whether a cdiff is here and isn't empty: an empty one says to take the whole CVD (trap 15)."""
        published = self.open(cdiff)
        if published is None:
            return False
        with published:
            return published.size > 0

    def publish(self, object_id: ObjectId, path: Path, metadata: Metadata) -> None:
        """Move a verified file into the cache: synced, then linked, then made known. Blocks.

        An object that is there already stays as it is: objects are immutable.
        """
        present = self.open(object_id)
        if present is not None:
            present.close()
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            self._insert(object_id, FinishedFile(path, metadata.size), metadata)
        path.unlink(missing_ok=True)

    def _insert(self, object_id: ObjectId, file: FinishedFile, metadata: Metadata) -> None:
        with self._index.transact(retry=True):
            key = _OBJECT_PREFIX + object_id.file_name
            self._index.set(key, file, tag=metadata.to_json(), retry=True)
            newest = self.newest_version(object_id.database) or 0
            if object_id.kind is Kind.CVD and object_id.version > newest:
                self._index.set(_NEWEST_PREFIX + object_id.database, str(object_id.version), retry=True)

    def databases(self) -> set[str]:
        """The databases of which there is anything. Takes milliseconds."""
        return {object_id.database for object_id in self.object_ids()}

    def sizes(self) -> dict[ObjectId, int]:
        """Every object and its size in bytes. Takes milliseconds for a thousand objects."""
        return {object_id: metadata.size for object_id, metadata in self._contents().items()}

    def _contents(self) -> dict[ObjectId, Metadata]:
        """Every object whose file is there."""
        contents: dict[ObjectId, Metadata] = {}
        for object_id in self.object_ids():
            published = self.open(object_id)
            if published is not None:
                with published:
                    contents[object_id] = published.metadata
        return contents

    def collect_garbage(self, keep_cdiffs: int, size_limit: int, *, spare_for: float = 0.0) -> list[ObjectId]:
        """Drop what no client asks for, then what doesn't fit. Blocks.

        Args:
            keep_cdiffs: see `superseded`.
            size_limit: bytes.
            spare_for: seconds for which patches and signatures stay in any case after they came.

        Returns:
            The dropped objects. Who reads one of them goes on reading: descriptors stay valid.
        """
        contents, now = self._contents(), time.time()
        spared = {
            object_id
            for object_id, metadata in contents.items()
            if is_spared(object_id, now - metadata.fetched_at, spare_for)
        }
        sizes = {object_id: metadata.size for object_id, metadata in contents.items()}
        dropped = sorted(superseded(sizes, keep_cdiffs, spared))
        for object_id in dropped:
            del sizes[object_id]
        dropped += over_limit(sizes, size_limit, spared)
        for object_id in dropped:
            self.drop(object_id)
        return dropped

    def drop(self, object_id: ObjectId) -> None:
        """Forget an object and delete its file. Blocks. Who reads it goes on reading."""
        with self._index.transact(retry=True):
            newest = get_text(self._index, _NEWEST_PREFIX + object_id.database)
            if object_id.kind is Kind.CVD and newest == str(object_id.version):
                self._point_at_next_newest(object_id)
        # Not in that transaction: diskcache would delete the file while others still see the row.
        self._index.delete(_OBJECT_PREFIX + object_id.file_name, retry=True)

    def _point_at_next_newest(self, going: ObjectId) -> None:
        """Find the newest CVD of a database but the one that is about to go."""
        database = going.database
        versions = [
            one.version
            for one in self.object_ids()
            if one.database == database and one.kind is Kind.CVD and one != going
        ]
        key = _NEWEST_PREFIX + database
        if versions:
            self._index.set(key, str(max(versions)), retry=True)
        else:
            self._index.delete(key, retry=True)

    def object_ids(self) -> Iterator[ObjectId]:
        """What the index has, whether its file can be read or not."""
        for key in self._index:
            if key.startswith(_OBJECT_PREFIX):
                try:
                    yield ObjectId.parse(key.removeprefix(_OBJECT_PREFIX))
                except ValueError:
                    logger.warning("Unknown key in the index: %r", key)

    def _repair(self) -> None:
        """After a crash or a lost file: forget what can't be read, point at what is there."""
        sizes = self.sizes()
        for object_id in list(self.object_ids()):
            if object_id not in sizes:
                self.drop(object_id)
        newest: dict[str, int] = {}
        for object_id in sizes:
            if object_id.kind is Kind.CVD:
                newest[object_id.database] = max(object_id.version, newest.get(object_id.database, 0))
        for key in list(self._index):
            if key.startswith(_NEWEST_PREFIX):
                self._index.delete(key, retry=True)
        for database, version in newest.items():
            self._index.set(_NEWEST_PREFIX + database, str(version), retry=True)

    # Quarantine

    def quarantine(self, name: str, path: Path, reason: str) -> None:
        """Put a rejected file aside for a look. Blocks.

        Args:
            name: of the object that it was meant to be.
            path: the file; it is moved.
            reason: why, one line.
        """
        target = self._quarantine / f"{name}.{time.time_ns()}"
        path.replace(target)
        target.with_name(f"{target.name}.reason").write_text(f"{reason}\n")
        rejected = sorted(self.quarantined(), key=lambda file: file.suffix)  # the time of its rejection
        for old in rejected[:-QUARANTINE_LIMIT]:
            old.unlink(missing_ok=True)
            old.with_name(f"{old.name}.reason").unlink(missing_ok=True)
        sync_directory(self._quarantine)

    def quarantined(self) -> list[Path]:
        """The rejected files that are still there."""
        return [path for path in self._quarantine.iterdir() if path.suffix != ".reason"]

    # Notes: small JSON values that survive a restart

    def note(self, key: str) -> Any:
        """A value that was noted, or None. Quick."""
        text = get_text(self._index, _NOTE_PREFIX + key)
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return None

    def notes(self, prefix: str) -> dict[str, Any]:
        """All notes below a prefix, by the rest of their key."""
        whole = _NOTE_PREFIX + prefix
        keys = [key.removeprefix(_NOTE_PREFIX) for key in self._index if key.startswith(whole)]
        return {key.removeprefix(prefix): self.note(key) for key in keys}

    def set_note(self, key: str, value: Any) -> None:
        """Note a JSON value; None removes it. Blocks."""
        if value is None:
            self._index.delete(_NOTE_PREFIX + key, retry=True)
        else:
            self._index.set(_NOTE_PREFIX + key, json.dumps(value), retry=True)

    # Counters

    def add_to_counters(self, amounts: dict[str, int]) -> None:
        """Add to counters, all at once. Blocks."""
        with self._index.transact(retry=True):
            for name, amount in amounts.items():
                key = _COUNTER_PREFIX + name
                self._index.set(key, (get_number(self._index, key) or 0) + amount, retry=True)

    def counters(self) -> dict[str, int]:
        """The counters as last written."""
        keys = [key for key in self._index if key.startswith(_COUNTER_PREFIX)]
        return {key.removeprefix(_COUNTER_PREFIX): get_number(self._index, key) or 0 for key in keys}


def _lock_alone(lock: IO[bytes]) -> bool:
    """Whether no other process has the store open; from then on, none can open it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
