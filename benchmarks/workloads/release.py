"""Release day: everybody asks for what was just published, and nobody may get the old version.

One client in six wants the whole file; the others look at the header, then fetch the cdiff and its
signature. The contenders are configured to be out of date for at most one second.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.contenders.contender import Contender
from benchmarks.load.asking import Fetch
from benchmarks.load.generator import Load
from benchmarks.mirror import open_mirror
from benchmarks.results import Measurement
from clamproxy.formats.header import HEADER_SIZE

NAME = "release"
TITLE = "Release day, out of date for 1 s at most"
_UNNOTICED = 2.0
"""Seconds between the release and its first client."""


def run(bench: Bench) -> Iterator[Measurement]:
    for contender in bench.contenders:
        with bench.trying(NAME, contender.name):
            yield _release(bench, contender)


def _release(bench: Bench, contender: Contender) -> Measurement:
    clients, size = bench.plan.release_clients, bench.plan.herd_size
    with (
        tempfile.TemporaryDirectory(prefix="release-", dir=bench.work) as work,
        open_mirror(Path(work), daily=size) as mirror,
        bench.fresh(contender, mirror, always_fresh=True) as server,
    ):
        bench.check(server, server.plain, mirror.fetch("daily.cvd"))
        mirror.origin.reset()
        mirror.publish("daily", mirror.version + 1, size, hours_ago=1)
        time.sleep(_UNNOTICED)
        whole = Fetch("/daily.cvd", version=mirror.version)
        probe = Fetch("/daily.cvd", HEADER_SIZE, probe=True, version=mirror.version)
        patch = (probe, mirror.fetch(mirror.cdiff), mirror.fetch(f"{mirror.cdiff}.sign"))
        load = Load(server.plain, ((whole,), *[patch] * 5), clients)
        measured = bench.measure(server, load, Measurement(NAME, f"{clients} clients", server.name, 0, {}))
        asked = mirror.origin.snapshot()
    counts = {
        "stale": measured.failures.get("stale", 0),
        "origin_requests": asked.files + asked.probes + asked.others,
        "origin_files": asked.files,
        "origin_bytes": asked.body_bytes,
    }
    return replace(measured, values=measured.values | counts)
