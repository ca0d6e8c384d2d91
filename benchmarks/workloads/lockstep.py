"""All machines at once, each from its own address: a cdiff, then its signature, as after a release.

freshclams on machines that were booted together look for updates at the same moment (docs/protocol.md 1.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.bench import Bench, settle
from benchmarks.load.generator import Load, most_machines
from benchmarks.results import Measurement

NAME = "lockstep"
TITLE = "Lock-step, cdiff and .sign on a new connection each"


def run(bench: Bench) -> Iterator[Measurement]:
    fetches = tuple(bench.mirror.fetch(name) for name in (bench.mirror.cdiff, f"{bench.mirror.cdiff}.sign"))
    for machines in (min(crowd, most_machines()) for crowd in bench.plan.crowds):
        for number in range(bench.plan.rounds):
            loads = {
                server.name: Load(server.machine, (fetches,), machines) for server in bench.servers(NAME)
            }
            for server, measured in bench.in_turns(loads, NAME, f"{machines:,} machines", number):
                settle()
                left = {"resident": server.process.resident_mib()}
                yield replace(measured, values=measured.values | left)
