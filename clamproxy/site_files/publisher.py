"""Publishes the site's files: looks into the directory again and again, checks what is new, and replaces it.

Everything is in the directory ``site-files`` of the state directory: the catalog, and beside it a copy of
each published file, which never changes. So a reader of the catalog finds the very content that it names. Of
several processes that share the directory, one publishes at a time, and the others read its catalog.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from clamproxy.files import file_sha256, identity_of, sync_directory, try_lock
from clamproxy.site_files.catalog import (
    COPIES,
    FILE_NAME,
    Catalog,
    Edition,
    Identity,
    SiteFile,
    State,
)
from clamproxy.site_files.checking import CheckError, Verdict, check, find_clamscan
from clamproxy.site_files.collecting import ChangingError, Found, copy, find_files
from clamproxy.site_files.dates import publication_date
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds between looks into the directory. A file counts once it is unchanged from one to the next."""
RETRY_AFTER = 60.0
"""Seconds until a file that could not be checked is checked again."""
SPARED = 600.0
"""Seconds for which a copy is kept after it was replaced: other processes may still name it."""
_LOCK = "lock"
_CHECKS = "check-"
"""How the directories begin in which files are checked."""
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
        self._saved_as: object = None
        """Identifies the catalog's file as it was read or written last."""
        self._seen: dict[str, Identity] = {}
        """The files as they were at the last look."""
        self._retry_at: dict[str, float] = {}
        self._has_looked = asyncio.Event()
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    def start(self) -> None:
        if self._directory is not None:
            with suppress(OSError):  # `look` says why
                # What is known about the files; requests wait until the copies are proven.
                self._catalog = Catalog.load(self._place)
            self._task = asyncio.create_task(self._run(), name="publish the site's files")

    def stop(self) -> None:
        """Stop publishing; a check under way ends."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def ready(self) -> None:
        """Wait until it is known what is published, but not for checks."""
        if self._task is not None:
            await self._has_looked.wait()

    def path_of(self, file: SiteFile) -> Path | None:
        """Where the published copy of a file is; None if nothing is published for it."""
        return None if file.served is None else self._place / COPIES / file.served.copy_name(file.name)

    async def _run(self) -> None:
        await self._prove_copies()
        while True:
            try:
                await self.look()
                self._trouble = ""
            except Exception as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    logger.warning("The site's files can't be published: %s", error)
            self._has_looked.set()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Publish what is new since the last look, and withdraw what is gone.

        Raises:
            OSError: the state directory can't be used.
        """
        assert self._directory is not None  # noqa: S101
        directory, place = self._directory, self._place
        found, trouble = await in_thread(_THREAD, lambda: _look_into(directory, place))
        with _locked(place) as is_publisher:
            await self._read_catalog()
            self._has_looked.set()
            if not is_publisher or found is None:
                return
            self._note_trouble(trouble)
            if not trouble:
                self._withdraw({file.name for file in found})
                clamscan = find_clamscan()
                for file in found:
                    await self._take(file, clamscan)
                self._seen = {file.name: file.identity for file in found}
            if self._catalog is not self._saved:
                await self._save()

    # One file

    async def _take(self, found: Found, clamscan: str | None) -> None:
        entry = self._catalog.files.get(found.name)
        if found.skipped or found.problem:
            state, reason = (
                (State.SKIPPED, found.skipped) if found.skipped else (State.REFUSED, found.problem)
            )
            if entry is None or (entry.state, entry.reason) != (state, reason):
                self._decide(found, state, reason, entry.served if entry else None)
            return
        if self._is_decided(found, entry, clamscan) or self._seen.get(found.name) != found.identity:
            return
        try:
            await self._publish(found, entry, clamscan)
        except ChangingError:
            return  # the next look sees it as it is then
        except (CheckError, OSError) as error:
            reason = str(error) if isinstance(error, CheckError) else (error.strerror or str(error))
            self._retry_at[found.name] = self._clock() + RETRY_AFTER
            if entry is None or (entry.state, entry.reason) != (State.WAITING, reason):
                self._decide(found, State.WAITING, reason, entry.served if entry else None)

    def _is_decided(self, found: Found, entry: SiteFile | None, clamscan: str | None) -> bool:
        if entry is None or entry.source != found.identity:
            return False
        if entry.state is State.WAITING:
            return self._clock() < self._retry_at.get(found.name, 0.0)
        served = entry.served
        # With clamscan installed in the meantime, what could only be looked at is checked.
        return not (clamscan and entry.state is State.PUBLISHED and served and served.checked_by is None)

    async def _publish(self, found: Found, entry: SiteFile | None, clamscan: str | None) -> None:
        """Check a file, and publish it if it is good.

        Raises:
            ChangingError: it is being written.
            CheckError: it can't be checked now.
            OSError: it can't be copied.
        """
        served = entry.served if entry is not None else None
        scratch = Path(await in_thread(_THREAD, lambda: tempfile.mkdtemp(prefix=_CHECKS, dir=self._place)))
        try:
            taken, directory = scratch / found.name, self._directory
            assert directory is not None  # noqa: S101
            digest = await in_thread(_THREAD, lambda: copy(directory, found, taken))
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
        self, found: Found, digest: str, served: Edition | None, verdict: Verdict, taken: Path
    ) -> Edition:
        """What is served from now on: the same content keeps its date."""
        if served is not None and served.sha256 == digest:
            return replace(served, checked_by=verdict.checked_by)
        last, size = self._catalog.last_published(found.name), found.identity[1]
        name = Edition(digest, size, 0, None).copy_name(found.name)
        await in_thread(_THREAD, lambda: _move(taken, self._place / COPIES / name))
        return Edition(digest, size, publication_date(self._clock(), last), verdict.checked_by)

    def _decide(self, found: Found, state: State, reason: str, served: Edition | None) -> None:
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

    async def _prove_copies(self) -> None:
        """Forget copies that were damaged on the disk: they are published again from the directory."""

        def prove() -> Catalog:
            saved = catalog = Catalog.load(self._place)
            for file in saved.listed():
                path = self.path_of(file)
                if path is not None and file.served is not None and not _is_sound(path, file.served):
                    logger.warning("The published copy of %s is damaged or gone.", file.name)
                    catalog = catalog.without(file.name)
            if catalog is not saved:
                with _locked(self._place) as is_publisher:
                    if is_publisher:
                        catalog.save(self._place)
            return catalog

        with suppress(OSError):  # `look` says why
            self._catalog = await in_thread(_THREAD, prove)

    async def _read_catalog(self) -> None:
        """Take over what another process has published."""
        place = self._place
        known = await in_thread(_THREAD, lambda: _mark(place / FILE_NAME))
        if known != self._saved_as:
            self._catalog = self._saved = await in_thread(_THREAD, lambda: Catalog.load(place))
            self._saved_as = known

    async def _save(self) -> None:
        catalog, place = self._catalog, self._place

        def save() -> object:
            catalog.save(place)
            _sweep(place, catalog)
            return _mark(place / FILE_NAME)

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


