"""Counters and their history: sealed texts in a file of records."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clamproxy.storage.condition import Condition
from clamproxy.storage.records_file import Damage, DamagedFileError, RecordsFile
from clamproxy.storage.sealing import seal, unseal
from clamproxy.untrusted import parse_json

logger = logging.getLogger(__name__)

FILE_NAME = "counters.sqlite"
HISTORY = "history/day"

_COUNTER_PREFIX = "counter/"
_MOVED = "moved"
_LONGEST_COUNT = 30
"""Digits of a counter, at most."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""


class Records:
    """Counters that only grow, and notes. Safe to share between threads and processes. Blocks.

    Args:
        directory: the state directory; made when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self.condition = Condition(directory, "The records of what was served")
        self._file = RecordsFile(directory / FILE_NAME, _SCHEMA, 1, "The file of counters")
        self._lock = threading.Lock()
        self._last: dict[str, int] = {}
        """The counters as this process last saw them, from which a damaged file is continued."""
        self._unwritten: dict[str, tuple[str, str | None]] = {}
        """Notes that couldn't be written yet, and what was in their place: what is there since is newer."""

    @property
    def directory(self) -> Path:
        """The state directory."""
        return self._file.path.parent

    def counters(self, elsewhere: Mapping[str, int] | None = None) -> dict[str, int]:
        """The counters as last written; as last seen if the file can't be read.

        Args:
            elsewhere: counters recorded elsewhere; they are added unless `take_over` has done so.
        """
        known = self._read()
        found = {
            key.removeprefix(_COUNTER_PREFIX): count
            for key, text in known.items()
            if key.startswith(_COUNTER_PREFIX) and (count := count_in(text)) is not None
        }
        with self._lock:
            self._last |= {name: max(count, self._last.get(name, 0)) for name, count in found.items()}
            total = Counter(self._last)
        if elsewhere and known.get(_MOVED) != _source_of(elsewhere):
            total.update(elsewhere)
        return dict(total)

    def add(self, amounts: Mapping[str, int]) -> bool:
        """Add to counters, all at once; returns whether that was written. Trouble is logged once."""
        return self._change({}, amounts)

    def notes(self, prefix: str) -> dict[str, Any]:
        """All notes below a prefix, by the rest of their key."""
        texts = self._read()
        texts |= self._waiting(texts)
        return {key.removeprefix(prefix): parse_json(texts[key]) for key in texts if key.startswith(prefix)}

    def set_note(self, key: str, value: Any) -> bool:
        """Save a JSON value; returns whether that was written.

        If not, it is written with the next change: counters change all the time, and a note may never come
        again.
        """
        text = json.dumps(value)
        if self._change({key: text}, {}):
            return True
        before = self._read().get(key)
        with self._lock:
            self._unwritten[key] = text, before
        return False

    def _waiting(self, texts: Mapping[str, str]) -> dict[str, str]:
        """The notes that couldn't be written yet, unless there are newer ones."""
        with self._lock:
            return {key: text for key, (text, before) in self._unwritten.items() if texts.get(key) == before}

    def take_over(self, counters: Mapping[str, int], history: Any) -> bool:
        """Add what was recorded elsewhere, and remember that it was, until `forget_takeover`.

        Idempotent: if a process was killed, calling this again with what is still there adds nothing.

        Returns:
            Whether it is recorded here now.
        """
        source = _source_of(counters)
        known = self._read()
        if known.get(_MOVED) == source:
            return True
        changes = {_MOVED: source}
        if history is not None and HISTORY not in known:
            changes[HISTORY] = json.dumps(history)
        return self._change(changes, counters, unless_moved=source)

    def forget_takeover(self) -> None:
        """Note that what was taken over no longer exists elsewhere."""
        if _MOVED in self._read():
            self._change({_MOVED: ""}, {})

    def _read(self) -> dict[str, str]:
        try:
            with self._file.reading() as connection:
                return {} if connection is None else _texts(connection)
        except (sqlite3.Error, OSError) as error:
            self.condition.failed(error)
            return {}

    def _change(
        self, texts: Mapping[str, str], amounts: Mapping[str, int], unless_moved: str | None = None
    ) -> bool:
        for _ in range(2):
            try:
                with self._file.writing() as connection:
                    with self._lock:
                        unwritten = dict(self._unwritten)
                    counted = self._write(connection, texts, amounts, unless_moved)
            except DamagedFileError:
                continue
            except (sqlite3.Error, OSError) as error:
                if not self.condition.failed(error):
                    raise
                return False
            with self._lock:
                self._last |= counted
                # What could not be written in the meantime still has to be.
                self._unwritten = {
                    key: note for key, note in self._unwritten.items() if unwritten.get(key) is not note
                }
            self.condition.recovered()
            return True
        return False

    def _write(
        self,
        connection: sqlite3.Connection,
        texts: Mapping[str, str],
        amounts: Mapping[str, int],
        unless_moved: str | None,
    ) -> dict[str, int]:
        """Write within a transaction, with the notes that wait; returns what the counters are after that."""
        known = _texts(connection)
        if unless_moved is not None and known.get(_MOVED) == unless_moved:
            texts, amounts = {}, {}
        with self._lock:
            before = {_COUNTER_PREFIX + name: count for name, count in self._last.items()}
        counted: dict[str, int] = {}
        for name, amount in amounts.items():
            count = count_in(known.get(_COUNTER_PREFIX + name, ""))
            counted[name] = (before.get(_COUNTER_PREFIX + name, 0) if count is None else count) + amount
        # A new file starts with everything that was counted.
        missing = {key: str(count) for key, count in before.items() if key not in known}
        counts = {_COUNTER_PREFIX + name: str(count) for name, count in counted.items()}
        new = missing | counts | self._waiting(known) | dict(texts)
        connection.executemany(
            "INSERT OR REPLACE INTO records (key, text) VALUES (?, ?)",
            [(key, seal(key, text)) for key, text in new.items()],
        )
        return counted


def count_in(text: str) -> int | None:
    """The counter that a text holds; None if it is something else."""
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_COUNT else None


def _source_of(counters: Mapping[str, int]) -> str:
    """How counters that were taken over are remembered."""
    return json.dumps(dict(sorted(counters.items())))


def _texts(connection: sqlite3.Connection) -> dict[str, str]:
    """The texts whose checksums are right.

    Raises:
        Damage: the table isn't what it was.
    """
    try:
        rows = connection.execute("SELECT key, text FROM records").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise Damage(str(error)) from error
        raise
    found = {}
    for key, stored in rows:
        text = unseal(key, stored)
        if text is not None:
            found[key] = text
    return found
