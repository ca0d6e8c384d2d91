"""``clamproxy stats --watch``: the statistics and what is under way, live."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clamproxy.cache.partial import peek
from clamproxy.cache.store import Store
from clamproxy.cli.common import opened_store
from clamproxy.cli.tables import cooldowns_table, counters_table, databases_table, plain
from clamproxy.config.settings import Settings, StatusSection
from clamproxy.readable import shown_size, shown_time
from clamproxy.state import state_directory
from clamproxy.statistics import COUNTERS, FEED_COUNTERS, snapshot

_PATIENCE = 2.0
"""How many seconds the status page may take to respond."""
_LARGEST_STATUS = 64 * 2**20
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_ENDED_BY_SIGTERM = 128 + signal.SIGTERM
_WIDE = 110
"""How many columns a terminal needs for two tables side by side."""
_FLEET = ("total", "up_to_date", "behind", "overdue", "unknown", "end_of_life")


@dataclass(frozen=True, slots=True)
class Transferring:
    """A file that is being transferred, or whose transfer was interrupted."""

    name: str
    have: int
    """How many bytes are here."""
    size: int | None
    """Size of the whole file in bytes; None if unknown."""
    is_running: bool


@dataclass(frozen=True, slots=True)
class Look:
    """The result of one look."""

    at: float
    """When that was, in monotonic seconds."""
    stats: dict[str, Any]
    """The result of `clamproxy.statistics.snapshot`."""
    transfers: list[Transferring]
    status: dict[str, Any] = field(default_factory=dict)
    """The content of status.json; empty if the status page doesn't respond."""


def look(settings: Settings, store: Store) -> Look:
    """Look at the cache, and ask the proxy's status page for what only the proxy knows. Blocks.

    Raises:
        OSError: the cache can't be read.
    """
    store.directory.stat()  # otherwise, a deleted cache would be shown forever
    return Look(time.monotonic(), snapshot(store), partial_files(store), ask_status(settings.status))


def partial_files(store: Store) -> list[Transferring]:
    """The transfers found in the cache directory, of all processes that share it."""
    seen = {path.stem: peek(path) for path in sorted(store.partials.glob("*.part"))}
    return [
        Transferring(name, one.have, one.size, one.is_running)
        for name, one in seen.items()
        if one is not None
    ]


def ask_status(status: StatusSection) -> dict[str, Any]:
    """``/status.json`` of the admin listener; empty if there is none, or if another program responds."""
    if status.listen is None:
        return {}
    host, port = status.listen
    headers = {}
    if status.token is not None:
        headers["Authorization"] = f"Bearer {status.token.get_secret_value()}"
    connection = http.client.HTTPConnection(_ANY_HOST.get(host, host), port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/status.json?machines=0", headers=headers)
        response = connection.getresponse()
        values = json.loads(response.read(_LARGEST_STATUS)) if response.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException, RecursionError):
        return {}
    finally:
        connection.close()
    return values if isinstance(values, dict) else {}


def watch(settings: Settings, interval: float) -> None:
    """Show the statistics on the terminal until Ctrl-C.

    Args:
        interval: seconds between looks.

    Raises:
        OSError: the cache can't be read.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_ENDED_BY_SIGTERM))  # restores the terminal
    with (
        contextlib.suppress(KeyboardInterrupt),
        opened_store(settings.cache.directory, state=state_directory(settings)) as store,
        Live(screen=True, auto_refresh=False, console=Console(), vertical_overflow="crop") as live,
    ):
        before = None
        while True:
            now = look(settings, store)
            live.update(screen(now, before, live.console.width), refresh=True)
            before = now
            time.sleep(interval)


def screen(now: Look, before: Look | None, width: int) -> RenderableType:
    """Everything that is shown for one look.

    Args:
        before: the previous look, for rates.
        width: of the terminal, in columns.
    """
    heading = Text(f"clamproxy  {shown_time(time.time(), exact=True)}  Ctrl-C to quit", style="bold")
    states = [databases_table(now.stats)]
    if now.transfers:
        states.append(_transfers_table(now.transfers))
    states += cooldowns_table(now.stats)
    counters = counters_table(now.stats, rates(now, before))
    body: RenderableType
    if width >= _WIDE:
        body = Table.grid(padding=(0, 2))
        body.add_row(counters, Group(*states))
    else:
        for table in (*states, counters):  # to save lines: a terminal may have only 24
            table.box, table.title_justify = None, "left"
        body = Group(*states, counters)
    return Group(heading, *_problems(now.status), body)


def rates(now: Look, before: Look | None) -> dict[str, float]:
    """How much each counter has grown per second since the previous look."""
    if before is None or now.at <= before.at:
        return {}
    seconds = now.at - before.at
    names = (*COUNTERS, *FEED_COUNTERS)
    return {name: max(0, now.stats[name] - before.stats[name]) / seconds for name in names}


def _transfers_table(transfers: list[Transferring]) -> Table:
    table = Table("file", "", "here", "of", title="Transfers")
    for one in transfers:
        bar: RenderableType = "interrupted"
        if one.is_running:
            bar = ProgressBar(total=one.size or None, completed=one.have, width=30, pulse=not one.size)
        table.add_row(plain(one.name), bar, shown_size(one.have), shown_size(one.size) if one.size else "?")
    return table


def _problems(status: Mapping[str, Any]) -> Iterator[Text]:
    """What the running proxy reports about itself, as far as it has the expected form."""
    problems = status.get("problems")
    for problem in problems if isinstance(problems, list) else []:
        line = plain(problem)
        line.stylize("bold red")
        yield line
    fleet = status.get("fleet")
    if isinstance(fleet, dict) and fleet.get("total"):
        parts = [f"{fleet.get(name, 0)} {name.replace('_', ' ')}" for name in _FLEET]
        yield plain(f"Machines: {', '.join(parts)}")


def is_terminal() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
