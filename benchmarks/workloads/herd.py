"""All clients at the same moment, with an empty cache and a rate limit at the origin; then once more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.contenders.contender import Contender
from benchmarks.load.generator import Load
from benchmarks.mirror import MB, ORIGIN_RATE
from benchmarks.results import Measurement

NAME = "herd"
TITLE = f"Cold herd, a whole main.cvd, empty cache, origin at {ORIGIN_RATE // MB} MB/s"


def run(bench: Bench) -> Iterator[Measurement]:
    for way in ("plain", "TLS"):
        for number in range(bench.plan.rounds):
            for contender in bench.contenders:
                with bench.trying(NAME, contender.name):
                    yield from _herd(bench, contender, way, number)


def _herd(bench: Bench, contender: Contender, way: str, number: int) -> Iterator[Measurement]:
    fetch, origin = bench.mirror.fetch("main.cvd"), bench.mirror.origin
    clients = max(bench.plan.clients)
    case = f"{clients} clients, {way}"
    if bench.is_slow(NAME, case, contender.name):
        return
    with bench.fresh(contender, bench.mirror) as server:
        entry = server.tls if way == "TLS" else server.plain
        if entry is None:
            return
        load = Load(entry, ((fetch,),), clients, verify=True)
        named = Measurement(NAME, case, server.name, number, {})
        origin.reset()
        cold = bench.measure(server, load, named)
        asked = origin.snapshot(fetch.path)
        warm = bench.measure(server, load, named)
    assert fetch.size is not None
    least = max(fetch.size / ORIGIN_RATE, warm.values["wall"])
    more = {
        "warm": warm.values["wall"],
        "share": cold.values["wall"] / least,
        "origin_files": asked.files,
        "origin_bytes": asked.body_bytes,
    }
    yield replace(cold, values=cold.values | more)
