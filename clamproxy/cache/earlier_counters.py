"""Counters and their history as earlier versions kept them: in the index of the cache."""

from __future__ import annotations

from clamproxy.cache.index import Index
from clamproxy.cache.rows import NOTE_PREFIX
from clamproxy.storage.records import HISTORY, Records, count_in
from clamproxy.untrusted import parse_json

_PREFIX = "counter/"


def earlier_counters(index: Index) -> dict[str, int]:
    """Those that haven't been handed over yet, by name."""
    return {
        key.removeprefix(_PREFIX): count
        for key in index.keys(_PREFIX)
        if (row := index.get(key)) is not None and (count := count_in(row.text)) is not None
    }


def hand_over(index: Index, records: Records) -> None:
    """Give them to the records, which add them once, however often this is killed. Blocks."""
    counters, history = earlier_counters(index), None
    if (row := index.get(NOTE_PREFIX + HISTORY)) is not None:
        history = parse_json(row.text)
    if counters and records.take_over(counters, history):
        index.change(dict.fromkeys([*index.keys(_PREFIX), NOTE_PREFIX + HISTORY]))
        if not index.waits():
            records.forget_takeover()
