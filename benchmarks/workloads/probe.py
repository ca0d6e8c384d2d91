"""What it costs upstream when a client asks for a CVD's header before anyone has fetched the file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.load.asking import Fetch
from benchmarks.load.generator import Load
from benchmarks.origin import Origin
from benchmarks.results import Measurement
from clamproxy.formats.header import HEADER_SIZE

NAME = "probe"
TITLE = "Header probe, empty cache"
_QUIET = 0.5
"""Seconds without a byte after which nothing more is expected from the origin."""


def run(bench: Bench) -> Iterator[Measurement]:
    origin = bench.mirror.origin
    probe = Fetch("/daily.cvd", HEADER_SIZE, probe=True)
    for contender in bench.contenders:
        with bench.trying(NAME, contender.name), bench.fresh(contender, bench.mirror) as server:
            origin.reset()
            named = Measurement(NAME, "daily.cvd, bytes 0-511", server.name, 0, {})
            measured = bench.measure(server, Load(server.plain, ((probe,),), 1), named)
            count = {"origin_bytes": _bytes_in_the_end(origin)}
            yield replace(measured, values=measured.values | count)


def _bytes_in_the_end(origin: Origin) -> int:
    """Bytes fetched from the origin, after waiting until the server fetches no more."""
    before, now = -1, origin.snapshot().body_bytes
    while now != before:
        time.sleep(_QUIET)
        before, now = now, origin.snapshot().body_bytes
    return now
