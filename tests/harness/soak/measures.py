"""What a process has in use."""

from __future__ import annotations

import asyncio
import gc
import resource
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any

from tests.harness.soak.world import Sample

_COLLECTIONS = (dict, list, set, deque)


def sample(cache: Path, day: float, life: int) -> Sample:
    """Everything at this moment."""
    empty_caches()
    gc.collect()
    sizes = [path.stat().st_size for path in cache.rglob("*") if path.is_file() and path.name != "filler"]
    return Sample(
        day=day,
        life=life,
        rss=int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(),
        objects=len(gc.get_objects()),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        tasks=len(asyncio.all_tasks()),
        threads=threading.active_count(),
        rows=_rows(cache / "cache" / "index" / "cache.db"),
        files=len(sizes),
        bytes=sum(sizes),
        containers=containers(),
    )


def _rows(index: Path) -> int:
    with closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as database:
        count: int = database.execute("SELECT count(*) FROM Cache").fetchone()[0]
        return count


def empty_caches() -> None:
    """Empty the caches that have a limit. They fill up for months, which isn't growth without end."""
    for thing in gc.get_objects():
        if isinstance(thing, _lru_cache_wrapper) and thing.cache_parameters()["maxsize"] is not None:
            thing.cache_clear()


def containers() -> dict[str, int]:
    """How long the collections are that objects and modules of the program hold, and caches without limit."""
    longest: dict[str, int] = {}
    for owner, name, value in _attributes():
        if isinstance(value, _COLLECTIONS):
            key = f"{owner}.{name}"
            longest[key] = max(longest.get(key, 0), len(value))
        elif hasattr(value, "cache_info") and value.cache_parameters()["maxsize"] is None:
            longest[f"{owner}.{name}"] = value.cache_info().currsize
    return longest


def _attributes() -> Iterator[tuple[str, str, Any]]:
    for name, module in list(sys.modules.items()):
        if name.startswith("clamproxy"):
            for attribute, value in list(vars(module).items()):
                yield name, attribute, value
    for thing in gc.get_objects():
        kind = type(thing)
        if not str(kind.__module__).startswith("clamproxy"):
            continue
        for attribute in (*getattr(thing, "__dict__", ()), *_slots(kind)):
            yield kind.__qualname__, attribute, getattr(thing, attribute, None)


def _slots(kind: type) -> Iterator[str]:
    for ancestor in kind.__mro__:
        slots = vars(ancestor).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            is_private = slot.startswith("__") and not slot.endswith("__")
            yield f"_{ancestor.__name__.lstrip('_')}{slot}" if is_private else slot
