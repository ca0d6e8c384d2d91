"""Notes as rows of the index: this gateway's own, and those that came from other gateways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from clamproxy.cache.index import Index
from clamproxy.cache.rows import NOTE_PREFIX, SITE_PREFIX, IndexRow
from clamproxy.cache.watches import Watch
from clamproxy.files import open_lock, try_lock
from clamproxy.untrusted import parse_json

_LOCK = "notes.lock"


class NoteRows:
    """Small JSON values that survive a restart, and that other processes see. Any thread."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def note(self, key: str) -> Any:
        """A value that was noted, or None. Quick."""
        return _value(self._index.get(NOTE_PREFIX + key))

    def notes(self, prefix: str) -> dict[str, Any]:
        """All notes below a prefix, by the rest of their key. Takes some 100 µs."""
        whole = NOTE_PREFIX + prefix
        keys = [key.removeprefix(NOTE_PREFIX) for key in self._index.keys(whole)]
        return {key.removeprefix(prefix): self.note(key) for key in keys}

    def set_note(self, key: str, value: Any) -> None:
        """Save a JSON value; None removes it. Blocks."""
        self.set_notes({key: value})

    def set_notes(self, values: Mapping[str, Any]) -> None:
        """Save several JSON values, all at once; None removes one. Blocks."""
        rows = {
            NOTE_PREFIX + key: None if value is None else IndexRow(json.dumps(value))
            for key, value in values.items()
        }
        changed = {key: row for key, row in rows.items() if row != self._index.get(key)}
        if changed:
            self._index.change(changed)

    def set_note_if(self, key: str, value: Any, condition: Callable[[Any], bool]) -> bool:
        """Save a JSON value if a condition holds for the present one; returns whether it does. Blocks.

        Of the processes that do so at the same time, one succeeds. If files can't be locked, each may.
        """
        with suppress(OSError), open_lock(self._index.path.parent / _LOCK) as lock:
            if not try_lock(lock):
                return False
            return self._set_note_if(key, value, condition)
        return self._set_note_if(key, value, condition)

    def _set_note_if(self, key: str, value: Any, condition: Callable[[Any], bool]) -> bool:
        holds = condition(self.note(key))
        if holds:
            self.set_note(key, value)
        return holds

    def site_notes(self, topic: str, key: str | None = None) -> dict[str, list[Any]]:
        """What other gateways have noted on a topic, by key: one value from each. Takes some 100 µs.

        Args:
            key: only what is noted under this one.
        """
        found: dict[str, list[Any]] = {}
        for whole in self._index.keys(SITE_PREFIX, "" if key is None else f"/{topic}/{key}"):
            name = _site_name(topic, whole)
            value = self.note(whole.removeprefix(NOTE_PREFIX)) if key is None or name == key else None
            if name is not None and value is not None:
                found.setdefault(name, []).append(value)
        return found

    def changes(self, topic: str) -> Watch:
        """From now on, notes what others change on a topic; for a caller that looks regularly."""
        return self._index.watch(partial(_name, topic))


def _value(row: IndexRow | None) -> Any:
    return None if row is None else parse_json(row.text)


def _name(topic: str, key: str) -> str | None:
    """What a topic calls a row; None if the row doesn't belong to it."""
    prefix = f"{NOTE_PREFIX}{topic}/"
    return key.removeprefix(prefix) if key.startswith(prefix) else _site_name(topic, key)


def _site_name(topic: str, key: str) -> str | None:
    if not key.startswith(SITE_PREFIX):
        return None
    rest = key.removeprefix(SITE_PREFIX).partition("/")[2]
    return rest.removeprefix(f"{topic}/") if rest.startswith(f"{topic}/") else None