def _look_into(directory: Path, place: Path) -> tuple[list[Found] | None, str]:
    """The files in the directory, or why it can't be read. None if there is nothing to do yet."""
    try:
        found = find_files(directory)
    except FileNotFoundError:
        # Nobody has used it yet; unless it has disappeared, as a network drive can.
        has_published = bool(Catalog.load(place).files) if place.is_dir() else False
        return ([], f"{directory} doesn't exist") if has_published else (None, "")
    except OSError as error:
        found, trouble = [], f"{directory} can't be read: {error.strerror or error}"
    else:
        trouble = ""
    (place / COPIES).mkdir(mode=0o700, parents=True, exist_ok=True)
    return found, trouble


@contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """Whether this process is the one that publishes, as long as the context lasts. Quick."""
    if not place.is_dir():
        yield False
        return
    with (place / _LOCK).open("ab") as file:
        yield try_lock(file)


def _move(taken: Path, target: Path) -> None:
    taken.chmod(0o400)
    taken.replace(target)
    sync_directory(target.parent)


def _is_sound(path: Path, edition: Edition) -> bool:
    try:
        return path.stat().st_size == edition.size and file_sha256(path) == edition.sha256
    except OSError:
        return False


def _mark(path: Path) -> object:
    """Identifies a state of the catalog's file."""
    identity = identity_of(path)
    return None if identity is None else (identity, path.stat().st_mtime_ns)


def _sweep(place: Path, catalog: Catalog) -> None:
    """Remove copies that nothing names any more, and what was left by checks that were killed."""
    named = {file.served.copy_name(file.name) for file in catalog.listed() if file.served is not None}
    old = time.time() - SPARED
    for entry in os.scandir(place / COPIES):
        with suppress(OSError):
            if entry.name not in named and entry.stat().st_ctime < old:
                Path(entry.path).unlink()
    for path in place.glob(f"{_CHECKS}*"):
        with suppress(OSError):
            if path.stat().st_mtime < old:
                shutil.rmtree(path)
