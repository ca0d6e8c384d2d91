"""Notes: what a part of the gateway keeps over a restart, and what the others learn of it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.index import LOOK_EVERY
from clamproxy.cache.store import Store
from clamproxy.cache.watches import Watch
from clamproxy.config.settings import ReleasesSection
from clamproxy.notes import UNKEPT, Merge, Notes, best, site_key
from clamproxy.releases.limits_in_force import read_limits
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


# News

HIGHEST: Merge[int] = best(lambda number: number)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two stores of one directory, as two processes have them."""
    stores = Store(tmp_path / "cache"), Store(tmp_path / "cache")
    yield stores
    for store in stores:
        store.close()


def shared(store: Store, writer: Writer | None = None, topic: str = "topic") -> Notes:
    return Notes(store.noted, writer, topic, shared=store.noted)


def news_of(notes: Notes) -> dict[str, int | None]:
    """What is new when whatever other processes did is seen."""
    time.sleep(2 * LOOK_EVERY)
    found = notes.news(int, HIGHEST)
    return dict(found)


def test_what_others_save_is_news_once(processes: tuple[Store, Store]) -> None:
    ours, theirs = map(shared, processes)
    theirs.save("early", 1)
    assert ours.load(int) == {"early": 1}
    assert news_of(ours) == {}, "it was loaded"
    theirs.save("/daily.cvd", 2)
    theirs.save("other", 3)
    shared(processes[1], topic="topics").save("key", 4)
    assert news_of(ours) == {"/daily.cvd": 2, "other": 3}
    assert news_of(ours) == {}
    theirs.save("other", 5)
    theirs.forget("/daily.cvd")
    theirs.save("early", "no number")
    assert news_of(ours) == {"/daily.cvd": None, "other": 5, "early": None}


def test_what_this_process_saves_is_no_news(processes: tuple[Store, Store]) -> None:
    ours, theirs = map(shared, processes)
    ours.save("key", 1)
    theirs.save("other", 2)
    assert news_of(ours) == {"other": 2}


async def test_nobody_goes_back_to_an_older_value_of_its_own(processes: tuple[Store, Store]) -> None:
    writer, gate = Writer(), threading.Event()
    ours, theirs = shared(processes[0], writer), shared(processes[1])
    theirs.save("key", 1)
    assert news_of(ours) == {"key": 1}
    writer.submit(gate.wait)
    ours.save("key", 3)
    theirs.save("key", 2)
    theirs.save("other", 4)
    assert news_of(ours) == {"other": 4}
    assert news_of(ours) == {}
    gate.set()
    await writer.run(lambda: None)
    assert news_of(ours) == {"key": 3}
    assert news_of(theirs) == {"key": 3}
    writer.close()


@pytest.mark.parametrize("writes", [0, 1])
def test_what_other_gateways_know_is_merged(processes: tuple[Store, Store], writes: int) -> None:
    """Whichever worker of this machine wrote it."""
    ours = shared(processes[0])
    keeper = processes[writes].noted

    def learn(**values: int | None) -> None:
        keeper.set_notes({site_key(name, "topic", "a/key"): value for name, value in values.items()})

    learn(one=5, two=3)
    keeper.set_note(site_key("one", "topics", "a/key"), 100)
    keeper.set_note(site_key("one", "x/topic", "a/key"), 100)
    assert news_of(ours) == {"a/key": 5}
    ours.save("a/key", 7)
    assert ours.load(int, HIGHEST) == {"a/key": 7}
    learn(two=9)
    assert news_of(ours) == {"a/key": 9}
    learn(one=None, two=None)
    assert news_of(ours) == {"a/key": 7}, "what this gateway noted itself"
    assert processes[0].notes("topic/") == {"a/key": 7}


def test_a_new_index_is_no_news(processes: tuple[Store, Store]) -> None:
    """What is lost with the file stays known, and is written anew."""
    ours, theirs = map(shared, processes)
    theirs.save("key", 1)
    assert news_of(ours) == {"key": 1}
    (processes[0].directory / "index" / "cache.db").unlink()
    assert news_of(ours) == {}
    processes[0].mend()
    assert news_of(theirs) == {}
    assert theirs.load(int) == {"key": 1}


def count_watches() -> int:
    gc.collect()
    return sum(isinstance(thing, Watch) for thing in gc.get_objects())


def test_looks_leave_nothing_behind(store: Store) -> None:
    """Each status page and each scrape of the metrics is such a look."""
    before = count_watches()
    for _ in range(20):
        read_limits(store, ReleasesSection(), time.time())
    assert count_watches() == before
