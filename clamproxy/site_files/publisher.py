"""Publishes the site's files: looks into the directory again and again, checks what is new, and replaces it.

Everything is in the directory ``site-files`` of the state directory: the catalog, and beside it a copy of
each published file, which never changes. So a reader of the catalog finds the very content that it names. Of
several processes that share the directory, one publishes at a time, and the others read its catalog.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clamproxy.files import Stamp, stamp_of, try_lock
from clamproxy.site_files import copies
from clamproxy.site_files.catalog import (
    COPIES,
    FILE_NAME,
    Catalog,
    Edition,
    Identity,
    SiteFile,
    State,
)
from clamproxy.site_files.checking import CheckError, FileVerdict, check, find_clamscan
from clamproxy.site_files.collecting import ChangingError, FoundFile, copy, look_into
from clamproxy.site_files.file_names import IGNORED_SIGNATURES
from clamproxy.site_files.publication_dates import publication_date
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds between looks into the directory. A file counts once it is unchanged from one to the next."""
RETRY_AFTER = 60.0
"""Seconds until a file that could not be checked is checked again."""
LONGEST_LOOK = 10.0
"""Seconds until a directory counts as one that doesn't respond, as a network drive can."""
LONGEST_COPY = 300.0
"""Seconds for copying a file out of the directory."""
_LOCK = "lock"
_THREAD = "clamproxy-files"


