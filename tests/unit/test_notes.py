"""Notes: what a part of the gateway keeps over a restart."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.notes import UNKEPT, Notes
from clamproxy.storage.records import Records
from clamproxy.threads import Writer


@pytest.fixture(params=["the cache", "the records"])
def keeper(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Store | Records:
    return store if request.param == "the cache" else Records(tmp_path / "records")


def test_topics_are_apart(keeper: Store | Records) -> None:
    for topic in ("cooldown", "feed/cooldown"):
        Notes(keeper, None, topic).save("/daily.cvd", topic)
    for topic in ("cooldown", "feed/cooldown"):
        assert Notes(keeper, None, topic).load(str) == {"/daily.cvd": topic}
    assert Notes(keeper, None, "cool").load(str) == {}


def test_what_cannot_be_parsed_is_forgotten(store: Store) -> None:
    notes = Notes(store, None, "numbers")
    saved = {"one": 1, "none": "x", "list": [], "no key": {}}
    for key, value in saved.items():
        notes.save(key, value)
    versions = {1: 1}  # lists have no hash
    assert notes.load(versions.__getitem__) == {"one": 1}
    assert store.notes("numbers/") == {"one": 1}


def test_forgotten(store: Store) -> None:
    notes = Notes(store, None, "topic")
    notes.save("key", 5)
    notes.forget("key")
    notes.forget("other")
    assert notes.load(int) == {}
    assert store.notes("topic/") == {}


async def test_a_writer_writes_them_soon(store: Store) -> None:
    writer, gate = Writer(), threading.Event()
    writer.submit(gate.wait)
    notes = Notes(store, writer, "topic")
    notes.save("key", 5)
    assert store.notes("topic/") == {}
    gate.set()
    await writer.run(lambda: None)
    assert store.notes("topic/") == {"key": 5}
    writer.close()


@pytest.mark.parametrize("value", [6, None])
def test_who_only_reads_changes_nothing(store: Store, value: Any) -> None:
    store.set_note("topic/key", 5)
    notes = Notes(store, None, "topic", read_only=True)
    notes.save("key", value)
    assert notes.load(dict) == {}, "an int is no dict"
    assert store.notes("topic/") == {"key": 5}


def test_nowhere() -> None:
    UNKEPT.save("key", 5)
    assert UNKEPT.load(int) == {}
