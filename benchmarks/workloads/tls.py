"""New TLS connections per second: each fetches one small object, as freshclam does from an https mirror."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.load.generator import Load
from benchmarks.results import Measurement

NAME = "tls"
TITLE = "TLS, .sign on a new connection each, 64 clients"
_CLIENTS = 64


def run(bench: Bench) -> Iterator[Measurement]:
    scripts = ((bench.mirror.fetch(f"{bench.mirror.cdiff}.sign"),),)
    for case in ("certificate by name", "squid mimics the mirror's"):
        for number in range(bench.plan.rounds):
            entries = {
                server.name: (server.mimic if "squid" in case else None) or server.tls
                for server in bench.servers(NAME)
            }
            loads = {
                name: Load(entry, scripts, _CLIENTS, seconds=bench.plan.seconds)
                for name, entry in entries.items()
                if entry is not None
            }
            for _, measured in bench.in_turns(loads, NAME, case, number):
                yield measured
