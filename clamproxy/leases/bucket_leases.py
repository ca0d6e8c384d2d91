"""Leases by conditional writes to documents in the bucket, for the gateways of a site.

The document of a lease says who holds it, and a number that grows with each renewal. Nobody compares
clocks: whoever watches a lease counts the seconds, by its own clock, since it saw the ETag change.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from clamproxy.bucket.bucket import Bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.leases.leases import Learnt, Lease, Leases, UnkeptLease, WaitEnding, WaitOutcome
from clamproxy.untrusted import parse_json
from clamproxy.waiting import is_set_within

logger = logging.getLogger(__name__)

PREFIX = "leases"
RENEW_EVERY = 3.0
"""Seconds between two renewals."""
EXPIRES_AFTER = 10.0
"""Seconds without a renewal after which a lease is anybody's: three renewals may fail before."""
PAUSES = (0.25, 10.0)
"""Shortest and longest seconds between looks at somebody else's lease: a fifth of the time waited so far, so
longer than 4 seconds only where no client waits."""
SWEEP_EVERY = 64
"""After this many releases, old documents are deleted. So they stay few, at the cost of one list."""
SWEEP_AFTER = 86400.0
"""Seconds without a change after which a document is old, by the store's clock."""
SWEEP_MOST = 200
"""How many documents are deleted at a time."""

_MOST_RENEWALS = 2**53
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9. -]{0,150}")


@dataclass(frozen=True, slots=True)
class _Document:
    holder: str = ""
    """Random, for each time that a lease is taken; empty if it was released."""
    gateway: str = ""
    """For people."""
    number: int = 0
    """Makes each document differ from the one before, and so its ETag."""
    learnt: Learnt = field(default_factory=dict)

    def encode(self) -> bytes:
        shown = {
            "holder": self.holder,
            "gateway": self.gateway,
            "number": self.number,
            "learnt": self.learnt,
        }
        return json.dumps(shown).encode()

    @staticmethod
    def decode(content: bytes) -> _Document:
        """Anything else than a document counts as held by somebody who doesn't renew it."""
        match parse_json(content):
            case {
                "holder": str(holder),
                "gateway": str(gateway),
                "number": int(number),
                "learnt": dict(learnt),
            } if number < _MOST_RENEWALS:
                return _Document(holder, gateway, number, learnt)
        return _Document(holder="unknown")


@dataclass(slots=True)
class _Sight:
    """What this process last saw of somebody's lease."""

    etag: str
    since: float
    """When it saw this ETag first, in monotonic seconds."""


