"""CLDs, built here from the cached CVD and the patches: what PrivateMirror clients ask for first.

freshclam in PrivateMirror mode never uses patches; it asks for ``<db>.cld``, then for ``<db>.cvd``, whole
each time (docs/protocol.md 1.3). With the CLD, it gets each new version without a download from the origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from clamproxy.cache.published import Metadata, PublishedFile
from clamproxy.cache.store import Store
from clamproxy.clock import Clock
from clamproxy.dates import as_past_time
from clamproxy.formats.cld import build_cld
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.leases.leases import ALONE, Leases, WaitEnding
from clamproxy.notes import Merge, Notes, best
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases.lineage import ProvenLineage
from clamproxy.single_flight import SingleFlight
from clamproxy.threads import Writer, in_thread

logger = logging.getLogger(__name__)

LEVEL = 1
"""zlib's compression level: the first level saves a site's network the most; see benchmarks/README.md."""
LONGEST_BUILD = 24 * 3600.0
"""Seconds after which a workspace counts as left behind by a process that has ended."""
RETRY = 300.0
"""Seconds until a CLD is tried again that failed for a reason which may pass, such as a full disk."""
OTHERS_BUILD = 30.0
"""Seconds that a process waits for another one to build. Clients wait for 50 seconds in all."""
LONGEST_DEMAND = 3 * 86400.0
"""Seconds after the last request for a CLD until the database counts as no longer in demand."""
_NOTED_EVERY = 3600.0


_latest: Merge[float] = best(lambda at: at)


class BuildError(Exception):
    """The CLD can't be built; the client should fetch the CVD instead."""


_EXPECTED = (BuildError, InvalidObject, OSError)


