"""Responses of feeds on disk: the bodies as they arrived, and a text file for each.

    <key>.<sha256>   a body; its name holds the beginning of its digest
    <key>.json       the `StoredResponse`, written after the body is synced; names the body
    *.part           a body that is arriving
    *.tmp            a text file that is being written; both are locked, as others may use the directory

A crash leaves the old pair, the new pair, or files that no entry names, which are swept. Several processes
use the directory: what one stores, all others see when they next look. It is locked while one changes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.given import Given
from clamproxy.feeds.listing import Listing
from clamproxy.feeds.sharing_rules import ResponseHead
from clamproxy.feeds.spool import FeedsFullError, Spool
from clamproxy.files import Stamp, lock, remove_abandoned, replacing, sync_directory
from clamproxy.storage.sealing import seal, unseal

logger = logging.getLogger(__name__)

OVERHEAD = 4096
"""Bytes that an entry uses besides its body."""
MOST = 10_000
"""Entries that are stored; clients choose the URLs."""
_TOUCH_INTERVAL = 600.0
"""Seconds between two updates on the disk that say an entry is in use."""
_CHUNK = 1024 * 1024
_BODY = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}")
_UNFINISHED = (".part", ".tmp")
"""What the names of bodies and of records end with until they are complete."""


class FeedStore:
    """All stored responses. Thread-safe; methods that write block, and belong in a thread.

    Args:
        directory: for the files.
        size_limit: bytes that they may use.
        later: runs a function in a thread.
        clock: gives Unix seconds.
    """

    def __init__(
        self,
        directory: Path,
        size_limit: int,
        later: Callable[[Callable[[], object]], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.given = Given(directory / "given")
        self._listing = Listing(directory)
        self._directory = directory
        self._size_limit = size_limit
        self._later = later
        self._clock = clock
        self._lock = threading.RLock()  # never held while anything is synced to the disk
        self._writing = threading.RLock()
        self._entries: dict[str, StoredResponse] = {}
        """Least recently used first."""
        self._stored = 0
        self._arriving = 0
        self._stamps: dict[str, Stamp] = {}
        """Of the text files as they were last read or written, by key."""
        self._scanned_at = 0
        """When the directory had last changed before its names were read, in its own nanoseconds."""
        self._touched: dict[str, float] = {}
        self._sound: set[str] = set()
        """Names of bodies that this process has written or checked."""

    def load(self) -> None:
        """Read the entries, drop damaged ones, and sweep up what a crash left. Blocks.

        Raises:
            OSError: the directory can't be used.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
        except OSError:
            if not self._directory.is_dir():  # otherwise it is read-only, and its content is served
                raise
        with self._exclusively():
            self.catch_up()
            with self._lock:
                self._sweep()
                self._evict()

    def catch_up(self) -> None:
        """See which entries other processes have stored or dropped. Takes milliseconds for a thousand."""
        changed_at = _changed_at(self._directory)
        if changed_at == self._scanned_at:
            return
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 -- there may be thousands
        except OSError:
            return
        keys = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        with self._lock:
            for key in self._entries.keys() - keys:
                self._forget(key)
            unknown = keys - self._entries.keys()
        for key in sorted(unknown, key=lambda key: _used_at(self._note(key))):
            self.get(key)
        self._scanned_at = changed_at

    def get(self, key: str) -> StoredResponse | None:
        """An entry as it is now, whichever process stored it. Quick."""
        with self._lock:
            self._refresh(key)
            return self._entries.get(key)

    def among(self, keys: Iterable[str]) -> list[str]:
        """Those of some keys under which something may be stored or given to clients. Quick."""
        stored, given = self._listing.names(), self.given.names()
        if stored is None or given is None:
            return list(keys)
        return [key for key in keys if f"{key}.json" in stored or key in given]

    def _refresh(self, key: str) -> None:
        try:
            status = os.stat(f"{self._directory}/{key}.json")  # noqa: PTH116 -- called all the time
        except FileNotFoundError:
            self._forget(key)
            return
        except OSError:
            return  # what is known goes on to be served
        stamp = status.st_ino, status.st_mtime_ns, status.st_size
        if stamp == self._stamps.get(key):
            return
        before, entry = self._entries.get(key), self._read(self._note(key))
        self._stamps[key] = stamp
        if entry is None:
            self._forget(key)
        elif before is not None and before.body_name == entry.body_name:
            # What this process has noted may not be written yet.
            until = max(before.replaced_until, entry.replaced_until)
            self._add(replace(entry, replaced_until=until))
        else:
            self._add(entry)

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._stored -= entry.size + OVERHEAD
        self._stamps.pop(key, None)
        self._touched.pop(key, None)

    def open(self, entry: StoredResponse) -> int | None:
        """A descriptor of an entry's body; None if it is gone. The entry counts as used now."""
        try:
            descriptor = os.open(self._directory / entry.body_name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.drop(entry)
            return None
        if os.fstat(descriptor).st_size != entry.size:
            os.close(descriptor)
            logger.warning(
                "A cached file from %s was truncated on the disk, and has been dropped.", entry.place
            )
            self.drop(entry)
            return None
        with self._lock:
            if self._holds(entry):
                self._entries[entry.key] = self._entries.pop(entry.key)
            now = self._clock()
            touch = now - self._touched.get(entry.key, 0.0) >= _TOUCH_INTERVAL
            if touch:
                self._touched[entry.key] = now
        if touch:
            self._later(lambda: _touch(self._note(entry.key)))
        return descriptor

    def is_checked(self, entry: StoredResponse) -> bool:
        """Whether `check` has nothing to do."""
        return entry.body_name in self._sound

    def distrust(self, entry: StoredResponse) -> None:
        """Note that a body could not be read, so that `check` looks at it again."""
        self._sound.discard(entry.body_name)

    def check(self, entry: StoredResponse) -> bool:
        """Check a body, perhaps stored by an earlier process; drop it and return False if damaged. Blocks."""
        digest = hashlib.sha256()
        with suppress(OSError), (self._directory / entry.body_name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() == entry.sha256:
            self._sound.add(entry.body_name)
            return True
        logger.warning("A cached file from %s was damaged, and has been dropped.", entry.place)
        self.drop(entry)
        return False

    def create(self) -> Spool:
        """Create a file for a body that is going to arrive.

        Raises:
            OSError: for example, the disk is full.
        """
        self.catch_up()  # what others have stored counts as well
        return Spool(self, self._directory / f"{secrets.token_hex(16)}.part")

    def publish(
        self, spool: Spool, key: str, place: str, head: ResponseHead, selection: dict[str, str]
    ) -> StoredResponse:
        """Store a complete body. Blocks.

        Raises:
            OSError: it can't be written.
        """
        os.fsync(spool.descriptor)
        with self._exclusively():
            old = self.get(key)
            same = old is not None and old.sha256 == spool.sha256
            entry = StoredResponse(
                key,
                place,
                head,
                selection,
                spool.have,
                spool.sha256,
                # A feed without validators sends the same body again and again.
                old.obtained_at if old is not None and same else head.received_at,
                old.replaced_until if old is not None and same else 0.0,
            )
            spool.path.replace(self._directory / entry.body_name)
            self._sound.add(entry.body_name)
            try:
                self._write(entry)
            except OSError:
                self._unlink_unless_named(entry)
                raise
            sync_directory(self._directory)
            with self._lock:
                spool.give_back()
                self._add(entry)
                self._evict()
            if old is not None and not same:
                self._unlink(old.body_name)
            self.given.forget(key, head.received_at)
            return entry

    def renew(self, entry: StoredResponse, head: ResponseHead) -> StoredResponse | None:
        """Give a stored response a new head after a 304; None if it is gone. Blocks.

        Raises:
            OSError: the directory can't be used.
        """
        return self._change(entry, lambda current: replace(current, head=head))

    def sent(self, key: str, obtained_at: float) -> None:
        """Call this when a client has been sent the body that was obtained then, whether to its end or not.

        If it has been replaced in the meantime, the client's file will look newer than the replacement.
        """
        current = self.get(key)
        if current is None or current.obtained_at <= obtained_at:
            return
        until = self._clock()
        changed = replace(current, replaced_until=until)
        with self._lock:
            if self._entries.get(key) is not current:
                return
            self._entries[key] = changed
        self._later(lambda: self._change(changed, lambda entry: replace(entry, replaced_until=until)))

    def drop(self, entry: StoredResponse) -> None:
        with self._lock:
            self._refresh(entry.key)
            if not self._holds(entry):
                return
            self._forget(entry.key)
            self._unlink(f"{entry.key}.json")
            self._unlink(entry.body_name)

    def make_room(self, length: int) -> None:
        """Count arriving bytes; the least recently used responses make room for them.

        Raises:
            FeedsFullError: dropping all stored responses would not make enough room.
        """
        with self._lock:
            if self._arriving + length > self.largest:
                raise FeedsFullError("larger than feeds.size_limit")
            self._arriving += length
            self._evict()

    def give_back(self, length: int) -> None:
        """Count `length` bytes as arriving no longer: they are stored now, or have been deleted."""
        with self._lock:
            self._arriving -= length

    @property
    def largest(self) -> int:
        """Bytes that a body may have."""
        return self._size_limit - OVERHEAD

    @property
    def size(self) -> int:
        """Bytes that are stored."""
        return self._stored

    def __len__(self) -> int:
        return len(self._entries)

    def _change(
        self, entry: StoredResponse, change: Callable[[StoredResponse], StoredResponse]
    ) -> StoredResponse | None:
        with self._exclusively():
            current = self.get(entry.key)
            if current is None or not self._holds(entry):
                return None
            changed = change(current)
            try:
                self._write(changed)
            except OSError as error:  # a full disk, say: then only this process knows
                logger.warning(
                    "The record of a file from %s can't be written: %s", entry.place, error.strerror
                )
            with self._lock:
                if not self._holds(entry):
                    self._unlink(f"{entry.key}.json")
                    return None
                self._entries[entry.key] = changed
            return changed

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """No other thread and no other process changes an entry in the meantime. Blocks."""
        with self._writing:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock(descriptor)
                yield
            finally:
                os.close(descriptor)

    def _holds(self, entry: StoredResponse) -> bool:
        """Whether this entry is the stored one, apart from its head."""
        current = self._entries.get(entry.key)
        return current is not None and current.body_name == entry.body_name

    def _add(self, entry: StoredResponse) -> None:
        old = self._entries.pop(entry.key, None)
        self._stored += entry.size - (old.size if old else -OVERHEAD)
        self._entries[entry.key] = entry

    def _evict(self) -> None:
        while self._entries and (
            self._stored + self._arriving > self._size_limit or len(self._entries) > MOST
        ):
            self.drop(next(iter(self._entries.values())))

    def _read(self, path: Path) -> StoredResponse | None:
        try:
            entry = StoredResponse.from_json(unseal(path.stem, path.read_text()) or "")
            sound = path.stem == entry.key
            if sound and (self._directory / entry.body_name).stat().st_size == entry.size:
                return entry
        except (OSError, ValueError):
            pass
        logger.warning("A damaged record of a feed has been dropped.")
        with suppress(OSError):
            path.unlink()
        return None

    def _sweep(self) -> None:
        named = {entry.body_name for entry in self._entries.values()}
        for path in self._directory.iterdir():
            if _BODY.fullmatch(path.name) is not None and path.name not in named:
                with suppress(OSError):
                    path.unlink()
            elif path.suffix in _UNFINISHED:
                remove_abandoned(path)

    def _write(self, entry: StoredResponse) -> None:
        with replacing(self._note(entry.key), suffix=".tmp") as file:
            file.write(seal(entry.key, entry.to_json()).encode())
            file.flush()
            status = os.fstat(file.fileno())
        with self._lock:
            self._stamps[entry.key] = status.st_ino, status.st_mtime_ns, status.st_size

    def _note(self, key: str) -> Path:
        return self._directory / f"{key}.json"

    def _unlink_unless_named(self, entry: StoredResponse) -> None:
        """Remove a new body whose record could not be written, unless the one that is there names it, too."""
        self.get(entry.key)
        if not self._holds(entry):
            self._unlink(entry.body_name)

    def _unlink(self, name: str) -> None:
        self._sound.discard(name)
        with suppress(OSError):
            (self._directory / name).unlink()


def _touch(path: Path) -> None:
    with suppress(OSError):
        os.utime(path)


def _changed_at(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
