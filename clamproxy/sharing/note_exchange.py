"""The exchange: tells the other gateways of the site what this one has learnt, and notes what they tell.

One process of a machine does it. Each gateway writes one document of its own into the object store; a list of
them shows which ones have changed. While the store can't be used, nothing happens, and then it catches up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from clamproxy.bucket.bucket import Bucket, Listed, Stored
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.cache.store import Store
from clamproxy.clock import Clock
from clamproxy.leases.duties import on_duty
from clamproxy.leases.leases import Leases
from clamproxy.sharing import reports, site_notes
from clamproxy.sharing.clock_difference import SIGN_OF_LIFE, ClockDifference
from clamproxy.sharing.gateway_document import (
    DIRECTORY,
    LARGEST,
    DocumentError,
    GatewayDocument,
    id_in,
    is_id,
    path_of,
)
from clamproxy.sharing.own_document import OwnDocument
from clamproxy.sharing.reports import REPORT_EVERY, Reports
from clamproxy.sharing.topics import Notes, understood
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

LEASE = "exchange"
"""The lease, among the processes of a machine, under which one of them does all this."""
WRITE_EVERY = 1.0
"""Seconds between two documents of this gateway, at least."""
LOOK_EVERY = 2.0
"""Seconds between two looks for the documents of others."""
LIST_EVERY = 10.0
"""Seconds between two lists, which show new gateways. In between, the documents of known ones are read: with
some stores, a list costs as much as twelve of them."""
FEW = 8
"""Gateways up to which that is worth it."""
GONE_AFTER = 300.0
"""Seconds without a new document after which a gateway counts as gone: five signs of life."""
DELETE_AFTER = 86400.0
"""Seconds after which the document of a gateway that is gone is deleted."""
MOST_GATEWAYS = 100
"""How many other gateways are listened to, at most."""

_GONE = "gone/"
"""Begins the keys of the notes about gateways that are gone, so that a restart doesn't take them for new."""
_TELL_APART = 1.0
"""Seconds by which a clock's difference must have changed, so that all notes are translated anew."""
_HEARD_EVERY = 30.0
"""Seconds between two notes of when a gateway was last heard of, at least."""

type Report = Callable[[], Awaitable[bytes | None]]
"""Makes this gateway's report; None if there is none."""


async def _no_report() -> bytes | None:
    return None


@dataclass(slots=True)
class _OtherGateway:
    """What is known about another gateway. Times are by this gateway's clock."""

    etag: str = ""
    """Of its latest document, read or not; empty if there was none."""
    report: str = ""
    """The same of its report."""
    silent: float = 0.0
    """For how many seconds others could have been heard since it was."""
    difference: ClockDifference = field(default_factory=ClockDifference)
    applied: float | None = None
    """The difference with which its notes were translated."""
    heard_at: float = 0.0
    is_refused: bool = False
    """Whether the log says that its documents are ignored."""
    is_gone: bool = False