class Publisher:
    """Owns the task that publishes. Event loop only.

    Args:
        directory: `files.directory`; None: nothing is published.
        records: the state directory.
    """

    def __init__(self, directory: Path | None, records: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._place = place_of(records)
        self._clock = clock
        self._catalog = Catalog()
        self._saved = self._catalog
        self._saved_as: Stamp | None = None
        """Identifies the catalog's file as it was read or written last."""
        self._seen: dict[str, Identity] = {}
        """The files as they were at the last look."""
        self._retry_at: dict[str, float] = {}
        self._reading: asyncio.Future[Any] | None = None
        """What reads the directory; it hangs for as long as a network drive does."""
        self._gave_way = False
        """Whether the last look left checks to the next one, in favour of the ignored signatures."""
        self._catching_up = asyncio.Lock()
        self._is_known = asyncio.Event()
        self._is_publishing = False
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    def start(self) -> None:
        if self._directory is not None:
            with suppress(Exception):  # the loop says why
                # What is known about the files; requests wait until the copies are proven.
                self._catalog = Catalog.load(self._place)
            self._task = asyncio.create_task(self._run(), name="publish the site's files")

    def stop(self) -> None:
        """Stop publishing; a check under way ends."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def ready(self) -> None:
        """Wait until it is known what is published, but neither for the directory nor for checks."""
        if self._task is not None:
            await self._is_known.wait()

    def path_of(self, file: SiteFile) -> Path | None:
        """Where the published copy of a file is; None if nothing is published for it."""
        return copies.path_of(self._place, file)

    async def _run(self) -> None:
        is_loaded = False
        while True:
            begun = time.monotonic()
            try:
                if not is_loaded:
                    await self._load()
                    is_loaded = True
                    self._is_known.set()
                await self.look()
                self._trouble = ""
            except Exception as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    logger.warning("The site's files can't be published: %s", error)
            self._is_known.set()
            await asyncio.sleep(max(0.0, begun + LOOK_EVERY - time.monotonic()))

    async def look(self) -> None:
        """Publish what is new since the last look, and withdraw what is gone.

        Raises:
            OSError: the state directory can't be used.
        """
        assert self._directory is not None  # noqa: S101
        directory, place = self._directory, self._place
        found: list[FoundFile] | None
        try:
            found, trouble = await self._read(lambda: look_into(directory, place), LONGEST_LOOK)
        except TimeoutError:
            found, trouble = [], f"{directory} doesn't respond"
        with _locked(place) as is_publisher:
            await self._read_catalog()
            self._is_known.set()
            if not is_publisher or found is None:
                return
            self._is_publishing = True
            try:
                await self._publish_all(found, trouble)
            finally:
                self._is_publishing = False

    async def _publish_all(self, found: list[FoundFile], trouble: str) -> None:
        await self._forget_lost_copies()
        self._note_trouble(trouble)
        if not trouble:
            self._withdraw({file.name for file in found})
            await self._take_in_turn(found)
            self._seen = {file.name: file.identity for file in found}
        if self._catalog is not self._saved:
            await self._save()

    async def catch_up(self) -> None:
        """Take over at once what another process has published: all of them serve the same. Quick."""
        place = self._place
        async with self._catching_up:  # hundreds may ask, and one thread is enough for all
            mark = stamp_of(place / FILE_NAME)
            if self._is_publishing or mark == self._saved_as:
                return
            with suppress(OSError):
                catalog = await in_thread(_THREAD, lambda: Catalog.load(place))
                if not self._is_publishing:
                    self._catalog = self._saved = catalog
                    self._saved_as = mark

    async def _read[T](self, function: Callable[[], T], longest: float) -> T:
        """Run a function that reads the directory, one at a time.

        Args:
            longest: seconds to wait for it.

        Raises:
            TimeoutError: it takes longer, or an earlier one still hangs.
        """
        hanging = self._reading
        if hanging is None or hanging.done():
            self._reading = reading = in_thread(_THREAD, function)
            reading.add_done_callback(asyncio.Future.exception)  # seen, though it may come too late
            await asyncio.wait({reading}, timeout=longest)
            if reading.done():
                return reading.result()
        else:
            await asyncio.wait({hanging}, timeout=longest)
        raise TimeoutError(errno.ETIMEDOUT, f"{self._directory} doesn't respond")

    async def _take_in_turn(self, found: list[FoundFile]) -> None:
        """Check files, but look again before the next check once one took long.

        The ignored signatures are urgent: they come first, and no check begins in the look that finds them
        changed. Checks that failed are repeated after all others, so that they hold nothing up.
        """
        begun, clamscan = time.monotonic(), find_clamscan()
        gave_way, self._gave_way = self._gave_way, False
        turns = sorted(
            found, key=lambda file: (file.name != IGNORED_SIGNATURES, self._retry_at.get(file.name, 0.0))
        )
        for file in turns:
            has_checked = await self._take(file, clamscan)
            if has_checked and time.monotonic() - begun >= LOOK_EVERY:
                return
            is_new = self._seen.get(file.name) != file.identity
            if file.name == IGNORED_SIGNATURES and is_new and not gave_way:
                self._gave_way = (
                    True  # only once in a row, or a file that always changes would stop all others
                )
                return

    # One file

    async def _take(self, found: FoundFile, clamscan: str | None) -> bool:
        """Decide what becomes of a file; returns whether that took a check."""
        entry = self._catalog.files.get(found.name)
        if found.skipped or found.problem:
            state, reason = (
                (State.SKIPPED, found.skipped) if found.skipped else (State.REFUSED, found.problem)
            )
            if entry is None or (entry.state, entry.reason) != (state, reason):
                self._decide(found, state, reason, entry.served if entry else None)
            return False
        if self._is_decided(found, entry, clamscan) or self._seen.get(found.name) != found.identity:
            return False
        try:
            await self._publish(found, entry, clamscan)
            self._retry_at.pop(found.name, None)
        except ChangingError:
            pass  # the next look sees it as it is then
        except (CheckError, OSError) as error:
            reason = str(error) if isinstance(error, CheckError) else (error.strerror or str(error))
            self._retry_at[found.name] = self._clock() + RETRY_AFTER
            if entry is None or (entry.state, entry.reason) != (State.WAITING, reason):
                self._decide(found, State.WAITING, reason, entry.served if entry else None)
        return True

    def _is_decided(self, found: FoundFile, entry: SiteFile | None, clamscan: str | None) -> bool:
        if entry is None or entry.source != found.identity:
            return False
        if entry.state is State.WAITING:
            # Not by a time that is further off: the clock was fast when the check failed.
            return 0 < self._retry_at.get(found.name, 0.0) - self._clock() <= RETRY_AFTER
        served = entry.served
        # With clamscan installed in the meantime, what could only be looked at is checked.
        return not (clamscan and entry.state is State.PUBLISHED and served and served.checked_by is None)

    async def _publish(self, found: FoundFile, entry: SiteFile | None, clamscan: str | None) -> None:
        """Check a file, and publish it if it is good.

        Raises:
            ChangingError: it is being written.
            CheckError: it can't be checked now.
            OSError: it can't be copied.
        """
        served = entry.served if entry is not None else None
        scratch = Path(
            await in_thread(_THREAD, lambda: tempfile.mkdtemp(prefix=copies.CHECKS, dir=self._place))
        )
        try:
            taken, directory = scratch / found.name, self._directory
            assert directory is not None  # noqa: S101
            digest = await self._read(lambda: copy(directory, found, taken), LONGEST_COPY)
            is_same = served is not None and served.sha256 == digest and served.checked_by is not None
            if is_same and entry is not None and entry.state is State.PUBLISHED:
                self._catalog = self._catalog.having(replace(entry, source=found.identity))
                return
            verdict = await check(taken, clamscan)
            if verdict.problem:
                # What was published without a check may turn out to be bad.
                good = served if served is not None and served.sha256 != digest else None
                self._decide(found, State.REFUSED, verdict.problem, good)
            else:
                edition = await self._edition(found, digest, served, verdict, taken)
                self._decide(found, State.PUBLISHED, verdict.remark, edition)
        finally:
            await in_thread(_THREAD, lambda: shutil.rmtree(scratch, ignore_errors=True))
        await self._save()

    async def _edition(
        self, found: FoundFile, digest: str, served: Edition | None, verdict: FileVerdict, taken: Path
    ) -> Edition:
        """What is served from now on: the same content keeps its date."""
        if served is not None and served.sha256 == digest:
            return replace(served, checked_by=verdict.checked_by)
        last, size = self._catalog.last_published(found.name), found.identity[1]
        name = Edition(digest, size, 0, None).copy_name(found.name)
        await in_thread(_THREAD, lambda: copies.put(taken, self._place / COPIES / name))
        return Edition(digest, size, publication_date(self._clock(), last), verdict.checked_by)

    def _decide(self, found: FoundFile, state: State, reason: str, served: Edition | None) -> None:
        # What is wrong with its name, its kind or the limits can change without the file.
        source = None if found.skipped or found.problem else found.identity
        self._catalog = self._catalog.having(
            SiteFile(found.name, state, self._clock(), reason, served, source)
        )
        match state:
            case State.REFUSED:
                kept = "the last good version is still served" if served else "nothing is served for it"
                logger.error("%s is not published, and %s: %s", found.name, kept, reason)
            case State.WAITING:
                logger.warning("%s can't be checked now: %s", found.name, reason)
            case State.PUBLISHED:
                remark = f" ({reason})" if reason else ""
                logger.info("Published %s, %d bytes.%s", found.name, found.identity[1], remark)
            case State.SKIPPED:
                logger.info("%s is not published: %s", found.name, reason)

    # All files

    def _withdraw(self, names: set[str]) -> None:
        for name in self._catalog.files.keys() - names:
            logger.info("Withdrew %s, which is gone. Machines that still ask for it keep their copy.", name)
            self._catalog = self._catalog.without(name)

    def _note_trouble(self, trouble: str) -> None:
        if trouble != self._catalog.trouble:
            if trouble:
                logger.error("files.directory: %s. What was published is still served.", trouble)
            self._catalog = replace(self._catalog, trouble=trouble)

    async def _load(self) -> None:
        """Read what was published before, as far as the copies are sound.

        Raises:
            OSError: the catalog can't be read.
        """
        place = self._place

        def load() -> tuple[Stamp | None, Catalog, Catalog]:
            mark = stamp_of(place / FILE_NAME)
            saved = Catalog.load(place)
            sound = copies.without_lost(saved, place, copies.is_sound, self._clock())
            if sound is not saved:
                # On a disk that can't be written to, the sound ones are served all the same.
                with suppress(OSError), _locked(place) as is_publisher:
                    if is_publisher:
                        sound.save(place)
            return mark, saved, sound

        self._saved_as, self._saved, self._catalog = await in_thread(_THREAD, load)

    async def _forget_lost_copies(self) -> None:
        catalog, place, now = self._catalog, self._place, self._clock()
        self._catalog = await in_thread(
            _THREAD, lambda: copies.without_lost(catalog, place, copies.has_size, now)
        )

    async def _read_catalog(self) -> None:
        """Take over what another process has published."""
        place = self._place
        known = await in_thread(_THREAD, lambda: stamp_of(place / FILE_NAME))
        if known != self._saved_as:
            self._catalog = self._saved = await in_thread(_THREAD, lambda: Catalog.load(place))
            self._saved_as = known

    async def _save(self) -> None:
        catalog, place = self._catalog, self._place

        def save() -> Stamp | None:
            catalog.save(place)
            copies.sweep(place, catalog)
            return stamp_of(place / FILE_NAME)

        self._saved_as = await in_thread(_THREAD, save)
        self._saved = catalog


def place_of(records: Path) -> Path:
    """Where the catalog and the published copies are, in the state directory."""
    return records / "site-files"


def read_catalog(records: Path) -> Catalog:
    """What is published, for a command. Blocks.

    Args:
        records: the state directory.

    Raises:
        OSError: there is a catalog, but it can't be read.
    """
    return Catalog.load(place_of(records))


@contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """Whether this process is the one that publishes, as long as the context lasts. Quick."""
    if not place.is_dir():
        yield False
        return
    with (place / _LOCK).open("ab") as file:
        yield try_lock(file)
