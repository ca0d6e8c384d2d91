"""Whole CVDs from a warm cache."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.load.asking import Fetch
from benchmarks.load.generator import Load
from benchmarks.results import Measurement

NAME = "bulk"
TITLE = "Bulk, a whole daily.cvd, warm"


def run(bench: Bench) -> Iterator[Measurement]:
    fetch = bench.mirror.fetch("daily.cvd")
    for way in ("plain", "TLS"):
        for clients in bench.plan.clients:
            yield from _case(bench, fetch, way, clients)


def _case(bench: Bench, fetch: Fetch, way: str, clients: int) -> Iterator[Measurement]:
    # A single client is done quickly, and its figures vary most.
    for number in range(bench.plan.rounds * (3 if clients == 1 else 1)):
        entries = {s.name: s.tls if way == "TLS" else s.plain for s in bench.servers(NAME)}
        loads = {name: Load(entry, ((fetch,),), clients) for name, entry in entries.items() if entry}
        case = f"{way}, {clients} client{'s' if clients > 1 else ''}"
        for _, measured in bench.in_turns(loads, NAME, case, number):
            yield measured
