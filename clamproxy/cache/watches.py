"""Watches: which rows of the index others have changed, for those that look from time to time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from weakref import ref

from clamproxy.cache.rows import IndexRow

type NameOf = Callable[[str], str | None]
"""What the owner of a watch calls a key; None if the key is of no interest."""


class Watch:
    """The keys that others have changed. Any thread.

    Args:
        refresh: has changes by other processes noted; quick.
    """

    def __init__(self, name_of: NameOf, refresh: Callable[[], object]) -> None:
        self._name_of = name_of
        self._refresh = refresh
        self._lock = threading.Lock()
        self._changed: set[str] = set()

    def take(self) -> Collection[str]:
        """The names of the keys that have changed since the last call. Quick if there are none."""
        self._refresh()
        if not self._changed:
            return ()
        with self._lock:
            changed, self._changed = self._changed, set()
            return changed

    def note(self, key: str) -> None:
        if (name := self._name_of(key)) is not None:
            with self._lock:
                self._changed.add(name)


class Watches:
    """All watches of an index. Each ends with the last reference to it, which its owner has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: Sequence[ref[Watch]] = ()

    def __bool__(self) -> bool:
        return bool(self._watches)

    def add(self, watch: Watch) -> None:
        with self._lock:
            remaining = (one for one in self._watches if one() is not None)
            self._watches = (*remaining, ref(watch))

    def note(self, keys: Iterable[str]) -> None:
        watches = [watch for one in self._watches if (watch := one()) is not None]
        for key in keys:
            for watch in watches:
                watch.note(key)


def differences(before: Mapping[str, IndexRow], after: Mapping[str, IndexRow]) -> Iterator[str]:
    """The keys of rows that are new, gone, or say something else."""
    for key, row in after.items():
        former = before.get(key)
        if former is not row and former != row:
            yield key
    yield from before.keys() - after.keys()