class NoteExchange:
    """Exchanges documents, in the process that has the lease. Owns its task. Event loop only.

    Args:
        store: has the notes, and gets those of others.
        leases: among the processes of the machine.
        report: this gateway's own.
    """

    def __init__(
        self,
        bucket: Bucket,
        store: Store,
        leases: Leases,
        report: Report = _no_report,
        clock: Clock = time,
    ) -> None:
        self._bucket = bucket
        self._store = store
        self._leases = leases
        self._report = report
        self._clock = clock
        self._own = OwnDocument(bucket, store.records, clock)
        self._reports = Reports(store.directory)
        self._generation = -1
        self._told: Notes | None = None
        self._told_at = self._reported_at = -SIGN_OF_LIFE
        self._reported: int | None = None
        """Tells the report that is in the store from a new one; None if there may be none."""
        self._others: dict[str, _OtherGateway] | None = None
        """By id; None until the first look."""
        self._looked_at: float | None = None
        """When the last look began that saw everything."""
        self._looked_for = -LOOK_EVERY
        """The same in monotonic seconds."""
        self._listed_for = -LIST_EVERY
        """When the last list was begun, in monotonic seconds."""
        self._is_crowded = False
        self._task: asyncio.Task[None] | None = None

    async def catch_up(self, patience: float) -> None:
        """Learn what others know, whether or not another process does so too, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._guarded(self._look)

    def start(self) -> None:
        duty = on_duty(self._leases, LEASE, self.work)
        self._task = asyncio.create_task(duty, name="exchange with other gateways")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def work(self) -> float:
        """Do what is due now; returns in how many seconds to do it again."""
        await self._guarded(self._do_what_is_due)
        return WRITE_EVERY

    async def _do_what_is_due(self) -> None:
        await self._tell()
        if self._clock.monotonic() - self._looked_for >= LOOK_EVERY:
            await self._look()
        if self._clock.monotonic() - self._reported_at >= REPORT_EVERY:
            await self._send_report()

    async def _guarded(self, what: Callable[[], Awaitable[None]]) -> None:
        try:
            await what()
        except BucketError as error:
            logger.debug("Nothing is exchanged with other gateways now: %s", error)
        except Exception:
            logger.exception("The exchange with other gateways failed.")

    # What this gateway tells

    async def _tell(self) -> None:
        generation, now = self._store.generation(), self._clock.monotonic()
        is_due = now - self._told_at >= SIGN_OF_LIFE
        if generation == self._generation and not is_due:
            return
        notes = await in_thread("clamproxy-exchange", lambda: site_notes.own_notes(self._store))
        if notes != self._told or is_due:
            await self._own.write(notes)
            self._told, self._told_at = notes, now
        self._generation = generation

    async def _send_report(self) -> None:
        self._reported_at = self._clock.monotonic()
        packed = await self._report()
        if packed is not None and hash(packed) != self._reported:
            await self._bucket.put(reports.path_of(await self._own.find_id()), packed)
            self._reported = hash(packed)  # only now: what could not be put is put the next time

    # What others tell

    async def _look(self) -> None:
        began, began_at = self._clock.monotonic(), self._clock.time()
        elapsed = min(began - self._looked_for, 2 * LOOK_EVERY)
        near = [(id_, known) for id_, known in (self._others or {}).items() if not known.is_gone]
        if began - self._listed_for < LIST_EVERY and 0 < len(near) <= FEW:
            for gateway, known in near:
                await self._read_again(gateway, known, elapsed)
        else:
            await self._look_at_all(elapsed)
            self._listed_for = began
        self._looked_at, self._looked_for = began_at, began

    async def _look_at_all(self, elapsed: float) -> None:
        listed = await self._bucket.list(DIRECTORY)
        if self._others is None:
            self._others = await in_thread("clamproxy-exchange", self._remembered)
        others = self._others
        documents = {gateway: one for name, one in listed.items() if (gateway := id_in(name)) is not None}
        documents.pop(own := await self._own.find_id(), None)
        if f"{own}{reports.SUFFIX}" not in listed:
            self._reported = None  # others delete it if this gateway has been gone for a day
        heard = sum(not one.is_gone for one in others.values())
        for gateway, document in documents.items():
            is_heard = gateway in others and not others[gateway].is_gone
            if not is_heard and heard >= MOST_GATEWAYS:
                self._say_that_it_is_crowded()
                continue
            known = others.setdefault(gateway, _OtherGateway())
            await self._look_at(gateway, known, document, elapsed)
            heard += (not known.is_gone) - is_heard
            if (report := listed.get(f"{gateway}{reports.SUFFIX}")) is not None and not known.is_gone:
                await self._fetch_report(gateway, known, report)
        for gateway in others.keys() - documents.keys():
            del others[gateway]
            await self._forget(gateway)
        await self._delete_old(others, listed)

    async def _read_again(self, gateway: str, known: _OtherGateway, elapsed: float) -> None:
        """Look at a document without a list; if it is gone or no good, the next list tells."""
        if known.is_refused:
            known.silent += elapsed
            return
        stored = await self._bucket.get(path_of(gateway))
        if stored is None:
            return
        if stored.etag == known.etag:
            await self._note_silence(gateway, known, elapsed)
        elif self._may_read(gateway, known, stored.etag, len(stored.content)):
            await self._hear(gateway, known, stored)

    async def _look_at(self, gateway: str, known: _OtherGateway, document: Listed, elapsed: float) -> None:
        if document.etag == known.etag:
            await self._note_silence(gateway, known, elapsed)
        elif self._may_read(gateway, known, document.etag, document.size):
            stored = await self._bucket.get(path_of(gateway))
            if stored is not None:
                await self._hear(gateway, known, stored)

    async def _note_silence(self, gateway: str, known: _OtherGateway, elapsed: float) -> None:
        # Not by the clock alone: while the store can't be used, nobody can say that he is there.
        known.silent += elapsed
        if known.silent >= GONE_AFTER and not known.is_gone:
            await self._forget(gateway, {f"{_GONE}{gateway}": [known.etag, self._clock.time()]})
            known.is_gone, known.report = True, ""
            known.difference, known.applied = ClockDifference(), None

    def _say_that_it_is_crowded(self) -> None:
        if not self._is_crowded:
            self._is_crowded = True
            logger.warning(
                "The site has more than %d gateways; what the rest tell is ignored.", MOST_GATEWAYS
            )

    def _may_read(self, gateway: str, known: _OtherGateway, etag: str, size: int) -> bool:
        """Whether a new document isn't too large."""
        if size <= LARGEST:
            return True
        known.etag = etag
        self._refuse(gateway, known, f"{size:,} bytes are too much")
        return False

    async def _hear(self, gateway: str, known: _OtherGateway, stored: Stored) -> None:
        """Take in a new document."""
        looked_at = self._looked_at if known.etag else None
        now = self._clock.time()
        known.etag = stored.etag  # whatever is wrong with it, it is read once

        def take_in() -> None:
            document = GatewayDocument.parse(stored.content)
            known.silent, known.is_gone, known.is_refused = 0.0, False, False
            known.difference = known.difference.refined(document.written_at, looked_at, now)
            self._take_in(gateway, known, document, now)

        try:
            await in_thread("clamproxy-exchange", take_in)
        except DocumentError as error:
            self._refuse(gateway, known, f"it is {error}")

    def _take_in(self, gateway: str, known: _OtherGateway, document: GatewayDocument, now: float) -> None:
        """Note what a document says, unless it may be an old one; the next one shows. Blocks."""
        seconds = known.difference.seconds
        if seconds is None:
            return
        if known.applied is None or abs(seconds - known.applied) >= _TELL_APART:
            known.applied = seconds
        if not 0 <= now - known.heard_at < _HEARD_EVERY:
            known.heard_at = now
        notes = understood(document.notes, site_notes.reading_of(self._store, known.applied, now))
        about = site_notes.About(gateway, document.name, known.applied, known.heard_at)
        site_notes.replace(self._store, about, notes)
        self._store.noted.set_notes({f"{_GONE}{gateway}": None})

    def _refuse(self, gateway: str, known: _OtherGateway, reason: str) -> None:
        if not known.is_refused:
            known.is_refused = True
            logger.warning("What gateway %s tells is ignored: %s.", gateway, reason)

    async def _fetch_report(self, gateway: str, known: _OtherGateway, listed: Listed) -> None:
        if listed.etag == known.report or known.applied is None or self._store.condition.state is not None:
            return
        stored = await self._bucket.get(reports.path_of(gateway)) if listed.size <= reports.LARGEST else None
        try:
            if stored is not None:
                await in_thread("clamproxy-exchange", lambda: self._reports.save(gateway, stored.content))
            known.report = listed.etag  # only now: otherwise it is fetched again once the disk takes it
        except OSError as error:
            self._store.condition.failed(error)

    # Gateways that are gone

    async def _forget(self, gateway: str, note: Mapping[str, object] | None = None) -> None:
        def forget() -> None:
            site_notes.forget(self._store, gateway)
            self._store.noted.set_notes({f"{_GONE}{gateway}": None, **(note or {})})
            self._reports.remove(gateway)

        await in_thread("clamproxy-exchange", forget)

    def _remembered(self) -> dict[str, _OtherGateway]:
        """What this machine knew about others before this process was on duty. Blocks."""
        found = {}
        for gateway, note in self._store.notes(_GONE).items():
            match note:
                case [str(etag), int() | float()] if is_id(gateway):
                    found[gateway] = _OtherGateway(etag, silent=GONE_AFTER, is_gone=True)
        for gateway in (*site_notes.gateways(self._store), *self._reports.gateways()):
            found.setdefault(gateway, _OtherGateway())
        return found

    async def _delete_old(self, others: Mapping[str, _OtherGateway], listed: Mapping[str, Listed]) -> None:
        """Delete what gateways have left that have been gone for a day; others may be quicker."""
        for gateway in [one for one, known in others.items() if known.is_gone]:
            note = self._store.note(f"{_GONE}{gateway}")
            if note is None or 0 <= self._clock.time() - note[1] < DELETE_AFTER:
                continue
            for path in (path_of(gateway), reports.path_of(gateway)):
                if path.removeprefix(f"{DIRECTORY}/") in listed:
                    await self._bucket.delete(path)