class BucketLeases(Leases):
    """Each lease is a document in the bucket. Its holder renews it; a task does that for each lease.

    Args:
        bucket: stays usable until all leases are released.
        gateway: the name of this gateway, for people that look into the bucket.
    """

    def __init__(self, bucket: Bucket, gateway: str) -> None:
        self._bucket = bucket
        self._gateway = gateway
        self._held: dict[str, _BucketLease | None] = {}
        """By name; None while it is being taken."""
        self._seen: dict[str, _Sight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._releases = 0
        self._is_stopped = False

    async def take(self, name: str) -> Lease | None:
        if self._is_stopped or name in self._held:
            return None
        self._held[name] = None
        lease: _BucketLease | None = None
        try:
            lease = await self._try_to_take(name)
        except BucketError:
            return UnkeptLease(name)
        finally:
            if lease is None:
                del self._held[name]
        if lease is not None:
            self._held[name] = lease
            self._begin(self._keep(lease), f"lease: {name}")
        return lease

    async def wait(self, name: str, limit: float) -> WaitOutcome:
        begun, was_held = time.monotonic(), False
        while not self._is_stopped:
            waited = time.monotonic() - begun
            own = self._held.get(name)
            if own is not None:
                if await own.is_over_within(limit - waited):
                    return WaitOutcome(WaitEnding.RELEASED, own.learnt)
                return WaitOutcome(WaitEnding.HELD)
            try:
                _, document = await self._look(name)
            except BucketError:
                return WaitOutcome(WaitEnding.FAILED)
            if document is None or not document.holder or self._has_expired(name):
                return WaitOutcome(WaitEnding.RELEASED, document.learnt if document and was_held else {})
            was_held = True
            if waited >= limit:
                return WaitOutcome(WaitEnding.HELD)
            shortest, longest = PAUSES
            await asyncio.sleep(min(max(shortest, waited / 5), longest, limit - waited))
        return WaitOutcome(WaitEnding.FAILED)

    def stop(self) -> None:
        """As in the contract. If the event loop goes on, others get the leases at once."""
        self._is_stopped = True
        for lease in list(self._held.values()):
            if lease is not None:
                lease.release()

    async def _try_to_take(self, name: str) -> _BucketLease | None:
        """Raises BucketError if nobody knows whose it is."""
        etag, document = await self._look(name)
        if document is not None and document.holder and not self._has_expired(name):
            return None
        number = document.number if document is not None else 0
        mine = _Document(secrets.token_hex(8), self._gateway, number + 1)
        path, asked_at = path_of(name), time.monotonic()
        if etag is None:
            written = await self._bucket.create(path, mine.encode())
        else:
            written = await self._bucket.replace(path, mine.encode(), etag)
        if written is None:
            # Somebody else was quicker, or it was this very write, whose first response got lost.
            written, document = await self._look(name)
            if written is None or document is None or document.holder != mine.holder:
                return None
        return _BucketLease(name, mine, written, asked_at)

    async def _look(self, name: str) -> tuple[str | None, _Document | None]:
        """The ETag and the document of a lease, of which the time is noted. Raises BucketError."""
        stored = await self._bucket.get(path_of(name))
        if stored is None:
            self._seen.pop(name, None)
            return None, None
        document = _Document.decode(stored.content)
        sight = self._seen.get(name)
        if not document.holder:
            self._seen.pop(name, None)
        elif sight is None or sight.etag != stored.etag:
            self._seen[name] = _Sight(stored.etag, time.monotonic())
        return stored.etag, document

    def _has_expired(self, name: str) -> bool:
        sight = self._seen.get(name)
        return sight is not None and time.monotonic() - sight.since > EXPIRES_AFTER

    async def _keep(self, lease: _BucketLease) -> None:
        """Renew a lease until it is released, and then let others have it."""
        try:
            while not await lease.is_released_within(RENEW_EVERY):
                if lease.is_ours:
                    await self._renew(lease, lease.document.holder, {})
            if lease.is_ours:
                await self._renew(lease, "", lease.learnt)
        finally:
            lease.end()
            self._held.pop(lease.name, None)
        self._releases += 1
        if self._releases % SWEEP_EVERY == 0:
            with suppress(BucketError):
                await self._sweep()

    async def _renew(self, lease: _BucketLease, holder: str, learnt: Learnt) -> None:
        """Write the next document of a lease. If that fails, the next renewal will try again."""
        asked_at = time.monotonic()
        document = _Document(holder, self._gateway, lease.document.number + 1, learnt)
        with suppress(BucketError):
            etag = await self._bucket.replace(path_of(lease.name), document.encode(), lease.etag)
            if etag is None:
                # An earlier write of this lease, whose response got lost, or one by somebody else.
                stored = await self._bucket.get(path_of(lease.name))
                present = None if stored is None else _Document.decode(stored.content)
                if stored is None or present is None or present.holder != lease.document.holder:
                    lease.lose()
                    return
                lease.etag, lease.document = stored.etag, present
                etag = await self._bucket.replace(path_of(lease.name), document.encode(), stored.etag)
            if etag is not None:
                lease.renewed(document, etag, asked_at)

    async def _sweep(self) -> None:
        """Delete documents that nobody has changed for long: of objects that are long gone."""
        found = await self._bucket.list(PREFIX)
        newest = max((one.modified for one in found.values()), default=0.0)
        old = [name for name, one in found.items() if newest - one.modified > SWEEP_AFTER]
        for name in old[:SWEEP_MOST]:
            await self._bucket.delete(f"{PREFIX}/{name}")
        if old:
            logger.debug("%d documents of old leases were deleted.", len(old[:SWEEP_MOST]))

    def _begin(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _BucketLease(Lease):
    """Ours as long as the document has the ETag that we have given it.

    Args:
        asked_at: when its last write was begun, in monotonic seconds: others can't have seen it before.
    """

    def __init__(self, name: str, document: _Document, etag: str, asked_at: float) -> None:
        self.name = name
        self.document = document
        self.etag = etag
        self.learnt: Learnt = {}
        self.is_ours = True
        """Whether nobody else has been seen to have it."""
        self._asked_at = asked_at
        self._released = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def is_lost(self) -> bool:
        expired = time.monotonic() - self._asked_at > EXPIRES_AFTER
        return expired or not self.is_ours or self._released.is_set()

    def release(self, learnt: Learnt | None = None) -> None:
        if not self._released.is_set():
            self.learnt = learnt or {}
            self._released.set()

    def renewed(self, document: _Document, etag: str, asked_at: float) -> None:
        self.document, self.etag, self._asked_at = document, etag, asked_at

    def lose(self) -> None:
        self.is_ours = False

    def end(self) -> None:
        """Others can have it now, as far as this process could do anything for that."""
        self._ended.set()

    async def is_released_within(self, seconds: float) -> bool:
        return await is_set_within(self._released, seconds)

    async def is_over_within(self, seconds: float) -> bool:
        return await is_set_within(self._ended, seconds)


def path_of(name: str) -> str:
    """The path of a lease's document."""
    plain = _PLAIN.fullmatch(name)
    return f"{PREFIX}/{name.replace(' ', '_') if plain else hashlib.sha256(name.encode()).hexdigest()}"
