"""Whole CVDs from a warm cache."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.load.asking import Fetch
from benchmarks.load.generator import Load
from benchmarks.results import Measurement

NAME = "bulk"
TITLE = "Bulk, a whole daily.cvd, warm"
_PATIENCE = 8.0
"""Seconds that a contender may take for a load; one that takes longer has it in the first round only."""


def run(bench: Bench) -> Iterator[Measurement]:
    fetch = bench.mirror.fetch("daily.cvd")
    for way in ("plain", "TLS"):
        for clients in bench.plan.clients:
            yield from _case(bench, fetch, way, clients)


def _case(bench: Bench, fetch: Fetch, way: str, clients: int) -> Iterator[Measurement]:
    slow: set[str] = set()
    # Few clients are done soon, and vary most.
    for number in range(bench.plan.rounds * max(1, min(5, 15 // clients))):
        entries = {server.name: server.tls if way == "TLS" else server.plain for server in bench.servers()}
        loads = {
            name: Load(entry, ((fetch,),), clients)
            for name, entry in entries.items()
            if entry is not None and name not in slow
        }
        for server, measured in bench.in_turns(loads, NAME, f"{way}, {clients} clients", number):
            if measured.values["wall"] > _PATIENCE:
                slow.add(server.name)
            yield measured