class CldBuilder:
    """Builds CLDs, one at a time, each once. Owns its tasks. Event loop only.

    Args:
        notes: where the time of the last request for a CLD is kept over a restart, by database.
        after_publishing: called when the store has grown.
        leases: let one process of a site build.
        take: brings a CLD that another gateway has built; returns whether it is here.
        give: gives a CLD that was built to the other gateways.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        keys: TrustedKeys,
        notes: Notes,
        after_publishing: Callable[[], object] = lambda: None,
        clock: Clock = time,
        leases: Leases = ALONE,
        take: Callable[[ObjectId], Awaitable[bool]] | None = None,
        give: Callable[[ObjectId], Awaitable[object]] | None = None,
    ) -> None:
        self._leases = leases
        self._take = take or self._is_here
        self._give = give or self._is_here
        self._after_publishing = after_publishing
        self._clock = clock
        self._notes = notes
        self._demanded_at = notes.load(self._parse, _latest)
        self._store = store
        self._writer = writer
        self._keys = keys
        self._directory = store.workspaces
        self._turn = asyncio.Lock()
        self._running = SingleFlight[ObjectId, None]("build", self._note_failure)
        self._failed: dict[ObjectId, float] = {}
        """The monotonic time before which each isn't tried again."""

    def note_demand(self, database: str) -> None:
        """Note that a client asks for a CLD of this database. Quick."""
        self._take_in()
        now = self._clock.time()
        if now - self._demanded_at.get(database, 0.0) >= _NOTED_EVERY:
            self._demanded_at[database] = now
            self._notes.save(database, now)

    def is_in_demand(self, database: str) -> bool:
        """Whether clients have asked recently, so that building each new version ahead is worthwhile."""
        self._take_in()
        return self._clock.time() - self._demanded_at.get(database, 0.0) < LONGEST_DEMAND

    def _take_in(self) -> None:
        for database, at in self._notes.news(self._parse, _latest).items():
            if at is not None:
                self._demanded_at[database] = at

    def _parse(self, saved: Any) -> float:
        return as_past_time(saved, self._clock.time())

    def can_build(self, object_id: ObjectId) -> bool:
        """Whether building this CLD hasn't failed, or may be tried again."""
        return self._clock.monotonic() >= self._failed.get(object_id, -math.inf)

    @property
    def is_building(self) -> bool:
        return len(self._running) > 0

    def start(self, database: str, proven: ProvenLineage) -> ObjectId:
        """Start building the CLD of the version that a lineage reaches, unless it exists.

        Returns:
            The CLD's name.
        """
        object_id = ObjectId(database, proven.lineage.reached, Kind.CLD)
        if self._is_to_build(object_id):
            _ = self._running.start(object_id, partial(self._build, object_id, proven))
        return object_id

    async def open(self, database: str, proven: ProvenLineage) -> PublishedFile:
        """Open the CLD of the version that a lineage reaches, building it first if necessary.

        Cancelling this call doesn't stop the build.

        Raises:
            BuildError: it can't be built.
        """
        object_id = ObjectId(database, proven.lineage.reached, Kind.CLD)
        if self._is_to_build(object_id):
            with contextlib.suppress(*_EXPECTED):  # `_note_failure` has noted it
                await self._running.run(object_id, partial(self._build, object_id, proven))
        published = self._store.open(object_id)
        if published is None:
            if self.can_build(object_id):
                self._failed[object_id] = self._clock.monotonic() + RETRY  # no room for it, say
            raise BuildError(f"{object_id.file_name} can't be built")
        return published

    def stop(self) -> None:
        """Cancel all builds. Their threads go on, but the process doesn't wait for them."""
        self._running.stop()

    def sweep(self) -> None:
        """Remove what processes left behind that were killed during a build. Blocks."""
        for path in self._directory.glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime + LONGEST_BUILD < time.time():
                    shutil.rmtree(path)

    def _is_to_build(self, object_id: ObjectId) -> bool:
        return self.can_build(object_id) and not self._store.holds(object_id)

    async def _build(self, object_id: ObjectId, proven: ProvenLineage) -> None:
        """Build under a lease, unless another process has built it; gateways then give the same bytes."""
        name, deadline = f"build {object_id.file_name}", time.monotonic() + OTHERS_BUILD
        while not await self._take(object_id):
            lease = await self._leases.take(name)
            if lease is None:
                outcome = await self._leases.wait(name, deadline - time.monotonic())
                if outcome.ending is WaitEnding.RELEASED:
                    continue
                return await self._build_here(object_id, proven)
            try:
                # Another process may have ended just before this one got the lease.
                if not await self._take(object_id):
                    await self._build_here(object_id, proven)
                    await self._give(object_id)
            finally:
                lease.release()
            return None
        return None

    async def _is_here(self, object_id: ObjectId) -> bool:
        return self._store.holds(object_id)

    async def _build_here(self, object_id: ObjectId, proven: ProvenLineage) -> None:
        async with self._turn:
            started_at = time.monotonic()
            self._directory.mkdir(mode=0o700, exist_ok=True)
            workspace = Path(tempfile.mkdtemp(prefix=f"{object_id.file_name}.", dir=self._directory))
            try:
                file = await in_thread(
                    "clamproxy-build", lambda: self._work(object_id, proven.lineage.base, workspace)
                )
                metadata = Metadata(
                    file.stat().st_size, time.time(), header=proven.header.raw.decode("ascii")
                )
                await self._writer.run(lambda: self._store.publish(object_id, file, metadata))
            finally:
                # After `stop` nobody takes what the thread goes on to build.
                await in_thread("clamproxy-tidy", lambda: shutil.rmtree(workspace, ignore_errors=True))
            self._after_publishing()
            logger.info("Built %s in %.1f s.", object_id.file_name, time.monotonic() - started_at)

    def _work(self, object_id: ObjectId, base_version: int, workspace: Path) -> Path:
        """Build in a directory of its own, and return the file."""
        target, unpacked = workspace / object_id.file_name, workspace / "unpacked"
        try:
            unpacked.mkdir()
            with ExitStack() as stack:
                base, *patches = [
                    stack.enter_context(open(file.fileno(), "rb", closefd=False))
                    for file in map(stack.enter_context, self._ingredients(object_id, base_version))
                ]
                build_cld(base, patches, object_id, unpacked, target, self._keys, level=LEVEL)
            shutil.rmtree(unpacked)
        except BaseException:
            # It may be gone already, but for what has been made since.
            shutil.rmtree(workspace, ignore_errors=True)
            raise
        finally:
            self._store.disconnect()
        return target

    def _ingredients(self, object_id: ObjectId, base_version: int) -> Iterator[PublishedFile]:
        """What to build from: the newest earlier CLD or else the base, and the patches that follow it.

        Raises:
            BuildError: some of it was dropped a moment ago.
        """
        database = object_id.database
        for version in range(object_id.version - 1, base_version - 1, -1):
            kind = Kind.CVD if version == base_version else Kind.CLD
            if (start := self._store.open(ObjectId(database, version, kind))) is not None:
                yield start
                break
        else:
            raise BuildError(f"{database}-{base_version}.cvd is no longer cached")
        for patch_version in range(version + 1, object_id.version + 1):
            patch = self._store.open(ObjectId(database, patch_version, Kind.CDIFF))
            if patch is None:
                raise BuildError(f"{database}-{patch_version}.cdiff is no longer cached")
            yield patch

    def _note_failure(self, object_id: ObjectId, error: BaseException) -> None:
        """What is wrong with the content stays wrong; the disk and the cache may be in another state soon."""
        is_passing = isinstance(error, OSError | BuildError)
        self._failed[object_id] = self._clock.monotonic() + RETRY if is_passing else math.inf
        if isinstance(error, _EXPECTED):
            logger.warning("%s can't be built: %s", object_id.file_name, error)
        else:
            logger.error("Building %s failed.", object_id.file_name, exc_info=error)
