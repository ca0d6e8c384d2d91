"""Requests per second for small objects, from clients that ask repeatedly."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.load.generator import Load
from benchmarks.results import Measurement

NAME = "small"
TITLE = "Small object, absolute-form, 64 clients"
_CLIENTS = 64


def run(bench: Bench) -> Iterator[Measurement]:
    for kind, name in (("cdiff", bench.mirror.cdiff), (".sign", f"{bench.mirror.cdiff}.sign")):
        scripts = ((bench.mirror.fetch(name),),)
        for keep_alive, connections in ((False, "new connection each"), (True, "kept alive")):
            for number in range(bench.plan.rounds):
                loads = {
                    server.name: Load(server.plain, scripts, _CLIENTS, keep_alive, bench.plan.seconds)
                    for server in bench.servers(NAME)
                }
                for _, measured in bench.in_turns(loads, NAME, f"{kind}, {connections}", number):
                    yield measured
