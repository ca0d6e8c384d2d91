"""Notes: small JSON values in which parts of the gateway keep what they know.

They outlive the process, and are how the processes of one machine tell each other what they have learnt. What
other gateways have learnt is among them, too, under `site_key`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from clamproxy.threads import Writer

SITE = "site/"
"""Begins the keys of notes that came from other gateways."""
NO_NEWS: Mapping[str, Any] = {}
_LONGEST_WRITE = 1.0
"""Seconds that clients may have to wait until other processes can see what was learnt for all."""
UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What parsing a JSON value raises if it isn't what was saved."""


class Keeper(Protocol):
    """Where notes are kept: the index of the cache, or the file of records."""

    def notes(self, prefix: str) -> dict[str, Any]:
        """All notes with a prefix, by the rest of their key."""

    def set_note(self, key: str, value: Any) -> object:
        """Keep a JSON value; None removes it. What can't be written now is written later. Blocks."""


class Changes(Protocol):
    """What others have changed among the notes of one topic."""

    def take(self) -> Collection[str]:
        """The keys that have changed since the last call. Quick if there are none."""


class SharedKeeper(Keeper, Protocol):
    """Where notes are kept that others change as well."""

    def note(self, key: str) -> Any:
        """A value that was noted, or None. Quick."""

    def site_notes(self, topic: str, key: str | None = None) -> dict[str, list[Any]]:
        """What other gateways have noted on a topic, by key: one value from each of them."""

    def changes(self, topic: str) -> Changes:
        """From now on, notes what others change; for a caller that takes them regularly."""

    def set_note_if(self, key: str, value: Any, condition: Callable[[Any], bool]) -> bool:
        """Keep a JSON value if a condition holds for the present one; returns whether it does. Blocks."""


type Merge[T] = Callable[[T | None, Sequence[T]], T]
"""Makes one value of what is noted here and of what other gateways have noted; one of them may be nothing."""


def site_key(gateway: str, topic: str, key: str) -> str:
    """The key of a note that came from another gateway.

    Args:
        gateway: its id, without a slash.
    """
    return f"{SITE}{gateway}/{topic}/{key}"


def best[T](rank: Callable[[T], Any]) -> Merge[T]:
    """For topics where one of the values says all: the one that ranks highest."""

    def merge(own: T | None, others: Sequence[T]) -> T:
        return max(others if own is None else (own, *others), key=rank)

    return merge


class Notes:
    """The notes of one part of the gateway, under its own topic.

    Args:
        keeper: where they are kept; None: nowhere, and nothing outlives the process.
        writer: writes them soon; None: they are written at once, in the caller's thread.
        topic: the part of the keys before the slash, the same for all of them.
        read_only: saved values are not kept; for callers that only read.
        shared: the keeper, if others change the notes there; without it, there is no news.
    """

    def __init__(
        self,
        keeper: Keeper | None,
        writer: Writer | None,
        topic: str,
        *,
        read_only: bool = False,
        shared: SharedKeeper | None = None,
    ) -> None:
        self._keeper = keeper
        self._writer = writer
        self._topic = topic
        self._prefix = f"{topic}/"
        self._read_only = read_only
        self._shared = shared
        self._changes = None if shared is None else shared.changes(topic)
        self._lock = threading.Lock()
        self._pending = Counter[str]()
        """How many values the writer hasn't written yet, by key."""
        self._postponed: set[str] = set()
        """Changed keys for which a value was pending."""

    def load[T](self, parse: Callable[[Any], T], merge: Merge[T] | None = None) -> dict[str, T]:
        """What earlier processes saved, and what others know. Blocks, but not for long.

        Args:
            parse: converts a JSON value. Values on which it fails are forgotten: they may come from other
                versions, or from failing disks.
            merge: makes one value of this gateway's and those of others; None: others don't count.
        """
        if self._changes is not None:
            self.refresh()
            self._changes.take()
        found = {}
        for key, value in (self._keeper.notes(self._prefix) if self._keeper is not None else {}).items():
            try:
                found[key] = parse(value)
            except UNREADABLE:
                self.forget(key)
        if self._shared is not None and merge is not None:
            for key, values in self._shared.site_notes(self._topic).items():
                others = _parsed(values, parse)
                if others:
                    found[key] = merge(found.get(key), others)
        return found

    def news[T](self, parse: Callable[[Any], T], merge: Merge[T] | None = None) -> Mapping[str, T | None]:
        """What others have changed since the last look; None: it was forgotten. Any thread.

        Takes less than a microsecond if that is nothing, so callers look before each decision. What this
        process saves itself is no news. While such a value waits to be written, its key has no news either:
        it would be older.

        Args:
            parse: see `load`; values on which it fails count as forgotten.
            merge: see `load`.
        """
        if self._changes is None:
            return NO_NEWS
        changed = self._changes.take()
        if not changed and not self._postponed:
            return NO_NEWS
        with self._lock:
            keys = self._postponed.union(changed)
            self._postponed = {key for key in keys if key in self._pending}
            keys -= self._postponed
        return {key: self._look(self._shared, key, parse, merge) for key in keys}

    def _look[T](
        self, keeper: SharedKeeper | None, key: str, parse: Callable[[Any], T], merge: Merge[T] | None
    ) -> T | None:
        if keeper is None:
            return None
        value = keeper.note(self._prefix + key)
        own = _parsed([] if value is None else [value], parse)
        if merge is None:
            return own[0] if own else None
        others = _parsed(keeper.site_notes(self._topic, key).get(key, ()), parse)
        return merge(own[0] if own else None, others) if own or others else None

    def refresh(self) -> None:
        """See to it that `news` has everything that others have written so far, to the millisecond. Quick."""
        if self._shared is not None:
            self._shared.note(self._prefix)

    async def written(self) -> None:
        """Wait until others can see everything that was saved so far, but not for a disk that is slow."""
        if self._writer is not None:
            with suppress(TimeoutError, RuntimeError):  # the latter: the process is ending
                async with asyncio.timeout(_LONGEST_WRITE):
                    await self._writer.run(lambda: None)

    def save(self, key: str, value: Any) -> None:
        """Keep a JSON value. Quick if there is a writer. Any thread."""
        keeper = self._keeper
        if keeper is None or self._read_only:
            return
        if self._writer is None:
            keeper.set_note(self._prefix + key, value)
            return
        with self._lock:
            self._pending[key] += 1

        def write() -> None:
            try:
                keeper.set_note(self._prefix + key, value)
            finally:
                with self._lock:
                    self._pending[key] -= 1
                    if not self._pending[key]:
                        del self._pending[key]

        self._writer.submit(write)

    def save_if(self, key: str, value: Any, condition: Callable[[Any], bool]) -> bool:
        """Keep a JSON value at once if a condition holds for the present one. Blocks for milliseconds.

        Of the processes that do so at the same time, one succeeds.

        Args:
            condition: is given the value that is noted by now, None if there is none.

        Returns:
            Whether the condition held; always true for what isn't shared.
        """
        if self._shared is None:
            self.save(key, value)
            return True
        return self._shared.set_note_if(self._prefix + key, value, condition)

    def forget(self, key: str) -> None:
        """Remove a value, if there is one."""
        self.save(key, None)


def _parsed[T](values: Sequence[Any], parse: Callable[[Any], T]) -> list[T]:
    found = []
    for value in values:
        try:
            found.append(parse(value))
        except UNREADABLE:
            continue
    return found


UNKEPT = Notes(None, None, "")
"""For knowledge that ends with the process."""
