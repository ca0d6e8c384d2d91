"""The store: published objects, partial files and quarantine below one directory.

    index/          diskcache: rows
    objects/        published files, by database; see `layout`
    newest-proven/  the newest version of each database that was ever proven
    partial/        transfers that are under way or were interrupted
    quarantine/     what failed verification, with the reason
    build/          a directory for each file that is being made

Reads are quick enough for the event loop. Whatever writes, syncs or deletes blocks, and belongs in a
thread. Trouble with the disk stops neither: what can't be written waits in memory for `mend`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clamproxy.cache import layout
from clamproxy.cache.earlier_counters import earlier_counters, hand_over
from clamproxy.cache.held import HeldObjects, UnnamedPartial, is_small
from clamproxy.cache.index import Index
from clamproxy.cache.leftovers import clear
from clamproxy.cache.newest import NewestCvds
from clamproxy.cache.newest_proven import NewestProven
from clamproxy.cache.note_rows import NoteRows
from clamproxy.cache.owners import Owners
from clamproxy.cache.partial import PartialFile
from clamproxy.cache.published import Metadata, PublishedFile, open_published
from clamproxy.cache.quarantine import Quarantine
from clamproxy.cache.reconciliation import reconcile
from clamproxy.cache.retention import is_spared, to_drop, under_ceilings
from clamproxy.cache.rows import OBJECT_PREFIX, IndexRow, object_key
from clamproxy.files import file_sha256, identity_of, remove, sweep_unfinished, sync
from clamproxy.formats.signatures import CLAMAV_KEYS, TrustedKeys
from clamproxy.objects import Kind, ObjectId
from clamproxy.storage.condition import LEAST_SPACE, Condition, free_bytes, look, require_space
from clamproxy.storage.records import Records

logger = logging.getLogger(__name__)


class Store:
    """Objects, notes and counters on disk. Safe to share between threads and processes.

    Args:
        directory: the cache directory.
        tidy: whether to repair what a crash may have left, unless another process has the store open.
        records: where counters are; by default, in the cache directory as well.
        keys: whose signatures count; used here to verify files that the index doesn't know.
        hold: how many bytes of objects may be held in memory while the disk can't take them.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tidy: bool = True,
        records: Records | None = None,
        keys: TrustedKeys = CLAMAV_KEYS,
        hold: int = 0,
    ) -> None:
        """Open or create the store. Blocks for some milliseconds, or longer if the index must be made anew.

        Raises:
            OSError: the directory doesn't exist and can't be made.
        """
        self.directory = directory
        self.keys = keys
        self.partials = directory / layout.PARTIAL
        self.workspaces = directory / "build"
        self.condition = Condition(directory, "The cache directory")
        self.newest_proven = NewestProven(directory / layout.NEWEST_PROVEN, self.condition)
        self._quarantine = Quarantine(directory / layout.QUARANTINE)
        self.records = records or Records(directory)
        self._held = HeldObjects(hold)
        self.distrusted: set[ObjectId] = set()
        """Whose files could not be read; `Soundness` checks them. Event loop only."""
        self._refused: set[ObjectId] = set()
        """Whose files could not be opened because of trouble with the disk."""
        self._owners = Owners(directory, self.condition)
        try:
            alone = tidy and self._owners.is_alone()
            self._index = Index(directory / layout.INDEX, self.condition)
            self.noted = NoteRows(self._index)
            self._newest = NewestCvds(self._index, self._path, self.open)
            if tidy or not self._index.was_complete:
                reconcile(self._index, directory, keys, alone=alone)
            if tidy:
                sweep_unfinished(directory / layout.OBJECTS)
                self._index.mend()
                self._note_proven()
            if alone:
                clear(self.partials, self.workspaces, self.has)
            self._owners.join()
        except BaseException:
            self._owners.leave()
            raise

    def _note_proven(self) -> None:
        """Note what is here, for caches of earlier versions."""
        for object_id in self.object_ids():
            if object_id.kind is Kind.CVD:
                self.newest_proven.note(object_id.database, object_id.version)

    def disconnect(self) -> None:
        """Close the database connection of this thread."""
        self._index.disconnect()

    def close(self) -> None:
        """Close the database connections of this thread and leave the directory's owners."""
        self._index.close()
        self._held.close()
        self._owners.leave()

    # Trouble

    @property
    def index_damage(self) -> str | None:
        """What is wrong with the index, in one line; None if it is as it was written."""
        return self._index.damage

    def mend(self) -> None:
        """Write what waits, as soon as the disk takes it. Blocks."""
        try:
            for path in (self.partials, self._quarantine.directory, self.directory / layout.OBJECTS):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (require_space if self.condition.state is None else look)(self.directory)
            self.newest_proven.mend()
            for object_id in self._held:
                self._publish_held(object_id)
        except OSError as error:
            if not self.condition.failed(error):
                raise
            return
        if self._index.mend():
            layout.link_for_former(self.directory)
            # Else trouble with one file would end here and begin anew with the next look at it, all the time.
            if not any(map(self._is_refused, list(self._refused))):
                self.condition.recovered()

    def _is_refused(self, object_id: ObjectId) -> bool:
        """Whether the file of an object still can't be opened."""
        try:
            published = self.open_or_fail(object_id)
        except OSError:
            return True
        if published is not None:
            published.close()
        self._refused.discard(object_id)
        return False

    def _publish_held(self, object_id: ObjectId) -> None:
        held = self._held.open(object_id)
        if held is not None:
            with held:
                self._place(object_id, Path(f"/proc/self/fd/{held.fileno()}"), held.metadata)
            self._held.drop(object_id)

    def has_room(self, size: int) -> bool:
        """Whether the disk has room for `size` bytes. Quick."""
        return free_bytes(self.directory) >= size

    def open_partial(self, object_id: ObjectId, *, unnamed: bool = False) -> PartialFile:
        """The partial file of an object, not locked yet; in memory if it is small and the disk is in trouble.

        Args:
            unnamed: whether it should be in memory in any case, if it is small.

        Raises:
            OSError: the disk can't be written to.
        """
        is_tight = unnamed or self.condition.state is not None or not self.has_room(LEAST_SPACE)
        if not (is_tight and is_small(object_id)):
            try:
                self.partials.mkdir(mode=0o700, parents=True, exist_ok=True)
                return PartialFile.open(self.partials, object_id)
            except OSError as error:
                if not self.condition.failed(error) or not is_small(object_id):
                    raise
        return UnnamedPartial.create(object_id)

    # Objects

    def open(self, object_id: ObjectId) -> PublishedFile | None:
        """An object for reading, or None if the cache doesn't hold it. Quick."""
        try:
            return self.open_or_fail(object_id)
        except OSError as error:
            if not self.condition.failed(error):
                raise
            self._refused.add(object_id)
            return None

    def open_or_fail(self, object_id: ObjectId) -> PublishedFile | None:
        """The same for whom it matters why: None if there is no file, or one of another length. Quick.

        Raises:
            OSError: there is a file, but it can't be read.
        """
        if (held := self._held.open(object_id)) is not None:
            return held
        row = self._index.get(object_key(object_id))
        if row is None:
            return None
        return open_published(object_id, self._path(object_id, row), row.text, self.distrusted.add)

    def has(self, object_id: ObjectId) -> bool:
        """Whether the cache holds an object, according to the index alone. Quick."""
        return object_id in self._held or self._index.get(object_key(object_id)) is not None

    def file_of(self, object_id: ObjectId) -> str | None:
        """The path of an object's file, by the index alone; None if it has none. Quick."""
        row = None if object_id in self._held else self._index.get(object_key(object_id))
        return None if row is None else str(self._path(object_id, row))

    def generation(self) -> int:
        """A number that changes whenever any process may have published or dropped something. Quick."""
        return self._index.generation()

    def metadata(self, *object_ids: ObjectId) -> tuple[Metadata | None, ...]:
        """The metadata of objects as of one moment, by the index alone; None for those not here. Quick.

        As long as an object's metadata stays the same, so does the object: no process has dropped or
        replaced it.
        """
        rows = self._index.get_all(map(object_key, object_ids))
        known = tuple(None if row is None else Metadata.from_json(row.text) for row in rows)
        if not self._held:
            return known
        return tuple(
            self._held.metadata(object_id) or one for object_id, one in zip(object_ids, known, strict=True)
        )

    def link(self, object_id: ObjectId, target: Path) -> bool:
        """Give a published object another name outside the cache, or copy it there. Blocks.

        Args:
            target: the new name, which must not exist; readable by all, writable by nobody.

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
        """Like `has`, but also checks that the file hasn't been lost. Quick."""
        published = self.open(object_id)
        if published is not None:
            published.close()
        return published is not None

    # A ceiling limits what counts: the newest CVD is then the newest one up to that version.

    def open_newest(self, database: str, ceiling: int | None = None) -> PublishedFile | None:
        """Open the newest CVD of a database; None if there is none. Quick."""
        return self._newest.open(database, ceiling)

    def newest(self, database: str, ceiling: int | None = None) -> tuple[ObjectId, Metadata] | None:
        """The newest CVD of a database and its metadata; None if there is none. Quick."""
        return self._newest.known(database, ceiling)

    def newest_version(self, database: str, ceiling: int | None = None) -> int | None:
        """The version of the newest CVD of a database, or None. Quick."""
        newest = self._newest.known(database, ceiling)
        return None if newest is None else newest[0].version

    def reached_version(self, database: str, ceiling: int | None = None) -> int | None:
        """The version that clients can reach: the newest CVD's, or that of the last patch after it.

        None if there is no CVD. Opens each of these patches, which takes some milliseconds for a hundred.
        """
        version = self.newest_version(database, ceiling)
        while (
            version is not None
            and version != ceiling
            and self._leads_on(ObjectId(database, version + 1, Kind.CDIFF))
        ):
            version += 1
        return version

    def _leads_on(self, cdiff: ObjectId) -> bool:
        """Whether a cdiff is here and isn't empty; an empty one tells clients to fetch the CVD.

        Source: docs/protocol.md, trap 15.
        """
        published = self.open(cdiff)
        if published is None:
            return False
        with published:
            return published.size > 0

    def publish(self, object_id: ObjectId, path: Path, metadata: Metadata) -> None:
        """Move a verified file into the cache: sync it, link it, then make it known. Blocks.

        An object that is already there stays unchanged, because objects are immutable. While the disk
        can't be written to, a small object is held in memory.

        Raises:
            OSError: the disk can't be written to, and the object can't be held.
        """
        if object_id.kind is Kind.CVD:
            self.newest_proven.note(object_id.database, object_id.version)
        if not self.holds(object_id):
            try:
                self._place(object_id, path, metadata)
            except OSError as error:
                if not (self.condition.failed(error) and self._held.take(object_id, path, metadata)):
                    raise
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _place(self, object_id: ObjectId, path: Path, metadata: Metadata) -> None:
        with path.open("rb") as file:
            sync(file)
        known = replace(metadata, sha256=file_sha256(path))
        name = layout.place(self.directory, object_id, path)
        self._index.change({object_key(object_id): IndexRow(known.to_json(), name)})

    def databases(self) -> set[str]:
        """The databases of which anything is cached. Takes milliseconds."""
        return {object_id.database for object_id in self.object_ids()}

    def sizes(self) -> dict[ObjectId, int]:
        """All objects with their sizes in bytes. Takes milliseconds for a thousand objects."""
        return {object_id: metadata.size for object_id, metadata in self._contents().items()}

    def _contents(self) -> dict[ObjectId, Metadata]:
        """All objects whose files exist."""
        contents: dict[ObjectId, Metadata] = {}
        for object_id in self.object_ids():
            published = self.open(object_id)
            if published is not None:
                with published:
                    contents[object_id] = published.metadata
        return contents

    def collect_garbage(
        self,
        keep_cdiffs: int,
        size_limit: int,
        *,
        spare_for: float = 0.0,
        ceilings: Mapping[str, int] | None = None,
    ) -> list[ObjectId]:
        """Drop what no client asks for, then what doesn't fit. Blocks.

        Args:
            keep_cdiffs: how many cdiffs of each database are kept, the newest ones.
            size_limit: bytes.
            spare_for: seconds for which patches and signatures stay in any case after they arrived.
            ceilings: the highest version of a database that clients are shown, where that is limited.

        Returns:
            The dropped objects. Readers can go on reading them, because descriptors stay valid.
        """
        contents = self._contents()
        sizes = {object_id: metadata.size for object_id, metadata in contents.items()}
        now = time.time()
        spared = {one for one, known in contents.items() if is_spared(one, now - known.fetched_at, spare_for)}
        spared |= under_ceilings(sizes, ceilings or {})
        dropped = to_drop(sizes, keep_cdiffs, size_limit, spared)
        for object_id in dropped:
            self.drop(object_id)
        return dropped

    def drop(self, object_id: ObjectId) -> None:
        """Forget an object and delete its file. Blocks. Readers can go on reading it."""
        self._held.drop(object_id)
        row = self._index.get(object_key(object_id))
        path = None if row is None else self._path(object_id, row)
        dropped = None if path is None else identity_of(path)
        self._index.change({object_key(object_id): None})
        # Not before its row is gone for other processes, too; then one of them may have published it anew.
        if path is not None and identity_of(path) == dropped:
            remove(path)

    def object_ids(self) -> Iterator[ObjectId]:
        """What the index has, whether or not its file can be read, and what is held in memory."""
        yield from (held := list(self._held))
        for key in self._index.keys(OBJECT_PREFIX):
            try:
                object_id = ObjectId.parse(key.removeprefix(OBJECT_PREFIX))
            except ValueError:
                logger.warning("Unknown key in the index: %r", key)
                self._index.change_later({key: None})
            else:
                if object_id not in held:
                    yield object_id

    def _path(self, object_id: ObjectId, row: IndexRow) -> Path:
        return layout.locate(self.directory, object_id, row.filename)

    def note_digest(self, published: PublishedFile, sha256: str) -> None:
        """Save the digest of an object that an earlier version of clamproxy published. Quick."""
        key = object_key(published.object_id)
        row = self._index.get(key)
        if row is not None:
            known = replace(published.metadata, sha256=sha256)
            self._index.change_later({key: IndexRow(known.to_json(), row.filename)})

    # Quarantine

    def quarantine(self, name: str, path: Path, reason: str) -> None:
        """Move a rejected file to the quarantine, if the disk can be written to. Blocks."""
        try:
            self._quarantine.take(name, path, reason)
        except OSError as error:
            self.condition.failed(error)

    def quarantined(self) -> list[Path]:
        """The rejected files that are still there."""
        return self._quarantine.files()

    # Notes: see `noted` for more

    def note(self, key: str) -> Any:
        """A value that was noted, or None. Quick."""
        return self.noted.note(key)

    def notes(self, prefix: str) -> dict[str, Any]:
        """All notes below a prefix, by the rest of their key."""
        return self.noted.notes(prefix)

    def set_note(self, key: str, value: Any) -> None:
        """Save a JSON value; None removes it. Blocks."""
        self.noted.set_note(key, value)

    # Counters

    def add_to_counters(self, amounts: Mapping[str, int]) -> bool:
        """Add to counters, all at once; returns whether that could be written. Blocks."""
        return self.records.add(amounts)

    def counters(self) -> dict[str, int]:
        """The counters as last written, with those that still have to be handed over. Blocks."""
        return self.records.counters(earlier_counters(self._index))

    def hand_over_counters(self) -> None:
        """Give the records the counters that earlier versions kept in the index. Blocks."""
        hand_over(self._index, self.records)
