"""A start costs nearly the same, however much is in the cache: after a kill, nobody waits for it."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import closing
from dataclasses import dataclass
from math import inf
from pathlib import Path

from clamproxy.cache import layout
from clamproxy.cache.index import Index
from clamproxy.cache.published import Metadata
from clamproxy.cache.rows import IndexRow, object_key
from clamproxy.cache.store import Store
from clamproxy.storage.condition import Condition
from tests.support.dns_server import open_dns
from tests.support.gateway import Gateway
from tests.support.origin import OriginServer
from tests.support.site import eventually, settings_for
from tests.support.stored import cdiff
from tests.torture.conftest import Figures
from tests.torture.effort import rounds

FEW, MANY = 10, 3000
"""Objects: `cache.keep_cdiffs` is 120, and ClamAV makes 3000 patches in eight years. Still more would take
longer: their number counts at a start, and their bytes at the first request, before which all are read."""
MOST = 4.0
"""How many times the processor time of a start with few objects one with many may take; measured: 2.3."""
MOST_LONGER = 12.0
"""The same for the time until the first answer; measured: 3, up to 7 where many others want the processor."""
MOST_IDLE = 6.0
"""How many times its processor time may pass until the first answer, while the process could run; measured:
1.2. It waits for nothing else then."""
ROOM = {"cache": {"keep_cdiffs": 10 * MANY}}


def fill(cache: Path, count: int) -> None:
    """Patches, of which a start knows that they were verified before it."""
    Store(cache).close()
    rows = {}
    for version in range(1, count + 1):
        body = b"%d " % version * 2000
        path = cache / layout.file_name(cdiff(version))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        metadata = Metadata(len(body), time.time(), sha256=hashlib.sha256(body).hexdigest())
        rows[object_key(cdiff(version))] = IndexRow(metadata.to_json(), layout.file_name(cdiff(version)))
    with closing(Index(cache / layout.INDEX, Condition(cache, "The cache"))) as index:
        index.change(rows)


def processor_time(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def queued(pid: int) -> float:
    """Seconds that a process's main thread could have run, but others had the processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


@dataclass
class Starts:
    """What the quickest of several starts took; a busy machine slows down some."""

    gateway: Gateway
    count: int
    used: float = inf
    """Seconds of the processor's time until it listens."""
    waited: float = inf
    """Seconds until the first answer."""
    idle: float = inf
    """How many times its processor time they were, without those in which others had the processor."""

    def start(self) -> None:
        """Start it, and kill it when it has answered."""
        began = time.monotonic()
        with self.gateway as gateway:
            self.used = min(self.used, processor_time(gateway.pid))
            # It is whole, and the kill that follows meets a gateway at work.
            assert eventually(lambda: gateway.ask(f"/daily-{self.count}.cdiff").status == 200)
            waited = time.monotonic() - began
            self.waited = min(self.waited, waited)
            self.idle = min(self.idle, (waited - queued(gateway.pid)) / processor_time(gateway.pid))


def test_a_start_after_a_kill(tmp_path: Path, figures: Figures) -> None:
    with OriginServer() as origin, open_dns() as dns:
        few, many = (
            Starts(Gateway(tmp_path / str(count), settings_for(origin, dns, **ROOM)), count)
            for count in (FEW, MANY)
        )
        for starts in (few, many):
            fill(starts.gateway.cache, starts.count)
        for number in range(15):
            few.start()
            many.start()
            if number >= rounds(2, 9) and many.waited < MOST_LONGER * few.waited and few.idle < MOST_IDLE:
                break
    figures(
        "starts",
        **{
            f"CPU_seconds_with_{FEW}_objects": few.used,
            f"with_{MANY}": many.used,
            f"seconds_until_the_first_answer_with_{FEW}_objects": f"{few.waited:.1f}",
            f"answered_with_{MANY}": f"{many.waited:.1f}",
            "times_the_processor_time_if_it_could_run": f"{few.idle:.1f}",
        },
    )
    assert many.used < MOST * few.used
    assert many.waited < MOST_LONGER * few.waited
    assert few.idle < MOST_IDLE
